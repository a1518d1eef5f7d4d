"""``Version``: what is known about one version, and the words by which versions are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from torchcow.errors import RegistryError


@dataclass(frozen=True)
class Version:
    """One version of a name; ``str(version)`` is ``"name@3"``.

    ``number`` counts from 1 within the name, and is never given twice. ``parent`` is the version that it was made from,
    as text, or None. ``created`` is in UTC. ``tags`` are those that pointed to it when it was asked for.
    """

    name: str
    number: int
    parent: str | None
    created: datetime
    metadata: Mapping[str, Any] = field(hash=False)
    tags: tuple[str, ...] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass(frozen=True)
class Promotion:
    """One line of a tag's history: when the tag was moved to which version, and when that was undone, if it was."""

    version: str
    at: datetime
    rolled_back: datetime | None


@dataclass(frozen=True)
class Reference:
    """What a text asks for: ``name`` (the latest version), ``name@3``, or ``name:tag``."""

    name: str
    number: int | None = None
    tag: str | None = None

    def __str__(self) -> str:
        return self.name + (f"@{self.number}" if self.number else f":{self.tag}" if self.tag else "")


def reference(text: str | Version) -> Reference:
    """Read what a version is asked for by.

    Raises:
        RegistryError: it is none of the three forms.
    """
    if isinstance(text, Version):
        return Reference(text.name, text.number)
    match = re.fullmatch(r"([^@:]+)(?:@([1-9][0-9]{0,17})|:([^@:]+))?", text) if isinstance(text, str) else None
    if match is None:
        raise RegistryError(f"expected 'name', 'name@3' or 'name:tag', got {text!r}")
    name, number, tag = match.groups()
    return Reference(name, int(number) if number else None, tag)


def check_word(word: str, what: str) -> str:
    """Refuse a name or a tag that could not be asked for."""
    if not isinstance(word, str) or not word or word != word.strip() or not word.isprintable() or set(word) & set("@:"):
        raise RegistryError(
            f"expected a {what} of printable characters without '@', ':' and outer blanks, got {word!r}"
        )
    return word
