# SPDX-License-Identifier: Apache-2.0
"""Objects in general: their attributes and slots."""

from __future__ import annotations

import dataclasses
import inspect
import types
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torchcow.objects.adapters.adapter import Reducer

T = TypeVar("T", bound=type)

_VALUES = frozenset({str, bytes, bytearray, memoryview, int, float, complex, bool, type(None), range, slice, type(...)})
_whole: tuple[type, ...] = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MappingProxyType, types.CodeType),
)


def whole(cls: T) -> T:
    """Decorate a class whose instances have no parts."""
    global _whole
    _whole = (*_whole, cls)
    return cls


def is_whole(obj: Any) -> bool:
    """Return whether an object has no parts: a plain value, or code (a function, a class, a module of Python)."""
    kind = type(obj)
    return kind in _VALUES or issubclass(kind, _whole)


class Attributes:
    """The adapter for all objects that no other one accepts: their attributes and slots."""

    reducers: Sequence[tuple[type, Reducer]] = ()
    foreign: tuple[type, ...] = (object,)
    """Bases whose class attributes and properties are no names, because a clone does not change them."""

    def accepts(self, obj: Any) -> bool:
        """Any object."""
        return True

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """Attributes of the instance, and slots that have a value."""
        return {} if is_whole(obj) else attributes_of(obj)

    def names(self, obj: Any) -> Sequence[str]:
        """The parts, properties with a setter, and plain values in the class."""
        found = dict.fromkeys(self.parts(obj))
        if not is_whole(obj):
            for cls in type(obj).__mro__:
                if cls not in self.foreign:
                    found.update((name, None) for name, value in vars(cls).items() if _is_value(name, value))
        return list(found)

    def get(self, obj: Any, name: str) -> Any:
        """The part, or what the class has for that name."""
        parts = self.parts(obj)
        return parts[name] if name in parts else getattr(obj, name)

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """Frozen dataclasses, properties without a setter, names that are no slots."""
        cls = type(obj)
        if dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            return f"{cls.__name__} is a frozen dataclass; replace it as a whole"
        found = inspect.getattr_static(cls, name, None)
        if isinstance(found, property) and found.fset is None:
            return f"{name!r} is a property of {cls.__name__} without a setter"
        if not hasattr(obj, "__dict__") and not hasattr(type(found), "__set__"):
            return f"{name!r} is no slot of {cls.__name__}, whose instances have nothing but slots"
        return None

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Set the attribute."""
        setattr(obj, name, value)

    def aliased(self, obj: Any, name: str, value: Any) -> bool:
        """No: each shallow copy has attributes of its own."""
        return False


def attributes_of(obj: Any, slots: bool = True) -> dict[str, Any]:
    """Return what is in the ``__dict__`` of an instance and in its slots; no code of its class runs."""
    found: dict[str, Any] = {}
    try:
        attributes = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        attributes = None
    if isinstance(attributes, dict):
        found.update(attributes)
        for name in [name for name in found if type(name) is not str]:  # which no path could name
            del found[name]
    for name, member in slots_of(type(obj)).items() if slots else ():
        try:
            value = member.__get__(obj)
        except AttributeError:  # an empty slot
            continue
        found.setdefault(name, value)
    return found


def slots_of(cls: type) -> dict[str, types.MemberDescriptorType]:
    """Return the slots of a class and its bases by name. Private names are mangled."""
    try:
        return _slots[cls]
    except KeyError:
        pass
    except TypeError:  # a class without a hash
        return _find_slots(cls)
    _slots[cls] = found = _find_slots(cls)
    return found


def _find_slots(cls: type) -> dict[str, types.MemberDescriptorType]:
    found: dict[str, types.MemberDescriptorType] = {}
    for base in cls.__mro__:
        members = vars(base)
        declared = members.get("__slots__", ())
        names = declared if isinstance(declared, (list, tuple)) else ()
        ordered = [_mangled(base, name) for name in names if isinstance(name, str)]  # as declared, not as sorted
        for name in (*ordered, *members):
            member = members.get(name)
            if isinstance(member, types.MemberDescriptorType) and base.__flags__ & _MADE_BY_PYTHON:
                found.setdefault(name, member)
    return found


def _mangled(cls: type, name: str) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{cls.__name__.lstrip('_')}{name}" if private else name


_slots: weakref.WeakKeyDictionary[type, dict[str, types.MemberDescriptorType]] = weakref.WeakKeyDictionary()
_MADE_BY_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class comes from a class statement, or nearly


def _is_value(name: str, value: Any) -> bool:
    if name.startswith("_"):
        return False
    if isinstance(value, property):
        return value.fset is not None
    return not (callable(value) or hasattr(type(value), "__get__"))
