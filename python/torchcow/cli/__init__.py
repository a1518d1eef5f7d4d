"""The command line: ``python -m torchcow COMMAND``.

One file per command: ``demo``, ``run``, ``bench``, ``doctor`` (beside it ``checks`` and ``selftest``); ``registry`` is
a group of several. ``output`` says how results and mistakes are told. Exit codes: 0; 1 when a command found something
wrong; 2 for a mistake of the user; 130 when interrupted.
"""

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

from torchcow.cli import bench, doctor, registry, run
from torchcow.cli.demo.command import demo
from torchcow.cli.output import Mistake

PROGRAM = "python -m torchcow"

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,  # help is plain: the yellow of typer's cannot be read on a light background
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
        import torchcow

        print(torchcow.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise Mistake("", f"a COMMAND is missing; {PROGRAM} --help lists them")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (those of the process by default) and return the exit code."""
    try:
        # Not app(): that puts a hook of typer's in the place of sys.excepthook, which programs under `run` would see.
        result = get_command(app).main(
            None if arguments is None else list(arguments), prog_name=PROGRAM, standalone_mode=False
        )
    except KeyboardInterrupt:
        return 130
    except Mistake as mistake:
        return _refuse(f"{PROGRAM} {mistake.command}".rstrip(), str(mistake), mistake.code)
    except Exception as error:
        # Complaints about the arguments. Their class belongs to click, which newer releases of typer carry inside.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        command = PROGRAM if context is None else context.command_path
        return _refuse(command, f"{error.format_message().rstrip('.')}; {command} --help lists what is possible")
    return result if isinstance(result, int) else 0


def _refuse(command: str, message: str, code: int = 2) -> int:
    print(f"{command}: error: {' '.join(message.split())}", file=sys.stderr)
    return code
