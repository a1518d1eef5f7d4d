# SPDX-License-Identifier: Apache-2.0
"""``Version``: the facts about one version, and ``Reference``: the text that selects one."""

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

    ``number`` counts from 1 within the name, and is never reused. ``parent`` is the version that this one was made
    from, as text, or None. ``created`` is in UTC. ``tags`` are those that pointed to it at the time of the call.
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
    """One move of a tag: the version it was moved to, the time, and the time at which a rollback undid the move."""

    version: str
    at: datetime
    rolled_back: datetime | None


@dataclass(frozen=True)
class Reference:
    """Selects a version: ``name`` (the latest version), ``name@3``, or ``name:tag``."""

    name: str
    number: int | None = None
    tag: str | None = None

    @classmethod
    def of(cls, version: str | Version) -> Reference:
        """Return the reference to a version, or parse a text.

        Raises:
            RegistryError: the text has none of the three forms.
        """
        if isinstance(version, Version):
            return cls(version.name, version.number)
        pattern = r"([^@:]+)(?:@([1-9][0-9]{0,17})|:([^@:]+))?"
        match = re.fullmatch(pattern, version) if isinstance(version, str) else None
        if match is None:
            raise RegistryError(f"expected 'name', 'name@3' or 'name:tag', got {version!r}")
        name, number, tag = match.groups()
        return cls(name, int(number) if number else None, tag)

    def __str__(self) -> str:
        return self.name + (f"@{self.number}" if self.number else f":{self.tag}" if self.tag else "")


def check_word(word: str, role: str) -> str:
    """Refuse a name or a tag that no text could select."""
    if not isinstance(word, str) or not word or word != word.strip() or not word.isprintable() or set(word) & set("@:"):
        raise RegistryError(
            f"expected a {role} of printable characters without '@', ':' and outer blanks, got {word!r}"
        )
    return word
