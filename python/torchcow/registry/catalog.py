"""Versions, tags and their histories: the statements behind the registry, each within a caller's transaction."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from torchcow.errors import RegistryError
from torchcow.persist.state.plain import NotPlainError, decode, encode
from torchcow.registry.version import Promotion, Reference, Version

if TYPE_CHECKING:
    from sqlite3 import Connection

_ROW = """
    SELECT v.id, v.name, v.number, v.parent, v.created, v.metadata, v.digest, v.seal, p.name, p.number
    FROM version AS v LEFT JOIN version AS p ON p.id = v.parent
"""
_LINE = "SELECT seq, name, tag, number, at, undone, seal FROM promotion WHERE name = ? AND tag = ?"


def seal(*values: Any) -> str:
    """Return the digest of a row."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def encode_metadata(metadata: Mapping[str, Any]) -> str:
    """Return metadata as text.

    Raises:
        RegistryError: there is something in it that is no plain data.
    """
    try:
        return json.dumps(encode(dict(metadata)))
    except NotPlainError:
        raise RegistryError(
            "metadata may hold numbers, strings, bytes, None, and lists, tuples, dicts and sets of them; got "
            f"{dict(metadata)!r:.200}"
        ) from None


def find(db: Connection, wanted: Reference) -> int:
    """Return the identity of a version.

    Raises:
        RegistryError: there is none; the message says what there is.
    """
    number = wanted.number
    if wanted.tag is not None:
        number = current(db, wanted.name, wanted.tag)
        if number is None and _numbers(db, wanted.name):
            known = ", ".join(sorted(tags(db, wanted.name))) or "none"
            raise RegistryError(f"{wanted.name!r} has no tag {wanted.tag!r}; its tags: {known}")
    row = db.execute(
        "SELECT id FROM version WHERE name = ? AND (? IS NULL OR number = ?) ORDER BY number DESC LIMIT 1",
        (wanted.name, number, number),
    ).fetchone()
    if row is not None:
        # An index that is damaged leads to another row.
        found = version(db, row[0], tagged=False)
        if found.name != wanted.name or number not in (None, found.number):
            raise _damaged(f"{wanted.name}@{number}")
        return int(row[0])
    numbers = _numbers(db, wanted.name)
    if not numbers:
        known = ", ".join(repr(name) for name in names(db)) or "none yet"
        raise RegistryError(f"there is no {wanted.name!r}; names: {known}")
    shown = ", ".join(map(str, numbers[-20:]))
    raise RegistryError(f"there is no version {wanted.name}@{number}; versions of {wanted.name!r}: {shown}")


def names(db: Connection) -> list[str]:
    """Return all names."""
    return [name for (name,) in db.execute("SELECT DISTINCT name FROM version ORDER BY name")]


def _numbers(db: Connection, name: str) -> list[int]:
    return [number for (number,) in db.execute("SELECT number FROM version WHERE name = ? ORDER BY number", (name,))]


def versions(db: Connection, name: str | None = None) -> dict[int, Version]:
    """Return the versions of a name, or all of them, by identity, oldest first."""
    rows = db.execute(_ROW + "WHERE ? IS NULL OR v.name = ? ORDER BY v.id", (name, name)).fetchall()
    tagged = {of: tags(db, of) for of in {row[1] for row in rows}}
    return {row[0]: _version(row, tagged[row[1]]) for row in rows}


def version(db: Connection, identity: int, tagged: bool = True) -> Version:
    """Return one version."""
    row = db.execute(_ROW + "WHERE v.id = ?", (identity,)).fetchone()
    if row is None:
        raise _damaged("a version")
    return _version(row, tags(db, row[1]) if tagged else {})


def _version(row: tuple[Any, ...], tagged: Mapping[str, int]) -> Version:
    _, name, number, parent, created, metadata, _, sealed, above, above_number = row
    if seal(*row[1:7]) != sealed:
        raise _damaged(f"{name}@{number}")
    made_from = None if parent is None else f"{above}@{above_number}"
    of = tuple(sorted(tag for tag, at in tagged.items() if at == number))
    return Version(name, number, made_from, moment(created), decode(json.loads(metadata)), of)


def _damaged(what: str) -> RegistryError:
    return RegistryError(f"{what}: what the database says about it is not what was written; it is damaged")


def moment(seconds: float) -> datetime:
    """Return a time of the database as a date in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)  # noqa: UP017 - datetime.UTC is of Python 3.11


def insert(db: Connection, name: str, parent: int | None, metadata: str, base: int | None, digest: str | None) -> int:
    """Add a version with the next number of its name."""
    (last,) = db.execute("SELECT coalesce(max(number), 0) FROM version WHERE name = ?", (name,)).fetchone()
    row = (name, last + 1, parent, time.time(), metadata, digest)
    cursor = db.execute(
        "INSERT INTO version (name, number, parent, created, metadata, digest, seal, base) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, seal(*row), base),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _lines(db: Connection, name: str, tag: str, order: str = "DESC") -> Iterator[tuple[Any, ...]]:
    """Yield the lines of a tag's history, each checked."""
    for row in db.execute(f"{_LINE} ORDER BY seq {order}", (name, tag)):
        if seal(*row[:6]) != row[6] or row[1:3] != (name, tag):
            raise _damaged(f"the history of the tag '{name}:{tag}'")
        yield row


