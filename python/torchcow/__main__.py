"""``python -m torchcow``: the command line of the package."""

import sys

from torchcow.cli import main

if __name__ == "__main__":
    sys.exit(main())
