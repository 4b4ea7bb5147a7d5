"""The command gpt1, and `python -m gpt1cli`."""

import sys

from gpt1cli.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
