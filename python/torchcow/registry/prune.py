# SPDX-License-Identifier: Apache-2.0
"""``prune``: decides which versions stay and why, and has a backend remove the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchcow.errors import RegistryError
from torchcow.registry import queries
from torchcow.registry.backend import Backend
from torchcow.registry.version import Reference, Version

if TYPE_CHECKING:
    from sqlite3 import Connection


@dataclass(frozen=True)
class PruneReport:
    """What :meth:`torchcow.Registry.prune` did.

    ``bytes`` is what was given back: disk space of a registry in a folder, otherwise memory that only removed versions
    had. ``kept`` says why each other version stayed: ``"latest"``, ``"tag production"``, ``"rollback of production"``,
    ``"keep"``, ``"parent of name@4"``, ``"proxy"``. ``alive`` names removed versions whose prototype this process still
    refers to, so that their memory stays. ``complaints`` describes damaged files, which were left as they are.
    """

    removed: tuple[Version, ...]
    bytes: int
    kept: Mapping[str, tuple[str, ...]]
    alive: tuple[str, ...]
    complaints: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What :meth:`torchcow.Registry.prune` was asked for. ``served`` has the targets of proxies."""

    keep: int
    name: str | None
    squash: bool
    served: Iterable[Reference]


def plan(backend: Backend, rules: Rules) -> PruneReport:
    """Say what :func:`prune` would remove. The bytes are not known before."""
    with backend.database.read() as db:
        removed, kept = _partition(db, rules)
    return PruneReport(tuple(removed.values()), 0, kept, (), ())


def prune(backend: Backend, rules: Rules) -> PruneReport:
    """Remove the versions that nothing needs."""
    removed: dict[int, Version] = {}
    kept: dict[str, tuple[str, ...]] = {}

    def select(db: Connection) -> list[int]:
        nonlocal removed, kept
        removed, kept = _partition(db, rules)
        return list(removed)

    removal = backend.remove(select)
    return PruneReport(
        removed=tuple(removed.values()),
        bytes=removal.bytes,
        kept=kept,
        alive=tuple(str(removed[version_id]) for version_id in removal.referenced),
        complaints=removal.complaints,
    )


def _partition(db: Connection, rules: Rules) -> tuple[dict[int, Version], dict[str, tuple[str, ...]]]:
    """Return the versions to remove by id, and the reasons for which each other version stays."""
    if rules.keep < 0:
        raise RegistryError(f"keep: expected a number of versions, got {rules.keep}")
    versions = queries.versions(db)
    if rules.name is not None:
        queries.find(db, Reference(rules.name))
    reasons = _reasons(db, versions, rules)
    removed = {version_id: version for version_id, version in versions.items() if version_id not in reasons}
    return removed, {str(versions[version_id]): tuple(texts) for version_id, texts in sorted(reasons.items())}


def _reasons(db: Connection, versions: Mapping[int, Version], rules: Rules) -> dict[int, list[str]]:
    """Return why versions stay, by id. A version that may go is not a key."""
    ids = {str(version): version_id for version_id, version in versions.items()}
    reasons: dict[int, list[str]] = {}

    def stays(version_id: int, reason: str) -> None:
        if reason not in reasons.setdefault(version_id, []):
            reasons[version_id].append(reason)

    for name in {version.name for version in versions.values()}:
        numbers = sorted((version.number for version in versions.values() if version.name == name), reverse=True)
        stays(ids[f"{name}@{numbers[0]}"], "latest")
        for number in numbers[: rules.keep]:
            stays(ids[f"{name}@{number}"], "keep")
        if rules.name is not None and name != rules.name:
            for number in numbers:
                stays(ids[f"{name}@{number}"], "another name")
        for tag, number in sorted(queries.tags(db, name).items()):
            stays(ids[f"{name}@{number}"], f"tag {tag}")
            if (previous := queries.previous(db, name, tag)) is not None:
                stays(ids[f"{name}@{previous}"], f"rollback of {tag}")
    for target in rules.served:
        with contextlib.suppress(RegistryError):  # its tag was removed
            stays(queries.find(db, target), "proxy")
    if not rules.squash:
        for version_id in sorted(versions, reverse=True):  # children come after their parents
            parent = versions[version_id].parent
            if version_id in reasons and parent is not None:
                stays(ids[parent], f"parent of {versions[version_id]}")
    return reasons
