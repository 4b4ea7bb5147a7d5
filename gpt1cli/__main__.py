"""python -m gpt1cli: the same as the command gpt1."""

import sys

from gpt1cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
