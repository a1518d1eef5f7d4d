"""Versions, tags and their histories: the statements behind the registry, each within a caller's transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from torchcow.errors import RegistryError
from torchcow.registry.version import Promotion, Reference, Version
from torchcow.state.plain import NotPlainError, decode, encode

if TYPE_CHECKING:
    from sqlite3 import Connection

# The last line of a tag that was not rolled back is where the tag is.
_CURRENT = """
    SELECT name, tag, number FROM promotion AS p WHERE undone IS NULL AND seq =
        (SELECT max(seq) FROM promotion AS q WHERE q.name = p.name AND q.tag = p.tag AND q.undone IS NULL)
"""


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
        number = tags(db, wanted.name).get(wanted.tag)
        if number is None and _numbers(db, wanted.name):
            known = ", ".join(sorted(tags(db, wanted.name))) or "none"
            raise RegistryError(f"{wanted.name!r} has no tag {wanted.tag!r}; its tags: {known}")
    if number is None:
        row = db.execute(
            "SELECT id FROM version WHERE name = ? ORDER BY number DESC LIMIT 1", (wanted.name,)
        ).fetchone()
    else:
        row = db.execute("SELECT id FROM version WHERE name = ? AND number = ?", (wanted.name, number)).fetchone()
    if row is not None:
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
    tagged: dict[tuple[str, int], list[str]] = {}
    for of, tag, number in db.execute(_CURRENT + " ORDER BY tag"):
        tagged.setdefault((of, number), []).append(tag)
    rows = db.execute(
        "SELECT v.id, v.name, v.number, p.name, p.number, v.created, v.metadata FROM version AS v "
        "LEFT JOIN version AS p ON p.id = v.parent WHERE ? IS NULL OR v.name = ? ORDER BY v.id",
        (name, name),
    )
    return {row[0]: _version(row, tagged) for row in rows}


def version(db: Connection, identity: int) -> Version:
    """Return one version."""
    row = db.execute(
        "SELECT v.id, v.name, v.number, p.name, p.number, v.created, v.metadata FROM version AS v "
        "LEFT JOIN version AS p ON p.id = v.parent WHERE v.id = ?",
        (identity,),
    ).fetchone()
    found = [tag for tag, number in sorted(tags(db, row[1]).items()) if number == row[2]]
    return _version(row, {(row[1], row[2]): found})


def _version(row: tuple[Any, ...], tagged: Mapping[tuple[str, int], list[str]]) -> Version:
    _, name, number, parent, parent_number, created, metadata = row
    above = None if parent is None else f"{parent}@{parent_number}"
    of = tuple(tagged.get((name, number), ()))
    return Version(name, number, above, moment(created), decode(json.loads(metadata)), of)


def moment(seconds: float) -> datetime:
    """Return a time of the database as a date in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)  # noqa: UP017 - datetime.UTC is of Python 3.11


def insert(db: Connection, name: str, parent: int | None, metadata: str, base: int | None, digest: str | None) -> int:
    """Add a version with the next number of its name."""
    (last,) = db.execute("SELECT coalesce(max(number), 0) FROM version WHERE name = ?", (name,)).fetchone()
    values = (name, last + 1, parent, base, time.time(), metadata, digest)
    cursor = db.execute(
        "INSERT INTO version (name, number, parent, base, created, metadata, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def tags(db: Connection, name: str) -> dict[str, int]:
    """Return where the tags of a name are."""
    return {tag: number for _, tag, number in db.execute(_CURRENT + " AND name = ?", (name,))}


def names_with(db: Connection, tag: str) -> list[str]:
    """Return the names that have a tag."""
    return [name for name, _, _ in db.execute(_CURRENT + " AND tag = ? ORDER BY name", (tag,))]


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
    known = sorted({f"'{name}:{one}'" for name, one, _ in db.execute(_CURRENT)})
    raise RegistryError(f"no name has the tag {tag!r}; tags: {', '.join(known) or 'none'}")


def point(db: Connection, name: str, tag: str, number: int) -> None:
    """Move a tag; to where it is already, nothing happens."""
    if tags(db, name).get(tag) != number:
        db.execute(
            "INSERT INTO promotion (name, tag, number, at) VALUES (?, ?, ?, ?)", (name, tag, number, time.time())
        )


def before(db: Connection, name: str, tag: str) -> int | None:
    """Return the number of the version that a rollback of the tag would lead to; None if there is none."""
    row = db.execute(
        "SELECT p.number FROM promotion AS p JOIN version AS v ON v.name = p.name AND v.number = p.number "
        "WHERE p.name = ? AND p.tag = ? AND p.undone IS NULL AND p.number <> ? ORDER BY p.seq DESC LIMIT 1",
        (name, tag, tags(db, name).get(tag, 0)),
    ).fetchone()
    return None if row is None else int(row[0])


def rollback(db: Connection, name: str, tag: str) -> None:
    """Move a tag back to the version that it was moved from."""
    number = before(db, name, tag)
    if number is None:
        what = f"is at {name}@{tags(db, name)[tag]}" if tag in tags(db, name) else "does not exist"
        raise RegistryError(f"the tag '{name}:{tag}' {what}, and there is no earlier version to go back to")
    db.execute(
        "UPDATE promotion SET undone = ? WHERE name = ? AND tag = ? AND undone IS NULL AND seq > "
        "(SELECT max(seq) FROM promotion WHERE name = ? AND tag = ? AND undone IS NULL AND number = ?)",
        (time.time(), name, tag, name, tag, number),
    )


def untag(db: Connection, name: str, tag: str) -> None:
    """Take a tag away."""
    if tag not in tags(db, name):
        raise RegistryError(f"{name!r} has no tag {tag!r}; its tags: {', '.join(sorted(tags(db, name))) or 'none'}")
    db.execute(
        "UPDATE promotion SET undone = ? WHERE name = ? AND tag = ? AND undone IS NULL", (time.time(), name, tag)
    )


def history(db: Connection, name: str, tag: str) -> list[Promotion]:
    """Return all that happened to a tag, oldest first."""
    rows = db.execute("SELECT number, at, undone FROM promotion WHERE name = ? AND tag = ? ORDER BY seq", (name, tag))
    return [
        Promotion(f"{name}@{number}", moment(at), None if undone is None else moment(undone))
        for number, at, undone in rows
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
    db.execute(
        "UPDATE version SET parent = (SELECT parent FROM version WHERE id = ?) WHERE parent = ?",
        (identity, identity),
    )
    db.execute("DELETE FROM version WHERE id = ?", (identity,))
