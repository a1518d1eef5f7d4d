# SPDX-License-Identifier: Apache-2.0
"""Containers of the standard library."""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torchcow.objects.adapters.attributes import Attributes, attributes_of
from torchcow.objects.adapters.keys import add_beside, keys_by_name

_SEQUENCES = (list, tuple, collections.deque, set, frozenset)


class Mappings(Attributes):
    """Dicts and what derives from them: their values by key, and the attributes of subclasses.

    A subclass may define how it is iterated, and would run any code. So the items are read as ``dict`` has them.
    """

    def accepts(self, obj: Any) -> bool:
        """``dict`` and its subclasses."""
        return issubclass(type(obj), dict)

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """The values, and attributes of a subclass."""
        parts = {name: dict.__getitem__(obj, key) for name, key in keys_of(obj).items()}
        if type(obj) is not dict:
            add_beside(parts, attributes_of(obj), "__dict__")
        return parts

    def names(self, obj: Any) -> Sequence[str]:
        """The names of the keys, and those of attributes."""
        return list(self.parts(obj))

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """Nothing: a dict takes any value."""
        return None

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Set the item, or the attribute."""
        _set_item(obj, keys_of(obj), name, value)


class ForeignMappings(Attributes):
    """Other mappings: their attributes. A path may use their keys as well.

    A search for tensors does not iterate over them: such a class may load its items from a file, or raise.
    """

    def accepts(self, obj: Any) -> bool:
        """Mappings that are no dicts, but for views of dicts."""
        return issubclass(type(obj), Mapping) and type(obj) is not types.MappingProxyType

    def names(self, obj: Any) -> Sequence[str]:
        """The names of the keys, and those of attributes."""
        return list(dict.fromkeys([*keys_by_name(obj), *super().names(obj)]))

    def get(self, obj: Any, name: str) -> Any:
        """The item, or the attribute."""
        keys = keys_by_name(obj)
        return obj[keys[name]] if name in keys else super().get(obj, name)

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """Read-only mappings."""
        if isinstance(obj, MutableMapping):
            return None
        return f"{type(obj).__name__} is a read-only mapping; replace it as a whole"

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Set the item, or the attribute."""
        _set_item(obj, keys_by_name(obj), name, value)


def _set_item(obj: Any, keys: dict[str, Any], name: str, value: Any) -> None:
    if name in keys:
        obj[keys[name]] = value
    else:
        setattr(obj, name.removeprefix("__dict__."), value)


def keys_of(obj: dict[Any, Any]) -> dict[str, Any]:
    """Return the keys of a dict by name, in the order of the dict."""
    return keys_by_name(
        collections.OrderedDict.keys(obj) if isinstance(obj, collections.OrderedDict) else dict.keys(obj)
    )


class Sequences(Attributes):
    """Lists, tuples, deques and sets: their members by number; and attributes of subclasses.

    The members are read as the base class has them. A path may also name a member of a named tuple by its field.
    """

    def accepts(self, obj: Any) -> bool:
        """These classes and what derives from them."""
        return issubclass(type(obj), _SEQUENCES)

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """The members, and attributes of a subclass."""
        kind = type(obj)
        base: Any = kind if kind in _SEQUENCES else next(base for base in _SEQUENCES if issubclass(kind, base))
        parts = {str(position): member for position, member in enumerate(base.__iter__(obj))}
        if kind is not base:
            # The fields of some named tuples are slots.
            add_beside(parts, attributes_of(obj, slots=base is not tuple), "__dict__")
        return parts

    def names(self, obj: Any) -> Sequence[str]:
        """The fields of a named tuple, the numbers, and the names of attributes."""
        return list(dict.fromkeys([*_fields(obj), *self.parts(obj)]))

    def get(self, obj: Any, name: str) -> Any:
        """The member or the attribute."""
        fields = _fields(obj)
        return tuple.__getitem__(obj, fields.index(name)) if name in fields else super().get(obj, name)

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


def _fields(obj: Any) -> Sequence[str]:
    fields = getattr(type(obj), "_fields", ()) if isinstance(obj, tuple) else ()
    return fields if isinstance(fields, tuple) and len(fields) == len(obj) else ()


class Partials(Attributes):
    """Partial functions, and methods with the object that they are bound to."""

    def accepts(self, obj: Any) -> bool:
        """``functools.partial`` and bound methods."""
        return issubclass(type(obj), (functools.partial, types.MethodType))

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """Function, arguments and keywords; or the object."""
        if isinstance(obj, types.MethodType):
            return {"__self__": obj.__self__}
        parts = {"func": obj.func, "args": obj.args, "keywords": obj.keywords}
        add_beside(parts, attributes_of(obj), "__dict__")
        return parts

    def names(self, obj: Any) -> Sequence[str]:
        """The parts."""
        return list(self.parts(obj))

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """All; what they hold may be changed itself."""
        return f"the {name} of a {type(obj).__name__} cannot be changed; replace it as a whole"
