"""``python -m torchcow registry``: look at a durable registry, and move its tags, without the code of the models.

``look`` has the commands that only read, ``move`` those that change something; ``opening`` has what they share.
"""

from __future__ import annotations

import typer

from torchcow.cli.output import Mistake
from torchcow.cli.registry import look, move

app = typer.Typer(subcommand_metavar="COMMAND [ARGUMENTS]...")
for command in (look.ls, look.log, look.show, look.diff, move.promote, move.rollback, move.prune):
    app.command()(command)


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Look at a registry in a folder, and move its tags."""
    if context.invoked_subcommand is None:
        raise Mistake("registry", "a COMMAND is missing; python -m torchcow registry --help lists them")
