# SPDX-License-Identifier: Apache-2.0
"""Names for the keys of a mapping: short, and unique within that mapping."""

from __future__ import annotations

import collections
import enum
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch

_LONGEST = 80  # characters of a name that the class of a key makes up
_PLAIN = (str, bytes, int, float, complex, type(None), range, slice, enum.Enum, torch.dtype, torch.device)
_LIKE_OTHERS = (torch.Tensor, torch.nn.Module)  # their text is long, and equal for different keys


def keys_by_name(keys: Iterable[Any]) -> dict[str, Any]:
    """Return the keys by name, in their order.

    A key's name is ``str(key)``. Keys that have it in common are named by their ``repr``: ``{1: a, "1": b}`` has the
    names ``1`` and ``'1'``. A key whose text is no name, such as a tensor, is named by its class and position.

    Example:
        >>> from torchcow.objects.adapters.keys import keys_by_name
        >>> list(keys_by_name(["a", 1, "1", object()]))
        ['a', '1', "'1'", '<object 3>']
    """
    listed = list(keys)
    if all(type(key) is str for key in listed):
        return dict(zip(listed, listed, strict=True))
    texts = [_text(key, position) for position, key in enumerate(listed)]
    counts = collections.Counter(texts)
    taken = {text for text, count in counts.items() if count == 1}
    named = {}
    for key, text in zip(listed, texts, strict=True):
        name = text if counts[text] == 1 else distinct(repr(key) if _is_plain(key) else text, taken)
        taken.add(name)
        named[name] = key
    return named


def add_beside(parts: dict[str, Any], others: Mapping[str, Any], where: str) -> None:
    """Add ``others`` to ``parts``. A name that another object has already gets ``where`` in front."""
    for name, value in others.items():
        if name not in parts:
            parts[name] = value
        elif parts[name] is not value:
            parts[distinct(f"{where}.{name}", parts)] = value


def distinct(name: str, taken: Container[str]) -> str:
    """Return the name, or the name with a number that makes it differ from those that are taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    return free


def _text(key: Any, position: int) -> str:
    kind = type(key)
    if kind is str:
        return str(key)
    try:
        if _is_plain(key):
            return str(key)
        shown = any("__str__" in vars(base) or "__repr__" in vars(base) for base in kind.__mro__[:-1])
        if shown and not issubclass(kind, _LIKE_OTHERS):
            text = str(key)
            if len(text) <= _LONGEST and text.isprintable() and " at 0x" not in text:
                return text
    except Exception:  # of a class that cannot be shown
        pass
    return f"<{kind.__name__} {position}>"


def _is_plain(key: Any) -> bool:
    if isinstance(key, (tuple, frozenset)):
        return all(map(_is_plain, key))
    return isinstance(key, _PLAIN) or type(key).__module__ == "numpy"
