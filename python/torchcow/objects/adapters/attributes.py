"""Objects in general: their attributes and slots."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torchcow.objects.adapters.adapter import Reducer

T = TypeVar("T", bound=type)

_whole: tuple[type, ...] = (
    *(type, str, bytes, bytearray, memoryview, int, float, complex, bool, type(None), range, slice, type(...)),
    *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MappingProxyType, types.CodeType),
)


def whole(cls: T) -> T:
    """Decorate a class whose instances have no parts that a path could lead to."""
    global _whole
    _whole = (*_whole, cls)
    return cls


class Attributes:
    """The adapter for everything that no other one accepts: instances with attributes, with slots, or whole objects."""

    reducers: Sequence[tuple[type, Reducer]] = ()
    foreign: tuple[type, ...] = (object,)
    """Bases whose class attributes and properties nobody wants to change in a clone."""

    def accepts(self, obj: Any) -> bool:
        """Any object."""
        return True

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """Attributes of the instance, and slots that have a value."""
        return {} if isinstance(obj, _whole) else attributes_of(obj)

    def names(self, obj: Any) -> Sequence[str]:
        """The parts, properties with a setter, and plain values in the class."""
        found = dict.fromkeys(self.parts(obj))
        if not isinstance(obj, _whole):
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


def attributes_of(obj: Any) -> dict[str, Any]:
    """The instance's ``__dict__`` and slots, without asking the class for anything."""
    found: dict[str, Any] = {}
    for cls in reversed(type(obj).__mro__):
        for name, member in vars(cls).items():
            if isinstance(member, types.MemberDescriptorType) and cls.__flags__ & _MADE_BY_PYTHON:
                try:
                    found[name] = member.__get__(obj)
                except AttributeError:
                    continue
    try:
        attributes = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        return found
    if isinstance(attributes, dict):
        found.update((name, value) for name, value in attributes.items() if isinstance(name, str))
    return found


_MADE_BY_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class comes from a class statement, or nearly


def _is_value(name: str, value: Any) -> bool:
    if name.startswith("_"):
        return False
    if isinstance(value, property):
        return value.fset is not None
    return not (callable(value) or hasattr(type(value), "__get__"))
