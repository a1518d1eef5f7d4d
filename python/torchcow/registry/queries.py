# SPDX-License-Identifier: Apache-2.0
"""Versions, tags and their histories: the statements of a registry, each within a transaction that the caller began."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
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
        RegistryError: it holds something that is not plain data.
    """
    try:
        return json.dumps(encode(dict(metadata)))
    except NotPlainError:
        raise RegistryError(
            "metadata may hold numbers, strings, bytes, None, and lists, tuples, dicts and sets of them; got "
            f"{dict(metadata)!r:.200}"
        ) from None


def find(db: Connection, reference: Reference) -> int:
    """Return the id of a version.

    Raises:
        RegistryError: there is none; the message lists the versions, tags or names that exist.
    """
    name, number = reference.name, reference.number
    if reference.tag is not None:
        number = current(db, name, reference.tag)
        if number is None and _numbers(db, name):
            choices = ", ".join(sorted(tags(db, name))) or "none"
            raise RegistryError(f"{name!r} has no tag {reference.tag!r}; its tags: {choices}")
    row = db.execute(
        "SELECT id FROM version WHERE name = ? AND (? IS NULL OR number = ?) ORDER BY number DESC LIMIT 1",
        (name, number, number),
    ).fetchone()
    if row is not None:
        # An index that is damaged leads to another row.
        result = version(db, row[0], tagged=False)
        if result.name != name or number not in (None, result.number):
            raise _damaged(f"{name}@{number}")
        return int(row[0])
    numbers = _numbers(db, name)
    if not numbers:
        choices = ", ".join(map(repr, names(db))) or "none yet"
        raise RegistryError(f"there is no {name!r}; names: {choices}")
    shown = ", ".join(map(str, numbers[-20:]))
    raise RegistryError(f"there is no version {name}@{number}; versions of {name!r}: {shown}")


def names(db: Connection) -> list[str]:
    """Return all names."""
    return [name for (name,) in db.execute("SELECT DISTINCT name FROM version ORDER BY name")]


def _numbers(db: Connection, name: str) -> list[int]:
    return [number for (number,) in db.execute("SELECT number FROM version WHERE name = ? ORDER BY number", (name,))]


def versions(db: Connection, name: str | None = None) -> dict[int, Version]:
    """Return the versions of a name, or all of them, by id, oldest first."""
    rows = db.execute(_ROW + "WHERE ? IS NULL OR v.name = ? ORDER BY v.id", (name, name)).fetchall()
    tags_by_name = {row_name: tags(db, row_name) for row_name in {row[1] for row in rows}}
    return {row[0]: _version(row, tags_by_name[row[1]]) for row in rows}


def version(db: Connection, version_id: int, tagged: bool = True) -> Version:
    """Return one version; without its tags if ``tagged`` is false."""
    row = db.execute(_ROW + "WHERE v.id = ?", (version_id,)).fetchone()
    if row is None:
        raise _damaged("a version")
    return _version(row, tags(db, row[1]) if tagged else {})


def _version(row: tuple[Any, ...], name_tags: Mapping[str, int]) -> Version:
    _, name, number, parent_id, created, metadata, _, row_seal, parent_name, parent_number = row
    if seal(*row[1:7]) != row_seal:
        raise _damaged(f"{name}@{number}")
    parent = None if parent_id is None else f"{parent_name}@{parent_number}"
    version_tags = tuple(sorted(tag for tag, tag_number in name_tags.items() if tag_number == number))
    return Version(name, number, parent, moment(created), decode(json.loads(metadata)), version_tags)


def _damaged(subject: str) -> RegistryError:
    return RegistryError(f"{subject}: what the database says about it is not what was written; it is damaged")


