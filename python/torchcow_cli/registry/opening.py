# SPDX-License-Identifier: Apache-2.0
"""What all commands on a registry share: where it is, how it is opened, and how a version is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchcow_cli.output import Mistake

if TYPE_CHECKING:
    from torchcow import Registry
    from torchcow.registry import Version
    from torchcow.registry.stored_version import StoredVersion

Folder = Annotated[
    Path | None, typer.Option("--path", envvar="TORCHCOW_REGISTRY", metavar="FOLDER", help="Where the registry is.")
]
VersionText = Annotated[str, typer.Argument(metavar="VERSION", help="'name' (the latest), 'name@3' or 'name:tag'.")]


@contextmanager
def opened(path: Path | None) -> Iterator[Registry]:
    """The registry in a folder; what it refuses is a mistake of the user, what is damaged has exit code 1."""
    if path is None:
        raise Mistake("registry", "in which folder? give --path FOLDER, or set TORCHCOW_REGISTRY")
    from torchcow import Registry
    from torchcow.errors import StateError

    try:
        registry = Registry(path, create=False)
        try:
            yield registry
        finally:
            registry.close()
    except StateError as error:
        # An error that has a cause comes from the database or from a file: nothing that the user could say otherwise.
        raise Mistake("registry", str(error), code=1 if error.__cause__ else 2) from error


def stored(registry: Registry, version: str) -> StoredVersion:
    """A version of a registry in a folder, as the database has it."""
    from torchcow.registry import queries
    from torchcow.registry.folder_backend import FolderBackend
    from torchcow.registry.version import Reference

    assert isinstance(registry.backend, FolderBackend)
    with registry.backend.database.read() as db:
        version_id = queries.find(db, Reference.of(version))
    return registry.backend.stored_version(version_id)


def describe(version: Version) -> dict[str, Any]:
    """A version for programs."""
    return {
        "version": str(version),
        "created": date(version.created),
        "parent": version.parent,
        "tags": list(version.tags),
        "metadata": dict(version.metadata),
    }


def date(moment: datetime) -> str:
    """A time as text, to the second."""
    return moment.isoformat(timespec="seconds")
