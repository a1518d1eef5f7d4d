"""Containers of the standard library."""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torchcow.objects.adapters.attributes import Attributes, attributes_of


class Mappings(Attributes):
    """Mappings: their values, under ``str(key)``. Where two keys would have one name, the second has ``repr(key)``."""

    def accepts(self, obj: Any) -> bool:
        """Any mapping but a view of one."""
        return isinstance(obj, Mapping) and not isinstance(obj, types.MappingProxyType)

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """The values, and attributes of a subclass of dict."""
        attributes = attributes_of(obj) if isinstance(obj, dict) else {}
        return {**attributes, **{name: obj[key] for name, key in _keys(obj).items()}}

    def names(self, obj: Any) -> Sequence[str]:
        """The keys, and the names of attributes."""
        return list(self.parts(obj))

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """Read-only mappings."""
        if isinstance(obj, MutableMapping):
            return None
        return f"{type(obj).__name__} is a read-only mapping; replace it as a whole"

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Set the item, or the attribute."""
        keys = _keys(obj)
        if name in keys:
            obj[keys[name]] = value
        else:
            setattr(obj, name, value)


def _keys(obj: Mapping[Any, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key in obj:
        name = str(key)
        keys[repr(key) if name in keys else name] = key
    return keys


class Sequences(Attributes):
    """Lists, tuples, deques and sets: their members by number, or by field; and attributes of subclasses."""

    def accepts(self, obj: Any) -> bool:
        """These classes and what derives from them."""
        return isinstance(obj, (list, tuple, collections.deque, set, frozenset))

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """The members."""
        fields = getattr(type(obj), "_fields", None) if isinstance(obj, tuple) else None
        found = dict(zip(fields or map(str, range(len(obj))), obj, strict=False))
        return found if fields else {**attributes_of(obj), **found}

    def names(self, obj: Any) -> Sequence[str]:
        """The numbers, or names of fields."""
        return list(self.parts(obj))

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """Only lists and deques have places that can be filled anew."""
        if isinstance(obj, (list, collections.deque)):
            return None
        return f"a {type(obj).__name__} cannot be changed; replace it as a whole"

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Set the member."""
        if name.isdecimal():
            obj[int(name)] = value
        else:
            setattr(obj, name, value)


class Partials(Attributes):
    """Partial functions, and methods with the object that they are bound to."""

    def accepts(self, obj: Any) -> bool:
        """``functools.partial`` and bound methods."""
        return isinstance(obj, (functools.partial, types.MethodType))

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """Function, arguments and keywords; or the object."""
        if isinstance(obj, types.MethodType):
            return {"__self__": obj.__self__}
        return {"func": obj.func, "args": obj.args, "keywords": obj.keywords, **attributes_of(obj)}

    def names(self, obj: Any) -> Sequence[str]:
        """The parts."""
        return list(self.parts(obj))

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """All; what they hold may be changed itself."""
        return f"the {name} of a {type(obj).__name__} cannot be changed; replace it as a whole"