def moment(seconds: float) -> datetime:
    """Return a time of the database as a date in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)  # noqa: UP017 - datetime.UTC is of Python 3.11


def insert(
    db: Connection, name: str, parent_id: int | None, metadata: str, base_id: int | None, digest: str | None
) -> int:
    """Add a version with the next number of its name; return its id."""
    (last,) = db.execute("SELECT coalesce(max(number), 0) FROM version WHERE name = ?", (name,)).fetchone()
    row = (name, last + 1, parent_id, time.time(), metadata, digest)
    cursor = db.execute(
        "INSERT INTO version (name, number, parent, created, metadata, digest, seal, base) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, seal(*row), base_id),
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
    """Return the number of the version that a tag points to: that of its last line that was not undone."""
    return next((number for _, _, _, number, _, undone, _ in _lines(db, name, tag) if undone is None), None)


def tags(db: Connection, name: str) -> dict[str, int]:
    """Return the number of the version that each tag of a name points to."""
    rows = db.execute("SELECT DISTINCT tag FROM promotion WHERE name = ? ORDER BY tag", (name,)).fetchall()
    numbers = {tag: current(db, name, tag) for (tag,) in rows}
    return {tag: number for tag, number in numbers.items() if number is not None}


def names_with(db: Connection, tag: str) -> list[str]:
    """Return the names that have a tag."""
    rows = db.execute("SELECT DISTINCT name FROM promotion WHERE tag = ? ORDER BY name", (tag,)).fetchall()
    return [name for (name,) in rows if current(db, name, tag) is not None]


def name_with(db: Connection, tag: str) -> str:
    """Return the one name that has a tag.

    Raises:
        RegistryError: no name has it, or several names have it.
    """
    candidates = names_with(db, tag)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        choices = ", ".join(f"'{name}:{tag}'" for name in candidates)
        raise RegistryError(f"several names have the tag {tag!r}; say which: {choices}")
    all_tags = [f"'{name}:{name_tag}'" for name in names(db) for name_tag in tags(db, name)]
    raise RegistryError(f"no name has the tag {tag!r}; tags: {', '.join(all_tags) or 'none'}")


def point(db: Connection, name: str, tag: str, number: int) -> None:
    """Move a tag, unless it is there already."""
    if current(db, name, tag) != number:
        (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM promotion").fetchone()
        row = (last + 1, name, tag, number, time.time(), None)
        db.execute(
            "INSERT INTO promotion (seq, name, tag, number, at, undone, seal) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*row, seal(*row)),
        )


def point_all(db: Connection, version_id: int, new_tags: Iterable[str]) -> None:
    """Move several tags to a version of their name."""
    target = version(db, version_id, tagged=False)
    for tag in new_tags:
        point(db, target.name, tag, target.number)


def previous(db: Connection, name: str, tag: str) -> int | None:
    """Return the number of the version that a rollback of the tag would lead to; None if there is none."""
    others = {*_numbers(db, name)} - {current(db, name, tag)}
    return next((row[3] for row in _lines(db, name, tag) if row[5] is None and row[3] in others), None)


def rollback(db: Connection, name: str, tag: str) -> None:
    """Move a tag back to the version that it was moved from."""
    previous_number, number = previous(db, name, tag), current(db, name, tag)
    if previous_number is None:
        state = "does not exist" if number is None else f"is at {name}@{number}"
        raise RegistryError(f"the tag '{name}:{tag}' {state}, and there is no earlier version to go back to")
    _undo(db, name, tag, previous_number)


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
            row_seal = seal(*row[:5], now)
            db.execute("UPDATE promotion SET undone = ?, seal = ? WHERE seq = ?", (now, row_seal, row[0]))


def history(db: Connection, name: str, tag: str) -> list[Promotion]:
    """Return every move of a tag, oldest first."""
    return [
        Promotion(f"{name}@{number}", moment(at), None if undone is None else moment(undone))
        for _, _, _, number, at, undone, _ in _lines(db, name, tag, "ASC")
    ]


def drop(db: Connection, version_id: int) -> None:
    """Remove a version. Its parent gets its children, and the manifests that build on its manifest get its lines."""
    (base_id,) = db.execute("SELECT base FROM version WHERE id = ?", (version_id,)).fetchone()
    for (child_id,) in db.execute("SELECT id FROM version WHERE base = ?", (version_id,)).fetchall():
        db.execute(
            "INSERT OR IGNORE INTO entry (version, path, node, fingerprint) "
            "SELECT ?, path, node, fingerprint FROM entry WHERE version = ?",
            (child_id, version_id),
        )
        db.execute("UPDATE version SET base = ? WHERE id = ?", (base_id, child_id))
    (parent_id,) = db.execute("SELECT parent FROM version WHERE id = ?", (version_id,)).fetchone()
    children = db.execute(
        "SELECT id, name, number, created, metadata, digest FROM version WHERE parent = ?", (version_id,)
    )
    for child_id, name, number, *rest in children.fetchall():
        row_seal = seal(name, number, parent_id, *rest)
        db.execute("UPDATE version SET parent = ?, seal = ? WHERE id = ?", (parent_id, row_seal, child_id))
    db.execute("DELETE FROM version WHERE id = ?", (version_id,))
