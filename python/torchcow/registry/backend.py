# SPDX-License-Identifier: Apache-2.0
"""``Backend``: where a registry keeps its prototypes. There is one in memory and one in a folder.

Names, versions, tags and lineage are rows of a database, which :mod:`torchcow.registry.queries` reads and writes in the
same way for every backend. A backend knows what the database does not: the prototypes, their tensors and their files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from torchcow.registry.database import Database
from torchcow.registry.version import Reference, Version
from torchcow.snapshots.prototype import Prototype

if TYPE_CHECKING:
    from sqlite3 import Connection

#: What a stored version can be loaded into: an object of the same build, or a function without arguments that makes
#: one. An object of a class that is not listed is given by such a function.
Structure = (
    torch.nn.Module | Prototype | torch.Tensor | dict[Any, Any] | list[Any] | tuple[Any, ...] | Callable[[], object]
)


@dataclass(frozen=True)
class Removal:
    """What a backend gave back. ``referenced`` has the removed versions whose prototype the program still refers to."""

    bytes: int
    referenced: tuple[int, ...]
    complaints: tuple[str, ...]


class Backend(Protocol):
    """One place for prototypes. Every method may be called from many threads at once."""

    @property
    def database(self) -> Database:
        """The database of names, versions and tags; its rows and the prototypes change together."""

    def add(
        self, name: str, prototype: Prototype, parent: Reference | None, tags: Iterable[str], metadata: str
    ) -> Version:
        """Keep a prototype as the next version of ``name``, completely or not at all."""

    def prototype(self, version_id: int, structure: Structure | None) -> Prototype:
        """Return the prototype of a version.

        Raises:
            RegistryError: the version was removed, cannot be read, or needs a structure.
        """

    def fingerprints(self, version_id: int) -> dict[str, str]:
        """Return the fingerprint of each tensor of a version by dotted name.

        Raises:
            RegistryError: this backend does not keep them.
        """

    def remove(self, select: Callable[[Connection], Sequence[int]]) -> Removal:
        """Remove the versions that ``select`` picks, in the transaction in which it picks them."""

    def close(self) -> None:
        """Close all files; the next call opens them again."""
