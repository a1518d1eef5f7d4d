# SPDX-License-Identifier: Apache-2.0
"""``Registry``: named prototypes with versions, tags and lineage."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcow.errors import RegistryError
from torchcow.registry import queries
from torchcow.registry.backend import Backend, Structure
from torchcow.registry.folder_backend import FolderBackend
from torchcow.registry.fork import Lock
from torchcow.registry.memory_backend import MemoryBackend
from torchcow.registry.proxy import Proxy
from torchcow.registry.prune import PruneReport, Rules, plan, prune
from torchcow.registry.split import Split
from torchcow.registry.version import Promotion, Reference, Version, check_word
from torchcow.report.diff import Diff, diff
from torchcow.snapshots.prototype import Prototype

if TYPE_CHECKING:
    from sqlite3 import Connection


class Registry:
    """Named prototypes with versions, tags and lineage, in memory or in a folder.

    A version is selected by ``"name"`` (the latest), ``"name@3"`` or ``"name:production"`` (the version that this tag
    points to). Tags belong to a name. Every method may be called from many threads, and for a folder from many
    processes. A promotion happens at one moment for all of them.

    In a folder, each version writes one safetensors file with the tensors that are not stored yet. Everything else goes
    into an SQLite database, without pickle. A process that dies leaves the last good state. To load a version that
    another process added, the registry needs a structure, an object of the same build
    (see :mod:`torchcow.persist.state`). The folder has to be on a local file system.

    Args:
        path: a folder, which is made if it does not exist; ``None`` keeps everything in memory.
        structures: by name, a module (or other object) of the build of the versions, or a function that makes one.
        create: whether to make a folder that does not exist.

    Raises:
        RegistryError: the path is not a registry, or there is none and ``create`` is false.

    Example:
        >>> import torch, torchcow
        >>> registry = torchcow.Registry()
        >>> print(registry.add("linear", torch.nn.Linear(64, 64), tags=["production"]))
        linear@1
        >>> better = registry.get("linear:production").clone()
        >>> with torch.no_grad():
        ...     _ = better.bias.zero_()
        >>> registry.promote(registry.add("linear", better, parent="linear@1"), "production").number
        2
        >>> registry.rollback("production").number
        1
        >>> [str(version) for version in registry.lineage("linear")]
        ['linear@2', 'linear@1']
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        structures: Mapping[str, Structure] | None = None,
        create: bool = True,
    ):
        self._path = None if path is None else Path(path)
        #: Where the prototypes are. The command line describes stored versions by way of it.
        self.backend: Backend = MemoryBackend() if self._path is None else FolderBackend(self._path, structures, create)
        self._database = self.backend.database
        self._lock = Lock()
        self._targets: weakref.WeakKeyDictionary[Proxy, Reference] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Registry({'' if self._path is None else str(self._path)!r})"

    def close(self) -> None:
        """Close the files of a registry in a folder. The next call opens them again."""
        self.backend.close()

    def add(
        self,
        name: str,
        obj: Any,
        *,
        parent: str | Version | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Version:
        """Add a version: a snapshot of ``obj`` with the next number of ``name``.

        Of a prototype, a folder gets the snapshot. What the prototype does at each clone (``each``, ``rebuild``) is not
        written.

        Args:
            name: printable characters, without ``@`` and ``:``.
            obj: a :class:`Prototype`, or any object that one can be made of.
            parent: the version that ``obj`` was made from, for :meth:`lineage`.
            tags: tags that point to the new version from now on.
            metadata: plain data; added to the metadata of a prototype.

        Raises:
            RegistryError: the name or a tag is not allowed, the parent does not exist, or the metadata are not plain
                data.
            StateError: a folder cannot hold a part of ``obj`` without pickle; nothing was added.
        """
        check_word(name, "name")
        tags = [check_word(tag, "tag") for tag in ([tags] if isinstance(tags, str) else tags)]
        prototype = obj if isinstance(obj, Prototype) else Prototype(obj, name=name, metadata=metadata)
        text = queries.encode_metadata({**prototype.metadata, **(metadata or {})})
        return self.backend.add(name, prototype, None if parent is None else Reference.of(parent), tags, text)

    def get(self, version: str | Version, *, structure: Structure | None = None) -> Prototype:
        """Return the prototype of a version.

        A folder reads and checks the tensors of a version that is not in memory. Tensors that another version in memory
        has as well share its memory. The prototype stays in memory while you refer to it; the latest that was added in
        this process always stays.

        Args:
            version: ``"name"``, ``"name@3"``, ``"name:tag"`` or a :class:`Version`.
            structure: an object of the same build, or a function that makes one; only for a version that was not added
                in this process.

        Raises:
            RegistryError: there is no such version or no structure, or a file is damaged or missing; the message names
                the version, the tensor and the file. Other versions are not affected.
            StateError: the structure does not fit; the message lists all differences.
        """
        return self.backend.prototype(self._find(Reference.of(version)), structure)

    def _find(self, reference: Reference) -> int:
        with self._database.read() as db:
            return queries.find(db, reference)

    def version(self, version: str | Version) -> Version:
        """Return the facts about a version. Only the database is read."""
        with self._database.read() as db:
            return queries.version(db, queries.find(db, Reference.of(version)))

    def names(self) -> list[str]:
        """Return all names."""
        with self._database.read() as db:
            return queries.names(db)

    def versions(self, name: str | None = None) -> list[Version]:
        """Return the versions of a name, or all of them, oldest first."""
        with self._database.read() as db:
            if name is not None:
                queries.find(db, Reference(name))
            return list(queries.versions(db, name).values())

    def tags(self, name: str) -> dict[str, Version]:
        """Return the version that each tag of a name points to."""
        with self._database.read() as db:
            queries.find(db, Reference(name))
            numbers = queries.tags(db, name)
            ids = {tag: queries.find(db, Reference(name, numbers[tag])) for tag in sorted(numbers)}
            return {tag: queries.version(db, version_id) for tag, version_id in ids.items()}

    def history(self, tag: str) -> list[Promotion]:
        """Return every move of a tag (``"production"`` or ``"name:production"``), oldest first."""
        with self._database.read() as db:
            return queries.history(db, *_resolve_tag(db, tag))

    def tag(self, version: str | Version, tag: str) -> Version:
        """Give a version a new tag.

        Raises:
            RegistryError: the tag points to another version already; :meth:`promote` moves it.
        """
        return self._point(version, tag, new=True)

    def promote(self, version: str | Version, tag: str) -> Version:
        """Move a tag to a version, or make the tag. The tag's history is kept for :meth:`rollback`."""
        return self._point(version, tag, new=False)

    def _point(self, version: str | Version, tag: str, new: bool) -> Version:
        check_word(tag, "tag")
        with self._database.write() as db:
            version_id = queries.find(db, Reference.of(version))
            target = queries.version(db, version_id, tagged=False)
            number = queries.current(db, target.name, tag)
            if new and number not in (None, target.number):
                raise RegistryError(f"the tag '{target.name}:{tag}' is at {target.name}@{number}; promote() moves it")
            queries.point(db, target.name, tag, target.number)
            return queries.version(db, version_id)

    def rollback(self, tag: str) -> Version:
        """Move a tag back to the version that it pointed to before, and return that version.

        Args:
            tag: ``"name:production"``, or ``"production"`` if only one name has this tag.

        Raises:
            RegistryError: there is no such tag, several names have it, or there is no earlier version; nothing was
                changed.
        """
        with self._database.write() as db:
            name, word = _resolve_tag(db, tag)
            queries.rollback(db, name, word)
            return queries.version(db, queries.find(db, Reference(name, tag=word)))

    def untag(self, tag: str) -> None:
        """Remove a tag (``"production"`` or ``"name:production"``). Its version stays."""
        with self._database.write() as db:
            queries.untag(db, *_resolve_tag(db, tag))

    def lineage(self, version: str | Version) -> list[Version]:
        """Return a version, its parent, and so on to the root."""
        with self._database.read() as db:
            versions = [queries.version(db, queries.find(db, Reference.of(version)))]
            while (parent := versions[-1].parent) is not None:
                versions.append(queries.version(db, queries.find(db, Reference.of(parent))))
            return versions

    def diff(self, a: str | Version, b: str | Version) -> Diff:
        """Return :func:`torchcow.diff` of two versions."""
        return diff(self.get(a), self.get(b))

    def fingerprints(self, version: str | Version) -> dict[str, str]:
        """Return the fingerprints of a version's tensors by dotted name. Only the database of the folder is read.

        Raises:
            RegistryError: there is no such version, or the registry is in memory.
        """
        return self.backend.fingerprints(self._find(Reference.of(version)))

    def prune(
        self, keep: int = 0, *, name: str | None = None, squash: bool = False, dry_run: bool = False
    ) -> PruneReport:
        """Remove the versions that nothing needs, and give back their memory or disk space.

        A version stays if a tag points to it or would after one rollback, if it is the latest of its name or among the
        ``keep`` latest, if a version that stays was made from it, or if a proxy serves it.

        Args:
            keep: how many of the latest versions of each name stay in any case.
            name: remove versions of this name only.
            squash: also remove versions that only stay for their children; the children become children of the parent.
            dry_run: remove nothing, and only report what would be removed.

        Returns:
            What was removed, how many bytes that gave back, and why each other version stayed.
        """
        with self._lock.held():
            served = list(self._targets.values())
        return (plan if dry_run else prune)(self.backend, Rules(keep, name, squash, served))

    def proxy(self, target: str) -> Proxy:
        """Return an object that is called like the model that a tag points to; each call follows the latest promotion.

        Args:
            target: ``"production"`` (if only one name has this tag), ``"name:production"``, or a fixed ``"name@3"``.

        Raises:
            RegistryError: there is no such target, or several names have the tag.
        """
        with self._database.read() as db:
            reference = Reference.of(target)
            if reference.number is None and reference.tag is None:
                name, tag = _resolve_tag(db, target)
                reference = Reference(name, tag=tag)
            queries.find(db, reference)
        proxy = Proxy(reference, self._find, lambda version_id: self.backend.prototype(version_id, None))
        with self._lock.held():
            self._targets[proxy] = reference
        return proxy

    def split(self, weights: Mapping[str, float], *, seed: int | None = None) -> Split:
        """Return an object that is called like the model, and passes each call to one of several versions.

        Args:
            weights: by target (as for :meth:`proxy`), positive and finite; their sum does not matter.
            seed: makes the choice repeatable, and another choice for another seed.

        Raises:
            RegistryError: a target does not exist, there is no target, or a weight is not positive and finite.
        """
        return Split({target: self.proxy(target) for target in weights}, weights, seed)


def _resolve_tag(db: Connection, text: str) -> tuple[str, str]:
    """Return the name and the tag of ``"tag"`` or ``"name:tag"``."""
    reference = Reference.of(text)
    if reference.number is not None:
        raise RegistryError(f"expected 'tag' or 'name:tag', got {text!r}")
    if reference.tag is None:
        return queries.name_with(db, reference.name), reference.name
    queries.find(db, Reference(reference.name))
    return reference.name, reference.tag
