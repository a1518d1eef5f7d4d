# SPDX-License-Identifier: Apache-2.0
"""``FolderBackend``: the versions of a registry in a folder: a database, files of tensors, and a cache in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torchcow.errors import RegistryError, StateError
from torchcow.objects.tensors import unwrap
from torchcow.persist.state import capture, restore
from torchcow.persist.state.plain import decode
from torchcow.persist.state.upgrade import upgraded
from torchcow.registry import queries
from torchcow.registry.backend import Removal, Structure
from torchcow.registry.cache import Cache, fingerprints
from torchcow.registry.database import Database
from torchcow.registry.files import Files, Manifest, OpenFiles, digest, manifest_rows
from torchcow.registry.fork import Lock
from torchcow.registry.stored_version import StoredVersion
from torchcow.registry.version import Reference, Version
from torchcow.snapshots.prototype import Prototype

if TYPE_CHECKING:
    from sqlite3 import Connection

DATABASE = "registry.sqlite"


class FolderBackend:
    """Writes each version once, reads it when it is asked for, and keeps in memory only what the program refers to.

    Raises:
        RegistryError: the folder is not a registry, or there is none and ``create`` is false.
    """

    def __init__(self, path: Path, structures: Mapping[str, Structure] | None, create: bool):
        tensors, database = path / "tensors", path / DATABASE

        def lost_database() -> RegistryError | None:
            if not any(tensors.glob("*.safetensors")):
                return None
            return RegistryError(
                f"{path}: files with tensors are here, but {DATABASE} is missing or empty; restore it from a backup. "
                "Nothing was changed"
            )

        if not database.exists():
            if not create:
                raise RegistryError(f"{path}: there is no registry here ({DATABASE} is missing)")
            if (error := lost_database()) is not None:
                raise error
            path.mkdir(parents=True, exist_ok=True)
        self.database = Database(database, lost_database)
        self.files = Files(tensors)
        self.cache = Cache(structures)
        self._loading = Lock()

    def close(self) -> None:
        """Close the database; the next call opens it again."""
        self.database.close()

    def add(
        self, name: str, prototype: Prototype, parent: Reference | None, tags: Iterable[str], metadata: str
    ) -> Version:
        """Write a version: first its file, then the rows that make it visible, in one transaction."""
        # The snapshot of a prototype is written. What the prototype does at each clone is code, and is not.
        prototype = Prototype(unwrap(prototype), name=name, metadata=decode(json.loads(metadata)))
        state = capture(unwrap(prototype))
        with self.database.read() as db:
            if parent is not None:  # "the latest" means the latest of now
                parent_version = queries.version(db, queries.find(db, parent))
                parent = Reference(parent_version.name, parent_version.number)
            base_id = _base_id(db, name, parent)
            base_manifest = {} if base_id is None else self.files.manifest(db, base_id, name)
        # No transaction is open while all tensors are read, so other processes can write meanwhile.
        base = None if base_id is None else self.cache.get(base_id)
        state_fingerprints = fingerprints(state, base, _fingerprints(base_manifest))
        version_id = None
        try:
            with self.database.write() as db:
                self.database.upgrade(db)
                self.files.remove_leftovers(db)
                parent_id = None if parent is None else queries.find(db, parent)
                base_id = _base_id(db, name, parent)
                base_manifest = {} if base_id is None else self.files.manifest(db, base_id, f"the base of {name}")
                rows_digest = digest(manifest_rows(state, state_fingerprints))
                version_id = queries.insert(db, name, parent_id, metadata, base_id, rows_digest)
                self.files.add(db, version_id, base_manifest, state, state_fingerprints)
                queries.point_all(db, version_id, tags)
                # Before the commit: from then on other threads ask for it.
                self.cache.put(version_id, prototype, state, state_fingerprints)
                self.cache.keep(version_id, name, prototype, state)
                return queries.version(db, version_id)
        except BaseException:
            if version_id is not None:
                self.cache.forget(version_id)
            raise

    def prototype(self, version_id: int, structure: Structure | None) -> Prototype:
        """Return a version that is in memory, or read it."""
        with self._loading.held():
            cached = self.cache.get(version_id) if structure is None else None
            return self._load(version_id, structure) if cached is None else cached

    def _load(self, version_id: int, structure: Structure | None) -> Prototype:
        missing_file: str | None = None
        while True:
            stored = self.stored_version(version_id)
            try:
                return self._read(version_id, stored, structure)
            except FileNotFoundError as error:
                # A prune may have rewritten the file since the look-up. If the database names it again, it is lost.
                if not self._is_tensor_file(error.filename):
                    raise
                if missing_file == error.filename:
                    raise stored.missing_file(missing_file) from error
                missing_file = error.filename
            except RegistryError as error:
                with self.database.read() as db:
                    if db.execute("SELECT 1 FROM version WHERE id = ?", (version_id,)).fetchone() is None:
                        raise RegistryError(f"{stored.version} was removed meanwhile") from error
                raise

    def _is_tensor_file(self, path: str | None) -> bool:
        return path is not None and Path(path).parent == self.files.folder

    def _read(self, version_id: int, stored: StoredVersion, structure: Structure | None) -> Prototype:
        version, manifest = stored.version, stored.manifest
        title = str(version)
        target = self.cache.structure(version_id, version.name, title, structure)
        nodes = {path: upgraded(json.loads(line.node)) for path, line in manifest.items()}
        version_fingerprints = _fingerprints(manifest)
        with OpenFiles(self.files.folder, title) as files:

            def read(path: str) -> torch.Tensor:
                shared = self.cache.share(version_fingerprints[path])
                return files.read(path, manifest[path]) if shared is None else shared

            try:
                restored = restore(target, nodes, read)
            except RegistryError:
                raise
            except StateError as error:
                raise StateError(f"{title}: {error}") from error
        prototype = Prototype(restored, name=version.name, metadata=version.metadata)
        self.cache.put(version_id, prototype, capture(unwrap(prototype)), version_fingerprints)
        return prototype

    def stored_version(self, version_id: int) -> StoredVersion:
        """Return what the database says about a version; no file is opened."""
        with self.database.read() as db:
            manifest = self.files.manifest(db, version_id, "the version")
            return StoredVersion(queries.version(db, version_id), manifest, self.files.folder)

    def fingerprints(self, version_id: int) -> dict[str, str]:
        """Return the fingerprints that the database has."""
        return _fingerprints(self.stored_version(version_id).manifest)

    def remove(self, select: Callable[[Connection], Sequence[int]]) -> Removal:
        """Remove versions and the tensors that only they have; files go after the commit."""
        with self.database.write() as db:
            version_ids = select(db)
            freed = self.files.remove_leftovers(db) + self.files.bytes(db)
            for version_id in reversed(version_ids):
                queries.drop(db, version_id)
            obsolete_files, complaints = self.files.compact(db)
            freed -= self.files.bytes(db)
        references = {version_id: self.cache.forget(version_id) for version_id in version_ids}
        for path in obsolete_files:
            self.files.remove(path)
        self.files.sync()
        referenced = tuple(
            version_id
            for version_id, reference in references.items()
            if reference is not None and reference() is not None
        )
        return Removal(freed, referenced, tuple(complaints))


def _base_id(db: Connection, name: str, parent: Reference | None) -> int | None:
    """The version to whose manifest that of a new version is written as a difference."""
    if parent is not None:
        return queries.find(db, parent)
    return queries.find(db, Reference(name)) if name in queries.names(db) else None


def _fingerprints(manifest: Manifest) -> dict[str, str]:
    return {path: line.fingerprint for path, line in manifest.items() if line.fingerprint is not None}
