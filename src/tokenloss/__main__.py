"""Run the command line as ``python -m tokenloss``."""

import sys

from tokenloss._command.cli import main

if __name__ == "__main__":
    sys.exit(main())
