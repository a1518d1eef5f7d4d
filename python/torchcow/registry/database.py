# SPDX-License-Identifier: Apache-2.0
"""The SQLite database of a registry: one schema, in memory or in a file that several processes share.

Threads: one thread at a time reads, and one writes. Processes: SQLite's own file locks, in WAL mode. Before a fork, the
database waits until no transaction runs and closes its connections, so that no process inherits one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcow.errors import RegistryError
from torchcow.registry import fork

if TYPE_CHECKING:
    import sqlite3

APPLICATION = 0x74636F77  # "tcow"
#: Schema 1 has the same tables, and nodes of format 1 (:mod:`torchcow.persist.state.upgrade`), which stay as they are.
SCHEMA_VERSION = 2
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

#: How long a process waits for another one that writes, in seconds. A writer writes at most one model in that time.
PATIENCE = 600.0

#: How long a fork waits for a transaction of another thread, in seconds.
FORK_PATIENCE = 10.0

# Inherited connections that could not be closed before a fork. Closing them in the child would harm the parent's log.
_inherited: list[Any] = []


class Database:
    """Transactions on one database, from any thread, and in the children of a fork."""

    def __init__(self, path: Path | None, lost: Callable[[], RegistryError | None] = lambda: None):
        self.path = path
        self._lost = lost  # the error if a new database would take the place of one that was lost
        self._process = os.getpid()
        self._connections: dict[str, sqlite3.Connection] = {}
        self._held_for_fork: list[Any] = []
        self._make_locks()
        fork.join(self)
        try:
            with self._locks["write"], self._explained():
                self._prepare(self._connection("write"))
        except BaseException:
            self.close()
            raise

    def _make_locks(self) -> None:
        write = threading.RLock()
        self._locks = {"write": write, "read": write if self.path is None else threading.RLock()}

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

    def before_fork(self) -> None:
        """Wait for the transactions of other threads, and close the connections to a file."""
        deadline = time.monotonic() + FORK_PATIENCE
        for purpose in ("write", "read"):
            if not self._locks[purpose].acquire(timeout=max(0.0, deadline - time.monotonic())):
                return self._release()
            self._held_for_fork.append(self._locks[purpose])
        if any(connection.in_transaction for connection in self._connections.values()):
            return self._release()  # this thread forks within a transaction
        if self.path is not None:
            self.close()
        return None

    def after_fork_in_parent(self) -> None:
        """Go on; the next transaction opens a connection."""
        self._release()

    def after_fork_in_child(self) -> None:
        """Go on with connections of this process. If the parent's could not be closed, refuse all transactions."""
        if self._held_for_fork:
            self._process = os.getpid()
            self._release()
        else:
            _inherited.append(self._connections)
            self._connections = {}
            self._make_locks()

    def _release(self) -> None:
        while self._held_for_fork:
            self._held_for_fork.pop().release()

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the database, whatever other processes write meanwhile."""
        yield from self._transaction("read", "BEGIN")

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """The only write transaction among all processes; it happens as a whole or not at all."""
        yield from self._transaction("write", "BEGIN IMMEDIATE")

    def _transaction(self, purpose: str, begin: str) -> Iterator[sqlite3.Connection]:
        if os.getpid() != self._process:
            raise RegistryError(
                f"{self.path or 'a registry in memory'}: this process was forked while a thread of its parent used the "
                "registry, so it cannot use the registry; fork at another time, or start processes with 'spawn'"
            )
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

    def upgrade(self, db: sqlite3.Connection) -> None:
        """Within a write transaction: refuse older versions of torchcow from now on, which cannot read newer nodes."""
        if db.execute("PRAGMA user_version").fetchone() != (SCHEMA_VERSION,):
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

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
        if (error := self._lost()) is not None:
            if self._is_ours(connection):  # another process was faster, and has written files since
                return
            raise error
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
        """Whether the schema is there; the database of another program is refused."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == APPLICATION:
            if version not in range(1, SCHEMA_VERSION + 1):
                raise RegistryError(
                    f"{self.path}: a registry of schema {version}; this torchcow knows schemas 1 to {SCHEMA_VERSION}"
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
    """Execute a statement that may have to wait for other processes, in steps that an interrupt can end."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute(statement)
            return
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
