"""``python -m torchcow``: the command line of the package."""

import sys

try:
    from torchcow.cli import main
except ImportError as error:
    if error.name not in ("rich", "typer"):
        raise
    print(f"python -m torchcow: error: {error}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
