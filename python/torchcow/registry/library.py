"""``Library``: a durable registry's versions, put away and taken out again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from torchcow.errors import RegistryError, StateError
from torchcow.persist.state import capture, restore
from torchcow.persist.state.plain import decode
from torchcow.registry import catalog
from torchcow.registry.database import Database
from torchcow.registry.shelf import Shelf, Structure, fingerprints
from torchcow.registry.store import Manifest, OpenFiles, Store, as_lines, digest
from torchcow.registry.version import Reference, Version
from torchcow.snapshots.prototype import Prototype


class Library:
    """What a registry in a folder does beyond the catalogue: it knows files and what is in memory."""

    def __init__(self, database: Database, tensors: Path, structures: Mapping[str, Structure] | None):
        self.database = database
        self.store = Store(tensors)
        self.shelf = Shelf(structures)
        self._loading = threading.RLock()

    def add(
        self, name: str, prototype: Prototype, parent: Reference | None, tags: Iterable[str], metadata: str
    ) -> Version:
        """Write a version, and only then say that it is there."""
        # Of a prototype that was given, the snapshot is written; what it does at each clone is code, and is not.
        prototype = Prototype(prototype._snapshot, name=name, metadata=decode(json.loads(metadata)))
        state = capture(prototype._snapshot)
        with self.database.read() as db:
            if parent is not None:  # the latest is the latest of now
                known_as = catalog.version(db, catalog.find(db, parent))
                parent = Reference(known_as.name, known_as.number)
            near = self._base(db, name, parent)
            known = {} if near is None else _prints(self.store.manifest(db, near, name))
        # Reading all tensors takes a while; others may write meanwhile.
        prints = fingerprints(state, None if near is None else self.shelf.get(near), known)
        identity = None
        try:
            with self.database.write() as db:
                self.store.remove_leftovers(db)
                above = None if parent is None else catalog.find(db, parent)
                base = self._base(db, name, parent)
                old: Manifest = {} if base is None else self.store.manifest(db, base, f"the base of {name}")
                identity = catalog.insert(db, name, above, metadata, base, digest(as_lines(state, prints)))
                self.store.add(db, identity, old, state, prints)
                number = catalog.version(db, identity).number
                for tag in tags:
                    catalog.point(db, name, tag, number)
                # Before the commit: from then on other threads ask for it.
                self.shelf.put(identity, prototype, prints)
                self.shelf.keep(identity, name, prototype, state)
                return catalog.version(db, identity)
        except BaseException:
            if identity is not None:
                self.shelf.forget(identity)
            raise

    def _base(self, db: Any, name: str, parent: Reference | None) -> int | None:
        """The version whose manifest a new one is written as a difference to."""
        if parent is not None:
            return catalog.find(db, parent)
        return catalog.find(db, Reference(name)) if name in catalog.names(db) else None

    def get(self, identity: int, structure: Structure | None) -> Prototype:
        """Return a version that is in memory, or read it."""
        with self._loading:
            found = self.shelf.get(identity) if structure is None else None
            return self._load(identity, structure) if found is None else found

    def _load(self, identity: int, structure: Structure | None) -> Prototype:
        gone: str | None = None
        while True:
            version, manifest = self._look_up(identity)
            try:
                return self._read(identity, version, manifest, structure)
            except FileNotFoundError as error:
                # A prune may have written the file anew since we asked; if the database still says so, it is lost.
                if not self._is_ours(error.filename):
                    raise
                if gone == error.filename:
                    raise RegistryError(
                        f"{version}: the file {gone} is missing, with tensors of this version; restore it from a backup"
                    ) from error
                gone = error.filename
            except RegistryError as error:
                with self.database.read() as db:
                    if db.execute("SELECT 1 FROM version WHERE id = ?", (identity,)).fetchone() is None:
                        raise RegistryError(f"{version} was removed meanwhile") from error
                raise

    def _is_ours(self, path: str | None) -> bool:
        return path is not None and Path(path).parent == self.store.folder

    def _look_up(self, identity: int) -> tuple[Version, Manifest]:
        with self.database.read() as db:
            manifest = self.store.manifest(db, identity, "the version")
            return catalog.version(db, identity), manifest

    def _read(self, identity: int, version: Version, manifest: Manifest, structure: Structure | None) -> Prototype:
        title = str(version)
        around = self.shelf.structure(identity, version.name, title, structure)
        nodes = {path: json.loads(line.node) for path, line in manifest.items()}
        prints = _prints(manifest)
        with OpenFiles(self.store.folder, title) as files:

            def read(path: str) -> torch.Tensor:
                shared = self.shelf.shared(prints[path])
                return files.read(path, manifest[path]) if shared is None else shared

            try:
                made = restore(around, nodes, read)
            except RegistryError:
                raise
            except StateError as error:
                raise StateError(f"{title}: {error}") from error
        prototype = Prototype(made, name=version.name, metadata=version.metadata)
        self.shelf.put(identity, prototype, prints)
        return prototype

    def fingerprints(self, identity: int) -> dict[str, str]:
        """Return the fingerprints of a version's tensors by dotted name."""
        return _prints(self._look_up(identity)[1])


def _prints(manifest: Manifest) -> dict[str, str]:
    return {path: line.fingerprint for path, line in manifest.items() if line.fingerprint is not None}
