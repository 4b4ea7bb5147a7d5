"""The command gpt1, and `python -m gpt1cli`: a short way to the first page, and the way to everything else."""

import sys


def main() -> int:
    """Run gpt1 on the words of the process; the exit status."""
    if sys.argv[1:] in ([], ["--help"], ["-h"]):
        from gpt1cli.cli import help

        try:
            print(help.front_page(), end="", flush=True)
            return 0
        except OSError:
            pass  # whatever is wrong with stdout, cli says what is to be said
    from gpt1cli.cli import main as cli_main

    return cli_main.main()


if __name__ == "__main__":
    sys.exit(main())
