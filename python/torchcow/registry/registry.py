"""``Registry``: named prototypes with versions, tags and lineage."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcow.errors import RegistryError
from torchcow.registry import catalog
from torchcow.registry.database import Database
from torchcow.registry.library import Library
from torchcow.registry.proxy import Proxy
from torchcow.registry.prune import PruneReport, plan, prune
from torchcow.registry.shelf import Structure
from torchcow.registry.split import Split
from torchcow.registry.version import Promotion, Reference, Version, check_word, reference
from torchcow.report.diff import Diff, diff
from torchcow.snapshots.prototype import Prototype

if TYPE_CHECKING:
    from sqlite3 import Connection

DATABASE = "registry.sqlite"


class Registry:
    """Named prototypes with versions, tags and lineage, in memory or in a folder.

    A version is asked for as ``"name"`` (the latest), ``"name@3"`` or ``"name:production"`` (where that tag is). Tags
    belong to a name. Everything may be called from many threads, and in a folder from many processes: a promotion
    happens at one moment for all of them.

    In a folder, each version writes one safetensors file with the tensors that are not stored yet, and all else goes
    into an SQLite database, without pickle. A process that dies leaves the last good state. A version that was added in
    another process needs a structure, an object of the same build, when it is opened
    (see :mod:`torchcow.persist.state`). The folder has to be on a local file system.

    Args:
        path: a folder, made if there is none; ``None`` keeps everything in memory.
        structures: by name, a module (or other object) of the build of the versions, or a function that makes one.
        create: whether to make the folder if there is none.

    Raises:
        RegistryError: something else is there, or nothing and ``create`` is false.

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
        self._proxies: weakref.WeakSet[Proxy] = weakref.WeakSet()
        self._prototypes: dict[int, Prototype] = {}
        self._lock = threading.Lock()
        if self._path is None:
            self._database = Database(None)
            self._library = None
            return
        tensors = self._path / "tensors"
        database = self._path / DATABASE
        if not database.exists():
            if not create:
                raise RegistryError(f"{self._path}: there is no registry here ({DATABASE} is missing)")
            if any(tensors.glob("*.safetensors")):
                raise RegistryError(
                    f"{self._path}: files with tensors are here, but {DATABASE} is missing; restore it from a backup. "
                    "Nothing was changed"
                )
            self._path.mkdir(parents=True, exist_ok=True)
        self._database = Database(database)
        self._library = Library(self._database, tensors, structures)

    def __repr__(self) -> str:
        return f"Registry({'' if self._path is None else str(self._path)!r})"

    def close(self) -> None:
        """Close the files of a registry in a folder; the next call opens them again."""
        if self._path is not None:
            self._database.close()

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

        In a folder, what a given prototype does at each clone (``each``, ``rebuild``) is not written; its snapshot is.

        Args:
            name: of printable characters, without ``@`` and ``:``.
            obj: a :class:`Prototype`, or anything that one can be made of.
            parent: the version that ``obj`` was made from, for :meth:`lineage`.
            tags: tags that point to the new version from now on.
            metadata: plain data; added to those of a prototype.

        Raises:
            RegistryError: a bad name or tag, no such parent, or metadata that are no plain data.
            StateError: in a folder, something that cannot be written without pickle; nothing was added.
        """
        check_word(name, "name")
        tags = [check_word(tag, "tag") for tag in ([tags] if isinstance(tags, str) else tags)]
        prototype = obj if isinstance(obj, Prototype) else Prototype(obj, name=name, metadata=metadata)
        text = catalog.encode_metadata({**prototype.metadata, **(metadata or {})})
        above = None if parent is None else reference(parent)
        if self._library is not None:
            return self._library.add(name, prototype, above, tags, text)
        with self._database.write() as db:
            found = None if above is None else catalog.find(db, above)
            identity = catalog.insert(db, name, found, text, None, None)
            number = catalog.version(db, identity).number
            for tag in tags:
                catalog.point(db, name, tag, number)
            self._prototypes[identity] = prototype
            return catalog.version(db, identity)

    def get(self, version: str | Version, *, structure: Structure | None = None) -> Prototype:
        """Return the prototype of a version.

        In a folder its tensors are read and checked, unless it is in memory; tensors that another version in memory has
        as well share its memory. The prototype is kept in
        memory only as long as you hold it, but for the latest that was added in this process.

        Args:
            version: ``"name"``, ``"name@3"``, ``"name:tag"`` or a :class:`Version`.
            structure: see the class; only for a version that was not added in this process.

        Raises:
            RegistryError: no such version, no structure, or a file that is damaged or missing; the message names the
                version, the tensor and the file. Other versions are not affected.
            StateError: the structure does not fit; the message lists all differences.
        """
        return self._prototype(self._identity(reference(version)), structure)

    def _identity(self, wanted: Reference) -> int:
        with self._database.read() as db:
            return catalog.find(db, wanted)

    def _prototype(self, identity: int, structure: Structure | None = None) -> Prototype:
        if self._library is not None:
            return self._library.get(identity, structure)
        try:
            return self._prototypes[identity]
        except KeyError:
            raise RegistryError("the version was removed meanwhile") from None

    def version(self, version: str | Version) -> Version:
        """Return what is known about a version; nothing is read but the database."""
        with self._database.read() as db:
            return catalog.version(db, catalog.find(db, reference(version)))

    def names(self) -> list[str]:
        """Return all names."""
        with self._database.read() as db:
            return catalog.names(db)

    def versions(self, name: str | None = None) -> list[Version]:
        """Return the versions of a name, or all of them, oldest first."""
        with self._database.read() as db:
            if name is not None:
                catalog.find(db, Reference(name))
            return list(catalog.versions(db, name).values())

    def tags(self, name: str) -> dict[str, Version]:
        """Return where the tags of a name are."""
        with self._database.read() as db:
            catalog.find(db, Reference(name))
            found = catalog.tags(db, name)
            return {tag: catalog.version(db, catalog.find(db, Reference(name, found[tag]))) for tag in sorted(found)}

    def history(self, tag: str) -> list[Promotion]:
        """Return all that happened to a tag (``"production"`` or ``"name:production"``), oldest first."""
        with self._database.read() as db:
            return catalog.history(db, *self._tag(db, tag))

    def tag(self, version: str | Version, tag: str) -> Version:
        """Give a version a new tag.

        Raises:
            RegistryError: the tag is at another version already, which :meth:`promote` would move.
        """
        return self._point(version, tag, new=True)

    def promote(self, version: str | Version, tag: str) -> Version:
        """Move a tag to a version, or make it; the tag's history is kept for :meth:`rollback`."""
        return self._point(version, tag, new=False)

    def _point(self, version: str | Version, tag: str, new: bool) -> Version:
        check_word(tag, "tag")
        with self._database.write() as db:
            identity = catalog.find(db, reference(version))
            found = catalog.version(db, identity)
            at = catalog.tags(db, found.name).get(tag)
            if new and at not in (None, found.number):
                raise RegistryError(f"the tag '{found.name}:{tag}' is at {found.name}@{at}; promote() moves it")
            catalog.point(db, found.name, tag, found.number)
            return catalog.version(db, identity)

    def rollback(self, tag: str) -> Version:
        """Move a tag back to the version it was moved from, and return that one.

        Args:
            tag: ``"name:production"``, or ``"production"`` if one name only has this tag.

        Raises:
            RegistryError: no such tag, several names have it, or there is no earlier version; nothing was changed.
        """
        with self._database.write() as db:
            name, word = self._tag(db, tag)
            catalog.rollback(db, name, word)
            return catalog.version(db, catalog.find(db, Reference(name, tag=word)))

    def untag(self, tag: str) -> None:
        """Take a tag away (``"production"`` or ``"name:production"``); its version stays."""
        with self._database.write() as db:
            catalog.untag(db, *self._tag(db, tag))

    def _tag(self, db: Connection, text: str) -> tuple[str, str]:
        wanted = reference(text)
        if wanted.number is not None:
            raise RegistryError(f"expected 'tag' or 'name:tag', got {text!r}")
        if wanted.tag is None:
            return catalog.name_with(db, wanted.name), wanted.name
        catalog.find(db, Reference(wanted.name))
        return wanted.name, wanted.tag

    def lineage(self, version: str | Version) -> list[Version]:
        """Return a version, its parent, and so on to the root."""
        with self._database.read() as db:
            found = [catalog.version(db, catalog.find(db, reference(version)))]
            while (above := found[-1].parent) is not None:
                found.append(catalog.version(db, catalog.find(db, reference(above))))
            return found

    def diff(self, a: str | Version, b: str | Version) -> Diff:
        """Return :func:`torchcow.diff` of two versions."""
        return diff(self.get(a), self.get(b))

    def fingerprints(self, version: str | Version) -> dict[str, str]:
        """Return the fingerprints of a version's tensors by dotted name, from the database alone (in a folder).

        Raises:
            RegistryError: no such version, or a registry in memory.
        """
        if self._library is None:
            raise RegistryError(
                "a registry in memory keeps no fingerprints; use torchcow.persist.fingerprint.fingerprint"
            )
        return self._library.fingerprints(self._identity(reference(version)))

    def prune(
        self, keep: int = 0, *, name: str | None = None, squash: bool = False, dry_run: bool = False
    ) -> PruneReport:
        """Remove the versions that nothing needs, and give back their memory or disk space.

        A version stays while a tag is at it, or would be after one rollback; while it is the latest of its name, or
        among the ``keep`` latest; while a version that stays was made from it; or while a proxy serves it.

        Args:
            keep: how many of the latest versions of each name stay in any case.
            name: look at this name only.
            squash: also remove versions of which only children are left; the children become those of their parent.
            dry_run: remove nothing, and only report what would be removed.

        Returns:
            What was removed, how many bytes that gave back, and why each other version stayed.
        """
        return (plan if dry_run else prune)(self, keep, name, squash)

    def proxy(self, target: str) -> Proxy:
        """Return an object that is called like the model where a tag is, from the next call after each promotion on.

        Args:
            target: ``"production"`` (if one name only has this tag), ``"name:production"``, or a fixed ``"name@3"``.

        Raises:
            RegistryError: there is none, or several names have the tag.
        """
        with self._database.read() as db:
            wanted = reference(target)
            if wanted.number is None:
                wanted = (
                    Reference(wanted.name, tag=wanted.tag) if wanted.tag else Reference(*self._split_tag(db, target))
                )
            catalog.find(db, wanted)
        made = Proxy(self, wanted)
        self._proxies.add(made)
        return made

    def _split_tag(self, db: Connection, text: str) -> tuple[str, None, str]:
        name, tag = self._tag(db, text)
        return name, None, tag

    def split(self, weights: Mapping[str, float], *, seed: int | None = None) -> Split:
        """Return an object that is called like the model, and passes each call to one of several versions.

        Args:
            weights: by target, as for :meth:`proxy`: positive and finite; the sum does not matter.
            seed: of the choice, at random or by key.

        Raises:
            RegistryError: no such target, no target at all, or a weight that is not positive and finite.
        """
        return Split({target: self.proxy(target) for target in weights}, weights, seed)
