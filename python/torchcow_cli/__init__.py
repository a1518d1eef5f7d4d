# SPDX-License-Identifier: Apache-2.0
"""The command line: ``torchcow COMMAND``, or ``python -m torchcow COMMAND``.

This package stands beside ``torchcow``, not in it, because importing any part of ``torchcow`` imports torch. Here the
functions that use torch, torchcow or rich import them. So help, completion and refused arguments take a fraction of a
second, and ``tests/cli/test_script.py`` keeps it that way.

``app`` declares the commands. There is one file per command: ``demo``, ``run``, ``bench``, ``doctor`` (with ``checks``
and ``selftest``); ``registry`` is a group of commands. ``options`` holds the options that commands share, ``output``
what they print. Exit codes: 0; 1 when a command found something wrong; 2 for a mistake of the user; 130 when
interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

SCRIPT = "torchcow"


def main(arguments: Sequence[str] | None = None, program: str = SCRIPT) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: those of the process by default.
        program: how the user called the command line; help and error messages repeat it.
    """
    try:
        from torchcow_cli.app import run_command
    except ImportError as error:
        if error.name not in ("rich", "typer"):
            raise
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    return run_command(arguments, program)
