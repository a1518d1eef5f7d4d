# SPDX-License-Identifier: Apache-2.0
"""``Files``: the tensors and manifests of a registry in a folder.

A manifest has one line for each node of a version, and says in which file the tensor of that node is. Each version
writes one file with the tensors whose fingerprints are not stored yet. The order makes a crash harmless at any point:
the file is written, synchronized and renamed while its writer holds the write lock of the database, and only then the
transaction commits. A file that the database does not name was therefore left by a writer that died, or is about to be
removed after a commit. Code that holds the write lock may remove it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torchcow.errors import FileError, RegistryError
from torchcow.persist.state import State
from torchcow.persist.state.capture import Node
from torchcow.persist.tensor_file import TensorFile, sync_folder, write

if TYPE_CHECKING:
    from sqlite3 import Connection

_OURS = re.compile(r"[0-9a-f]{32}\.safetensors|\.[0-9a-f]{32}\.tmp")
KIND = "registry"

#: The manifest of a version: its own entries over those of its base, and so on. Nearest last.
_MANIFEST = """
    WITH RECURSIVE chain(id, base, depth) AS (
        SELECT id, base, 0 FROM version WHERE id = ?
        UNION ALL SELECT v.id, v.base, depth + 1 FROM version AS v JOIN chain ON v.id = chain.base AND v.id < chain.id)
    SELECT e.path, e.node, e.fingerprint, f.path, t.key FROM chain JOIN entry AS e ON e.version = chain.id
    LEFT JOIN tensor AS t ON t.fingerprint = e.fingerprint LEFT JOIN file AS f ON f.id = t.file
    ORDER BY depth DESC
