"""The SQLite database of a registry: one schema, in memory or in a file that several processes share."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcow.errors import RegistryError

if TYPE_CHECKING:
    import sqlite3

APPLICATION = 0x74636F77  # "tcow"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE version (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    parent INTEGER REFERENCES version(id),  -- what it was made from
    base INTEGER REFERENCES version(id),    -- whose manifest its entries are the difference to
    created REAL NOT NULL,
    metadata TEXT NOT NULL,
    digest TEXT,                            -- of the whole manifest
    seal TEXT NOT NULL,                     -- digest of this row but for base
    UNIQUE (name, number)
);
CREATE INDEX version_parent ON version(parent);
CREATE INDEX version_base ON version(base);
CREATE TABLE promotion (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    tag TEXT NOT NULL,
    number INTEGER NOT NULL,
    at REAL NOT NULL,
    undone REAL,                            -- when it was rolled back; a tag is its last line that was not
    seal TEXT NOT NULL                      -- digest of this row
);
CREATE INDEX promotion_tag ON promotion(name, tag, seq);
CREATE TABLE file (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path TEXT NOT NULL UNIQUE,
    bytes INTEGER NOT NULL
);
CREATE TABLE tensor (
    fingerprint TEXT PRIMARY KEY,
    file INTEGER NOT NULL REFERENCES file(id),
    key TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX tensor_file ON tensor(file);
CREATE TABLE entry (
    version INTEGER NOT NULL REFERENCES version(id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    node TEXT,                              -- NULL: the base has it, and this version has not
    fingerprint TEXT REFERENCES tensor(fingerprint),
    PRIMARY KEY (version, path)
) WITHOUT ROWID;
CREATE INDEX entry_fingerprint ON entry(fingerprint);
"""

#: How long one process waits for another that writes, in seconds. A writer writes at most one model in that time.
PATIENCE = 600.0

# Connections of a parent process: closing them in a child of fork would end the parent's locks.
_left_behind: list[Any] = []


class Database:
    """Transactions on one database, from any thread, and after a fork."""

    def __init__(self, path: Path | None):
        self.path = path
        self._begin()
        try:
            with self._explained():
                self._prepare(self._connection("write"))
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        self._process = os.getpid()
        self._connections: dict[str, sqlite3.Connection] = {}
        one = threading.RLock()
        self._locks = {"write": one, "read": one if self.path is None else threading.RLock()}

    def close(self) -> None:
        """Close the connections; a later transaction opens them again."""
        if os.getpid() == self._process:
            with self._locks["write"], self._locks["read"]:
                for connection in self._connections.values():
                    connection.close()
                self._connections.clear()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the database, whatever others write meanwhile."""
        yield from self._transaction("read", "BEGIN")

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is alone among writers of all processes; it happens as a whole or not at all."""
        yield from self._transaction("write", "BEGIN IMMEDIATE")

    def _transaction(self, purpose: str, begin: str) -> Iterator[sqlite3.Connection]:
        if os.getpid() != self._process:
            if self.path is not None:
                _left_behind.append(self._connections)
                self._begin()
            else:
                connections = self._connections
                self._begin()
                self._connections = connections
        with self._locks[purpose], self._explained():
            connection = self._connection(purpose)
            try:
                _patiently(connection, begin)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _connection(self, purpose: str) -> sqlite3.Connection:
        key = "write" if self.path is None else purpose
        if key not in self._connections:
            import sqlite3

            where = ":memory:" if self.path is None else str(self.path)
            connection = sqlite3.connect(where, timeout=1.0, isolation_level=None, check_same_thread=False)
            self._connections[key] = connection
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
        return self._connections[key]

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._is_ours(connection):
            return
        _patiently(connection, "PRAGMA journal_mode = WAL")
        try:
            _patiently(connection, "BEGIN IMMEDIATE")
            if not self._is_ours(connection):  # another process may have been faster
                for statement in SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _is_ours(self, connection: sqlite3.Connection) -> bool:
        """Whether the schema is there; a database of somebody else is refused."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == APPLICATION:
            if version != SCHEMA_VERSION:
                raise RegistryError(
                    f"{self.path}: a registry of schema {version}; this torchcow knows schema {SCHEMA_VERSION}"
                )
            return True
        if application or tables:
            raise RegistryError(f"{self.path}: an SQLite database, but not one of torchcow; it was left as it is")
        return False

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if "locked" in str(error) or "busy" in str(error):
                text = f"another process has kept the registry locked for {PATIENCE:.0f} seconds"
            else:
                text = "the database of the registry cannot be used; nothing was changed"
            raise RegistryError(f"{self.path}: {text} ({error})") from error


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
    """Execute a statement that may have to wait for other processes, in turns that an interrupt can end."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute(statement)
            return
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
