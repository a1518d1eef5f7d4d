# SPDX-License-Identifier: Apache-2.0
"""The commands as typer knows them, and how their results and errors become exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

try:
    import rich  # noqa: F401
    import typer
    from typer.main import get_command
except ImportError as error:
    raise ImportError(
        f"the command line needs the package {error.name}: pip install rich typer", name=error.name
    ) from error

from torchcow_cli import bench, doctor, registry, run
from torchcow_cli.demo.command import demo
from torchcow_cli.output import Mistake

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # help is plain: typer's yellow is unreadable on a light background
    subcommand_metavar="COMMAND [ARGUMENTS]...",
)
app.command()(demo)
app.command(context_settings={"allow_interspersed_args": False})(run.run)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.add_typer(registry.app, name="registry")


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Copy-on-write clones of PyTorch objects."""
    if version:
        print(_version())
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise Mistake("", f"a COMMAND is missing; {context.command_path} --help lists them")


def _version() -> str:
    """The version of the package, without importing it if its metadata say so."""
    from importlib import metadata

    try:
        return metadata.version("torchcow")
    except metadata.PackageNotFoundError:  # a folder on PYTHONPATH
        import torchcow

        return torchcow.__version__


def run_command(arguments: Sequence[str] | None, program: str) -> int:
    """Parse ``arguments``, run the command and return the exit code."""
    command = get_command(app)
    if " " in program:  # shells complete the arguments of a script, not those of python -m
        command.params = [one for one in command.params if one.name not in ("install_completion", "show_completion")]
    try:
        # Not app(): it replaces sys.excepthook by a hook of typer, which programs under `run` would see.
        result = command.main(None if arguments is None else list(arguments), prog_name=program, standalone_mode=False)
    except KeyboardInterrupt:
        return 130
    except Mistake as mistake:
        return _refuse(f"{program} {mistake.command}".rstrip(), str(mistake), mistake.code)
    except Exception as error:
        # Errors about arguments. Their class belongs to click, which newer releases of typer contain.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        path = program if context is None else context.command_path
        return _refuse(path, f"{error.format_message().rstrip('.')}; {path} --help lists what is possible")
    return result if isinstance(result, int) else 0


def _refuse(command: str, message: str, code: int = 2) -> int:
    print(f"{command}: error: {' '.join(message.split())}", file=sys.stderr)
    return code
