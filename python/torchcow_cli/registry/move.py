# SPDX-License-Identifier: Apache-2.0
"""The commands that change something: ``promote``, ``rollback`` and ``prune``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from torchcow_cli.options import Json, at_least_zero
from torchcow_cli.output import console, document, escape, table
from torchcow_cli.registry.opening import Folder, VersionText, opened

if TYPE_CHECKING:
    from torchcow.registry import Version


def promote(
    version: VersionText,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="'production', for instance.")],
    path: Folder = None,
    json: Json = False,
) -> None:
    """Move a tag to a version, or make the tag."""
    with opened(path) as registry:
        name = registry.version(version).name
        at = registry.tags(name).get(tag)
        before = None if at is None else str(at)
        after = registry.promote(version, tag)
    _moved(tag, before, after, json)


def rollback(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="'production' (if one name only has it) or 'name:tag'.")],
    path: Folder = None,
    json: Json = False,
) -> None:
    """Move a tag back to where it was before."""
    with opened(path) as registry:
        history = registry.history(tag)
        after = registry.rollback(tag)
    before = next((one.version for one in history[::-1] if one.rolled_back is None), None)
    _moved(tag.split(":")[-1], before, after, json)


def _moved(tag: str, before: str | None, after: Version, json: bool) -> None:
    if json:
        document({"tag": f"{after.name}:{tag}", "before": before, "now": str(after)})
    else:
        was = "it is new" if before is None else f"it was at {before}"
        console().print(f"{escape(after.name)}:{escape(tag)} is at [bold]{escape(str(after))}[/]; {escape(was)}")


def prune(
    keep: Annotated[
        int, typer.Option(parser=at_least_zero, metavar="N", help="How many of the latest versions stay.")
    ] = 0,
    name: Annotated[str | None, typer.Option(help="Look at this name only.")] = None,
    squash: Annotated[
        bool, typer.Option("--squash", help="Also remove versions of which only children are left.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, only say what would be done.")] = False,
    path: Folder = None,
    json: Json = False,
) -> int:
    """Remove the versions that nothing needs.

    A version stays while it is the latest, a tag or a rollback leads to it, or another that stays was made from it.
    Without --yes nothing is removed, and what would be is told. Exit code 1 if a file is damaged.
    """
    from torchcow.report.table import size

    with opened(path) as registry:
        report = registry.prune(keep, name=name, squash=squash, dry_run=not yes)
    removed = [str(version) for version in report.removed]
    if json:
        document(
            {
                "done": yes,
                "removed": removed,
                "kept": report.kept,
                "bytes": report.bytes if yes else None,
                "complaints": list(report.complaints),
            }
        )
    else:
        columns = ["version", "stays because"]
        cells = [[version, "; ".join(reasons)] for version, reasons in report.kept.items()]
        console().print(table(None, columns, cells, left=columns) if cells else "the registry is empty")
        gone = ", ".join(removed) or "nothing"
        if yes:
            console().print(f"removed: {escape(gone)}; {size(report.bytes)} given back")
        else:
            console().print(f"would be removed: {escape(gone)} (--yes does it)")
        for complaint in report.complaints:
            console().print(f"[bad]damaged[/] {escape(complaint)}")
    return 1 if report.complaints else 0