def current(db: Connection, name: str, tag: str) -> int | None:
    """Return the number of the version where a tag is: of its last line that was not undone."""
    return next((number for _, _, _, number, _, undone, _ in _lines(db, name, tag) if undone is None), None)


def tags(db: Connection, name: str) -> dict[str, int]:
    """Return where the tags of a name are."""
    words = db.execute("SELECT DISTINCT tag FROM promotion WHERE name = ? ORDER BY tag", (name,)).fetchall()
    found = {tag: current(db, name, tag) for (tag,) in words}
    return {tag: number for tag, number in found.items() if number is not None}


def names_with(db: Connection, tag: str) -> list[str]:
    """Return the names that have a tag."""
    rows = db.execute("SELECT DISTINCT name FROM promotion WHERE tag = ? ORDER BY name", (tag,)).fetchall()
    return [name for (name,) in rows if current(db, name, tag) is not None]


def name_with(db: Connection, tag: str) -> str:
    """Return the one name that has a tag.

    Raises:
        RegistryError: no name has it, or several.
    """
    found = names_with(db, tag)
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(f"'{name}:{tag}'" for name in found)
        raise RegistryError(f"several names have the tag {tag!r}; say which: {choices}")
    known = [f"'{name}:{one}'" for name in names(db) for one in tags(db, name)]
    raise RegistryError(f"no name has the tag {tag!r}; tags: {', '.join(known) or 'none'}")


def point(db: Connection, name: str, tag: str, number: int) -> None:
    """Move a tag; to where it is already, nothing happens."""
    if current(db, name, tag) != number:
        (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM promotion").fetchone()
        row = (last + 1, name, tag, number, time.time(), None)
        db.execute(
            "INSERT INTO promotion (seq, name, tag, number, at, undone, seal) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*row, seal(*row)),
        )


def before(db: Connection, name: str, tag: str) -> int | None:
    """Return the number of the version that a rollback of the tag would lead to; None if there is none."""
    there = {*_numbers(db, name)} - {current(db, name, tag)}
    return next((row[3] for row in _lines(db, name, tag) if row[5] is None and row[3] in there), None)


def rollback(db: Connection, name: str, tag: str) -> None:
    """Move a tag back to the version that it was moved from."""
    number, at = before(db, name, tag), current(db, name, tag)
    if number is None:
        what = "does not exist" if at is None else f"is at {name}@{at}"
        raise RegistryError(f"the tag '{name}:{tag}' {what}, and there is no earlier version to go back to")
    _undo(db, name, tag, number)


def untag(db: Connection, name: str, tag: str) -> None:
    """Take a tag away."""
    if current(db, name, tag) is None:
        raise RegistryError(f"{name!r} has no tag {tag!r}; its tags: {', '.join(tags(db, name)) or 'none'}")
    _undo(db, name, tag, None)


def _undo(db: Connection, name: str, tag: str, until: int | None) -> None:
    """Undo the lines of a tag from the last one on, up to one that moved it to ``until``."""
    now = time.time()
    for row in list(_lines(db, name, tag)):
        if row[5] is None:
            if row[3] == until:
                return
            sealed = seal(*row[:5], now)
            db.execute("UPDATE promotion SET undone = ?, seal = ? WHERE seq = ?", (now, sealed, row[0]))


def history(db: Connection, name: str, tag: str) -> list[Promotion]:
    """Return all that happened to a tag, oldest first."""
    return [
        Promotion(f"{name}@{number}", moment(at), None if undone is None else moment(undone))
        for _, _, _, number, at, undone, _ in _lines(db, name, tag, "ASC")
    ]


def drop(db: Connection, identity: int) -> None:
    """Remove a version; those whose manifests build on it get what they need of it."""
    (base,) = db.execute("SELECT base FROM version WHERE id = ?", (identity,)).fetchone()
    for (child,) in db.execute("SELECT id FROM version WHERE base = ?", (identity,)).fetchall():
        db.execute(
            "INSERT OR IGNORE INTO entry (version, path, node, fingerprint) "
            "SELECT ?, path, node, fingerprint FROM entry WHERE version = ?",
            (child, identity),
        )
        db.execute("UPDATE version SET base = ? WHERE id = ?", (base, child))
    (parent,) = db.execute("SELECT parent FROM version WHERE id = ?", (identity,)).fetchone()
    children = db.execute(
        "SELECT id, name, number, created, metadata, digest FROM version WHERE parent = ?", (identity,)
    )
    for child, name, number, *rest in children.fetchall():
        sealed = seal(name, number, parent, *rest)
        db.execute("UPDATE version SET parent = ?, seal = ? WHERE id = ?", (parent, sealed, child))
    db.execute("DELETE FROM version WHERE id = ?", (identity,))
