"""``prune``: which versions stay and why, and what the removal of the others gives back."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torchcow
from torchcow.errors import RegistryError
from torchcow.registry import catalog
from torchcow.registry.version import Reference, Version

if TYPE_CHECKING:
    from sqlite3 import Connection

    from torchcow.registry.registry import Registry


@dataclass(frozen=True)
class PruneReport:
    """What :meth:`torchcow.Registry.prune` did.

    ``bytes`` is what was given back: disk space of a registry in a folder, else memory that only removed versions had.
    ``kept`` says of each version that stayed why: ``"latest"``, ``"tag production"``, ``"rollback of production"``,
    ``"keep"``, ``"parent of name@4"``, ``"proxy"``. ``alive`` names removed versions whose prototype somebody in this
    process still holds, so that their memory stays. ``complaints`` tells of damaged files that were left as they are.
    """

    removed: tuple[Version, ...]
    bytes: int
    kept: Mapping[str, tuple[str, ...]]
    alive: tuple[str, ...]
    complaints: tuple[str, ...]


def plan(registry: Registry, keep: int, name: str | None, squash: bool) -> PruneReport:
    """Say what :func:`prune` would remove; its bytes are not known before."""
    with registry._database.read() as db:
        removed, kept = _sorted_out(registry, db, keep, name, squash)
    return PruneReport(tuple(removed.values()), 0, kept, (), ())


def prune(registry: Registry, keep: int, name: str | None, squash: bool) -> PruneReport:
    """Carry out :meth:`torchcow.Registry.prune`."""
    library = registry._library
    before = torchcow.memory(*registry._prototypes.values()).unique
    freed = 0
    gone: list[str] = []
    complaints: list[str] = []
    with registry._database.write() as db:
        removed, kept = _sorted_out(registry, db, keep, name, squash)
        if library is not None:
            freed = library.store.remove_leftovers(db)
        paths = _files(db)
        for identity in reversed(removed):
            catalog.drop(db, identity)
        if library is not None:
            gone, complaints = library.store.compact(db)
        freed += sum(paths.values()) - sum(_files(db).values())
    references = []
    for identity, version in removed.items():
        prototype = registry._prototypes.pop(identity, None) if library is None else library.shelf.get(identity)
        if library is not None:
            library.shelf.forget(identity)
        if prototype is not None:
            references.append((str(version), weakref.ref(prototype)))
        del prototype
    if library is not None:
        for path in gone:
            library.store.remove(path)
        library.store.sync()
    else:
        freed = before - torchcow.memory(*registry._prototypes.values()).unique
    return PruneReport(
        removed=tuple(removed.values()),
        bytes=freed,
        kept=kept,
        alive=tuple(title for title, reference in references if reference() is not None),
        complaints=tuple(complaints),
    )


def _sorted_out(
    registry: Registry, db: Connection, keep: int, name: str | None, squash: bool
) -> tuple[dict[int, Version], dict[str, tuple[str, ...]]]:
    """The versions that go, by identity, and why each other one stays."""
    if keep < 0:
        raise RegistryError(f"keep: expected a number of versions, got {keep}")
    every = catalog.versions(db)
    if name is not None:
        catalog.find(db, Reference(name))
    reasons = _reasons(registry, db, every, keep, name, squash)
    removed = {identity: version for identity, version in every.items() if identity not in reasons}
    return removed, {str(every[identity]): tuple(why) for identity, why in sorted(reasons.items())}


def _files(db: Connection) -> dict[str, int]:
    return dict(db.execute("SELECT path, bytes FROM file"))


def _reasons(
    registry: Registry, db: Connection, every: Mapping[int, Version], keep: int, name: str | None, squash: bool
) -> dict[int, list[str]]:
    """Why versions stay, by identity; the others are not in it."""
    at = {(version.name, version.number): identity for identity, version in every.items()}
    titles = {str(version): identity for identity, version in every.items()}
    reasons: dict[int, list[str]] = {}

    def stays(identity: int, why: str) -> None:
        if why not in reasons.setdefault(identity, []):
            reasons[identity].append(why)

    for of in {version.name for version in every.values()}:
        numbers = sorted((version.number for version in every.values() if version.name == of), reverse=True)
        stays(at[of, numbers[0]], "latest")
        for number in numbers[:keep]:
            stays(at[of, number], "keep")
        if name is not None and of != name:
            for number in numbers:
                stays(at[of, number], "another name")
        for tag, number in sorted(catalog.tags(db, of).items()):
            stays(at[of, number], f"tag {tag}")
            if (back := catalog.before(db, of, tag)) is not None:
                stays(at[of, back], f"rollback of {tag}")
    for proxy in list(registry._proxies):
        with contextlib.suppress(RegistryError):  # its tag was taken away
            stays(catalog.find(db, proxy._target), "proxy")
    if not squash:
        for identity in sorted(every, reverse=True):  # children come after their parents
            above = every[identity].parent
            if identity in reasons and above is not None:
                stays(titles[above], f"parent of {every[identity]}")
    return reasons