"""


@dataclass(frozen=True)
class ManifestLine:
    """A node as text. If the node has a tensor: its fingerprint, its file, and its key in that file."""

    node: str
    fingerprint: str | None
    file: str | None
    key: str | None


#: By dotted name.
Manifest = dict[str, ManifestLine]


class Files:
    """The files of a registry. A method with a connection runs within a transaction that its caller began."""

    def __init__(self, folder: Path):
        self.folder = folder

    def manifest(self, db: Connection, version_id: int, title: str) -> Manifest:
        """Return the manifest of a version.

        Raises:
            RegistryError: the version was removed, or its manifest is not the one that was written.
        """
        row = db.execute("SELECT digest FROM version WHERE id = ?", (version_id,)).fetchone()
        if row is None:
            raise RegistryError(f"{title} was removed meanwhile")
        manifest: Manifest = {}
        for path, node, fingerprint, file, key in db.execute(_MANIFEST, (version_id,)):
            if node is None:
                manifest.pop(path, None)
            else:
                manifest[path] = ManifestLine(node, fingerprint, file, key)
        if digest({path: _row(line) for path, line in manifest.items()}) != row[0]:
            raise RegistryError(f"{title}: what the database says about it is not what was written; it is damaged")
        return manifest

    def add(
        self, db: Connection, version_id: int, base: Manifest, state: State, fingerprints: Mapping[str, str]
    ) -> None:
        """Write the tensors that are not stored yet, and the lines in which the manifest differs from its base."""
        new: dict[str, str] = {}
        seen: set[str] = set()
        for name, fingerprint in fingerprints.items():
            if fingerprint not in seen and not self._is_stored(db, fingerprint):
                new[name] = fingerprint
            seen.add(fingerprint)
        if new:
            self._write(db, {name: state.tensors[name] for name in new}, new)
        rows = manifest_rows(state, fingerprints)
        changed: list[tuple[int, str, str | None, str | None]] = [
            (version_id, path, *row) for path, row in rows.items() if path not in base or _row(base[path]) != row
        ]
        changed += [(version_id, path, None, None) for path in base if path not in rows]
        db.executemany("INSERT INTO entry (version, path, node, fingerprint) VALUES (?, ?, ?, ?)", changed)

    def _is_stored(self, db: Connection, fingerprint: str) -> bool:
        return db.execute("SELECT 1 FROM tensor WHERE fingerprint = ?", (fingerprint,)).fetchone() is not None

    def _write(self, db: Connection, tensors: Mapping[str, torch.Tensor], fingerprints: Mapping[str, str]) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(exist_ok=True)
            sync_folder(self.folder.parent)
        name = f"{uuid.uuid4().hex}.safetensors"
        size = write(self.folder / name, KIND, tensors, fingerprints, {})
        file = db.execute("INSERT INTO file (path, bytes) VALUES (?, ?)", (name, size)).lastrowid
        db.executemany(
            "INSERT INTO tensor (fingerprint, file, key) VALUES (?, ?, ?) "
            "ON CONFLICT (fingerprint) DO UPDATE SET file = excluded.file, key = excluded.key",
            [(fingerprints[key], file, key) for key in tensors],
        )

    def remove_leftovers(self, db: Connection) -> int:
        """Remove the files of writers that died; return their bytes."""
        if not self.folder.is_dir():
            return 0
        stored = {path for (path,) in db.execute("SELECT path FROM file")}
        return sum(self.remove(path.name) for path in self.folder.iterdir() if path.name not in stored)

    def bytes(self, db: Connection) -> int:
        """Return the bytes of all files that the database names."""
        (total,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM file").fetchone()
        return int(total)

    def remove(self, name: str) -> int:
        """Remove a file with a name that this class gives; return its bytes."""
        path = self.folder / name
        size = 0
        if _OURS.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
        return size

    def compact(self, db: Connection) -> tuple[list[str], list[str]]:
        """Forget the tensors that no version needs, and rewrite the files that had some of them.

        Returns:
            The files to remove after the transaction, and complaints about files that could not be rewritten.
        """
        needed = "SELECT fingerprint FROM entry WHERE fingerprint IS NOT NULL"
        touched = db.execute(
            f"SELECT DISTINCT f.id, f.path FROM tensor AS t JOIN file AS f ON f.id = t.file "
            f"WHERE t.fingerprint NOT IN ({needed})"
        ).fetchall()
        db.execute(f"DELETE FROM tensor WHERE fingerprint NOT IN ({needed})")
        obsolete, complaints = [], []
        for file, path in touched:
            rows = db.execute("SELECT key, fingerprint FROM tensor WHERE file = ?", (file,)).fetchall()
            if rows:
                try:
                    with TensorFile(self.folder / path, KIND) as old:
                        tensors = {key: old.read(key) for key, _ in rows}
                    self._write(db, tensors, dict(rows))
                except (FileError, OSError, KeyError) as error:
                    complaints.append(f"{path} was left as it is: {error}")
                    continue
            db.execute("DELETE FROM file WHERE id = ?", (file,))
            obsolete.append(path)
        return obsolete, complaints

    def sync(self) -> None:
        """Make removals durable."""
        if self.folder.is_dir():
            sync_folder(self.folder)


class OpenFiles(contextlib.ExitStack):
    """The files of one version, open for reading. Each is opened at most once."""

    def __init__(self, folder: Path, title: str):
        super().__init__()
        self._folder = folder
        self._title = title
        self._files: dict[str, TensorFile] = {}

    def read(self, path: str, line: ManifestLine) -> torch.Tensor:
        """Return a tensor, checked.

        Raises:
            FileNotFoundError: the file was removed. The database may name another one by now.
            RegistryError: the file, or the tensor in it, is damaged.
        """
        if line.file is None or line.key is None:
            raise RegistryError(
                f"{self._title}: the database does not say where tensor {path!r} is; it is damaged. Restore it from a "
                "backup"
            )
        try:
            if line.file not in self._files:
                self._files[line.file] = self.enter_context(TensorFile(self._folder / line.file, KIND))
            file = self._files[line.file]
            if line.key not in file.entries or file.entries[line.key].fingerprint != line.fingerprint:
                raise FileError(f"{file.path}: tensor {line.key!r} in it is not the one that was written")
            return file.read(line.key)
        except FileError as error:
            raise RegistryError(
                f"{self._title}: tensor {path!r} cannot be read: {error}. Versions without this tensor are not "
                "affected; restore the file from a backup"
            ) from error


def manifest_rows(state: State, fingerprints: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Return the manifest of a state as rows of the database: by path, the node as text and the fingerprint."""
    return {path: (_text(node), fingerprints.get(path)) for path, node in state.nodes.items()}


def digest(rows: Mapping[str, tuple[str, str | None]]) -> str:
    """Return the digest of a manifest."""
    return hashlib.sha256(json.dumps(sorted(rows.items())).encode()).hexdigest()


def _text(node: Node) -> str:
    return json.dumps(node, separators=(",", ":"), allow_nan=False)


def _row(line: ManifestLine) -> tuple[str, str | None]:
    return line.node, line.fingerprint
