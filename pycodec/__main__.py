"""``python -m pycodec``: the command line."""

import sys

from pycodec.cli import main

if __name__ == "__main__":
    sys.exit(main())
