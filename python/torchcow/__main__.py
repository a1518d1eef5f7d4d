# SPDX-License-Identifier: Apache-2.0
"""``python -m torchcow``: the command line, as the script ``torchcow`` starts it."""

import sys

from torchcow_cli import main

if __name__ == "__main__":
    sys.exit(main(program="python -m torchcow"))
