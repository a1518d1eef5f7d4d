# SPDX-License-Identifier: Apache-2.0
"""``MemoryBackend``: the prototypes of a registry that lives and ends with the process."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from torchcow.errors import RegistryError
from torchcow.registry import queries
from torchcow.registry.backend import Removal, Structure
from torchcow.registry.database import Database
from torchcow.registry.version import Reference, Version
from torchcow.report.memory import memory
from torchcow.snapshots.prototype import Prototype

if TYPE_CHECKING:
    from sqlite3 import Connection


class MemoryBackend:
    """Keeps every prototype itself, so a version needs neither a structure nor fingerprints."""

    def __init__(self) -> None:
        self.database = Database(None)
        self._prototypes: dict[int, Prototype] = {}

    def add(
        self, name: str, prototype: Prototype, parent: Reference | None, tags: Iterable[str], metadata: str
    ) -> Version:
        """Keep a prototype."""
        with self.database.write() as db:
            parent_id = None if parent is None else queries.find(db, parent)
            version_id = queries.insert(db, name, parent_id, metadata, None, None)
            queries.point_all(db, version_id, tags)
            self._prototypes[version_id] = prototype
            return queries.version(db, version_id)

    def prototype(self, version_id: int, structure: Structure | None) -> Prototype:
        """Return the prototype that was added; no structure is needed."""
        try:
            return self._prototypes[version_id]
        except KeyError:
            raise RegistryError("the version was removed meanwhile") from None

    def fingerprints(self, version_id: int) -> NoReturn:
        """Refuse: nothing was hashed."""
        raise RegistryError("a registry in memory keeps no fingerprints; use torchcow.persist.fingerprint.fingerprint")

    def remove(self, select: Callable[[Connection], Sequence[int]]) -> Removal:
        """Drop the prototypes; the bytes are those of blocks that no other version shares."""
        before = self._unique_bytes()
        with self.database.write() as db:
            version_ids = select(db)
            for version_id in reversed(version_ids):
                queries.drop(db, version_id)
        references = {version_id: weakref.ref(self._prototypes.pop(version_id)) for version_id in version_ids}
        referenced = tuple(version_id for version_id, reference in references.items() if reference() is not None)
        return Removal(before - self._unique_bytes(), referenced, ())

    def _unique_bytes(self) -> int:
        return memory(*self._prototypes.values()).unique

    def close(self) -> None:
        """Do nothing: no file is open."""
