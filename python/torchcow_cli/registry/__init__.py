# SPDX-License-Identifier: Apache-2.0
"""``torchcow registry``: inspect a durable registry and move its tags, without the code of the models.

``look`` has the commands that only read, ``move`` those that change something; ``opening`` has what they share.
"""

from __future__ import annotations

import typer

from torchcow_cli.output import Mistake
from torchcow_cli.registry import look, move

app = typer.Typer(subcommand_metavar="COMMAND [ARGUMENTS]...")
for command in (look.ls, look.log, look.show, look.diff, move.promote, move.rollback, move.prune):
    app.command()(command)


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Look at a registry in a folder, and move its tags."""
    if context.invoked_subcommand is None:
        raise Mistake("registry", f"a COMMAND is missing; {context.command_path} --help lists them")
