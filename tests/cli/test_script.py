# SPDX-License-Identifier: Apache-2.0
"""The script ``torchcow``: quick help and completion, and the name that the user typed in every message.

Catches: an import of torch or rich on the way to help, completion or a refused argument; a script that is not
installed; messages that name another program than the user called; completion offered where no shell can complete.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("typer")

import torchcow
from support.oracle import STARTS_PROCESSES
from torchcow_cli.app import app, get_command

GROUP = get_command(app)
COMMANDS = [[name] for name in GROUP.commands]
COMMANDS += [["registry", name] for name in GROUP.commands["registry"].commands]

pytestmark = STARTS_PROCESSES

#: Runs the command line and prints, at the end, which of the libraries that are slow to import it imported.
SPY = """
import atexit, sys
SLOW = ("torch", "torchcow", "rich.console", "sqlite3")
atexit.register(lambda: print("imported:", *(name for name in SLOW if name in sys.modules), file=sys.stderr))
from torchcow_cli import main
sys.exit(main())
"""


def spy(*arguments, **environment):
    command = [sys.executable, "-c", SPY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


@pytest.mark.parametrize("arguments", [[], *COMMANDS], ids=" ".join)
def test_help_imports_nothing_that_is_slow(arguments):
    done = spy(*arguments, "--help")
    assert (done.returncode, done.stderr) == (0, "imported:\n")
    assert done.stdout.startswith(" ".join(["Usage: torchcow", *arguments]))
    assert spy(*arguments, "-h").stdout == done.stdout


def test_version_comes_from_the_metadata():
    done = spy("--version")
    if metadata.version("torchcow") != torchcow.__version__:
        pytest.skip("another version of the package is installed")
    assert (done.stdout, done.stderr) == (f"{torchcow.__version__}\n", "imported:\n")


def test_an_argument_is_refused_before_anything_slow_is_imported():
    for arguments in (["doctor", "--colour"], ["bench", "--device", "tpu"], ["registry"]):
        done = spy(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(f"torchcow {arguments[0]}: error: ") and done.stderr.endswith("\nimported:\n")


def test_a_shell_can_complete_commands_and_options():
    for words, completions in (("torchcow do", "doctor"), ("torchcow registry pro", "promote")):
        count = str(len(words.split()) - 1)
        done = spy(COMP_WORDS=words, COMP_CWORD=count, _TORCHCOW_COMPLETE="complete_bash")
        assert (done.stdout.split(), done.stderr) == ([completions], "imported:\n")
    shown = spy("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_TORCHCOW_COMPLETE=complete_bash" in shown.stdout, shown.stderr


def test_a_module_has_no_completion():
    done = subprocess.run([sys.executable, "-m", "torchcow", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: python -m torchcow ") and "completion" not in done.stdout
    assert "--install-completion" in spy("--help").stdout


def test_messages_name_the_program_as_it_was_called():
    for command in (["-m", "torchcow"], ["-c", "import torchcow_cli; raise SystemExit(torchcow_cli.main())"]):
        program = "python -m torchcow" if command[0] == "-m" else "torchcow"
        for arguments, path in (([], ""), (["registry"], " registry"), (["fly"], "")):
            done = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, timeout=120)
            assert done.returncode == 2
            assert done.stderr.startswith(f"{program}{path}: error: ")
            assert f"{program}{path} --help lists" in done.stderr


def test_the_script_is_installed():
    (script,) = metadata.entry_points(group="console_scripts", name="torchcow")
    assert script.value == "torchcow_cli:main"
    file = shutil.which("torchcow", path=str(Path(sys.executable).parent))
    assert file is not None
    done = subprocess.run([file, "registry"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "torchcow registry: error: a COMMAND is missing; torchcow registry --help lists them\n"
