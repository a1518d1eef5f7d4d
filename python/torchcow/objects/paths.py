# SPDX-License-Identifier: Apache-2.0
"""The parts of an object by dotted path: look up, check, replace, and walk over all of them.

A path is a sequence of names with dots in between: ``"encoder.layers.0.dropout.p"``, ``"optimizer.lr"``. The adapter of
an object (:mod:`torchcow.objects.adapters`) knows the names in it: those of its children, and further ones that a path
may use, such as the options of an optimizer and the fields of a named tuple. Names may have dots themselves, such as
keys of a dict.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torchcow.errors import PathError
from torchcow.objects.adapters import Adapter, adapter_of
from torchcow.objects.children import traverse

__all__ = ["Adapter", "Place", "check", "locate", "look_up", "names_at", "walk"]

LISTED = 12


@dataclass(frozen=True)
class Place:
    """Where a path leads: the names along it, and the object that holds the last one."""

    path: str
    names: tuple[str, ...]
    holder: Any

    @property
    def value(self) -> Any:
        """The object that is there now."""
        return adapter_of(self.holder).get(self.holder, self.names[-1])

    def within(self, root: Any) -> Place:
        """Return the same place in another object that is built alike."""
        for name in self.names[:-1]:
            root = adapter_of(root).get(root, name)
        return Place(self.path, self.names, root)

    def check(self, value: Any) -> None:
        """Raise a PathError if ``value`` cannot be put there."""
        why = adapter_of(self.holder).refuse(self.holder, self.names[-1], value)
        if why is not None:
            raise PathError(f"{self.path!r} cannot be set: {why}")

    def replace(self, value: Any) -> None:
        """Put ``value`` there."""
        adapter_of(self.holder).replace(self.holder, self.names[-1], value)


def names_at(obj: Any, path: str = "") -> list[str]:
    """Return the names that exist in ``obj``, or at a path within it. Private names come last.

    Example:
        >>> import torch
        >>> from torchcow.objects.paths import names_at
        >>> names_at({"model": torch.nn.Dropout(0.1)}, "model")[:3]
        ['training', 'p', 'inplace']
    """
    holder = look_up(obj, path) if path else obj
    return sorted(adapter_of(holder).names(holder), key=lambda name: name.startswith("_"))


def look_up(obj: Any, path: str) -> Any:
    """Return the object that ``path`` leads to.

    Raises:
        PathError: there is no such object, or there is more than one.

    Example:
        >>> import torch
        >>> from torchcow.objects.paths import look_up
        >>> look_up([torch.nn.Dropout(0.1)], "0.p")
        0.1
    """
    return locate(obj, path).value


def locate(obj: Any, path: str) -> Place:
    """Return the place that ``path`` leads to.

    Raises:
        PathError: there is no such place, or there are several because names contain dots.
    """
    if not isinstance(path, str):
        raise TypeError(
            f"expected a dotted path such as 'encoder.dropout.p', got {path!r} of type {type(path).__name__}"
        )
    furthest: list[tuple[int, str, Any]] = [(-1, "", obj)]
    places = list(_matches(path, 0, obj, (), furthest))
    if not places:
        raise PathError(_nowhere(path, furthest[0], obj))
    if len(places) > 1:
        ways = " or ".join(" -> ".join(map(repr, place.names)) for place in places)
        raise PathError(f"{path!r} leads to several places in this {type(obj).__name__}: {ways}; rename one of them")
    return places[0]


def check(obj: Any, path: str, value: Any) -> Place:
    """Return the place that ``path`` leads to, and check that it takes ``value``.

    Raises:
        PathError: there is no such place, or it does not take that value.
    """
    place = locate(obj, path)
    place.check(value)
    return place


def walk(obj: Any, into: Callable[[Any], bool] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, object) for ``obj`` and all its parts but plain values, each object once, depth first.

    ``into`` is asked, after an object was yielded, whether its parts are wanted as well.

    Example:
        >>> from torchcow.objects.paths import walk
        >>> [path for path, _ in walk({"a": [{1}, {2}], "b": {"c": {3}}})]
        ['', 'a', 'a.0', 'a.1', 'b', 'b.c']
    """
    return ((path, part) for path, part, first in traverse(obj, into=into) if first)


def _matches(
    path: str, start: int, obj: Any, names: tuple[str, ...], furthest: list[tuple[int, str, Any]]
) -> Iterator[Place]:
    if start > furthest[0][0]:
        furthest[0] = (start, path[: max(start - 1, 0)], obj)
    adapter = adapter_of(obj)
    here = set(adapter.names(obj))
    end = start - 1
    while end < len(path):
        end = path.find(".", end + 1)
        end = len(path) if end < 0 else end
        name = path[start:end]
        if name in here:
            if end == len(path):
                yield Place(path, (*names, name), obj)
            else:
                yield from _matches(path, end + 1, adapter.get(obj, name), (*names, name), furthest)


def _nowhere(path: str, furthest: tuple[int, str, Any], root: Any) -> str:
    start, done, obj = furthest
    missing = path[max(start, 0) :].split(".")[0]
    kind = type(obj).__name__
    where = f"{done!r} ({kind})" if done else f"this {kind}"
    asked = "" if missing == path else f", so {path!r} leads nowhere"
    return f"there is no {missing!r} in {where}{asked}; {_known(missing, names_at(obj))}"


def _known(missing: str, names: Sequence[str]) -> str:
    public = [name for name in names if not name.startswith("_")] or names
    order = list(dict.fromkeys([*difflib.get_close_matches(missing, names, n=3), *public]))
    if not order:
        return "it has no parts"
    more = f", and {len(order) - LISTED} more" if len(order) > LISTED else ""
    return f"it has: {', '.join(order[:LISTED])}{more}"
