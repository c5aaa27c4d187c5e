"""`python -m ssmast COMMAND ...`, and `accelerate launch -m ssmast COMMAND ...`."""

import sys

from ssmast.cli import main

if __name__ == "__main__":
    sys.exit(main())
