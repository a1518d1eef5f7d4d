"""How objects are taken apart: attributes, what comes from the structure, which classes keep hidden state."""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import pathlib
import re
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from torchcow.objects.tensors import slots
from torchcow.persist.state.plain import NotPlainError, encode

#: Tables of a module that hold its parts, and those that hold hooks, which come from the structure.
TABLES = ("_parameters", "_buffers", "_modules")
HOOKS = frozenset(name for name in vars(torch.nn.Module()) if name.endswith("_hooks")) | {
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_is_full_backward_hook",
}

_CODE = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ModuleType,
    types.GenericAlias,
    torch._ops.OpOverload,
    torch._ops.OpOverloadPacket,
)
_CONSTANTS = (enum.Enum, torch.dtype, torch.layout, torch.memory_format, re.Pattern, pathlib.PurePath, type(...))


def given(value: Any) -> str | None:
    """Return a description of code or a constant, which the structure brings; None for anything else.

    The same description at the same place is what makes a structure fit. A device is always the structure's.
    """
    if isinstance(value, (torch.device, weakref.ref)):
        return type(value).__name__
    if isinstance(value, _CONSTANTS):
        return repr(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.dtype, numpy.ufunc)):
        return repr(value)
    if isinstance(value, _CODE):
        return f"{type(value).__name__} {getattr(value, '__qualname__', getattr(value, '__name__', value))}"
    if type(value) is functools.partial and not vars(value):
        inner = given(value.func)
        try:
            return inner and f"partial {inner} {encode([value.args, value.keywords])}"
        except NotPlainError:
            return None
    return None


def attributes(obj: Any) -> dict[str, Any]:
    """Return the attributes of an instance: of its ``__dict__`` and of its slots."""
    found = dict(getattr(obj, "__dict__", {}))
    for name in slots(type(obj)):
        if hasattr(obj, name):
            found[name] = getattr(obj, name)
    return found


def set_attribute(obj: Any, name: str, value: Any) -> None:
    """Set an attribute past ``__setattr__``: of a frozen dataclass, of a module."""
    if name in slots(type(obj)):
        object.__setattr__(obj, name, value)
    else:
        obj.__dict__[name] = value


def is_transparent(obj: Any) -> bool:
    """Whether all that an instance holds are its attributes: no state of C, no copy protocol of its own."""
    cls = type(obj)
    if any(getattr(cls, name) is not getattr(object, name) for name in ("__reduce__", "__reduce_ex__")):
        return False
    if (
        cls is not object
        and not hasattr(obj, "__dict__")
        and not any("__slots__" in vars(base) for base in cls.__mro__)
    ):
        return False
    # A type of C that keeps state makes its instances itself.
    return not any(isinstance(vars(base).get("__new__"), types.BuiltinFunctionType) for base in cls.__mro__[:-1])


def hidden_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors that code or hooks refer to: in closures, defaults and bound objects, at arm's length."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        yield from itertools.chain(value.parameters(), value.buffers())
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from hidden_tensors(item)
    elif isinstance(value, dict):
        yield from hidden_tensors(list(value.values()))
    elif isinstance(value, functools.partial):
        yield from hidden_tensors([value.func, value.args, value.keywords])
    elif isinstance(value, (types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType)):
        yield from hidden_tensors(value.__self__)
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # a name that is not bound yet
                if not isinstance(cell.cell_contents, types.FunctionType):
                    yield from hidden_tensors(cell.cell_contents)
        yield from hidden_tensors([value.__defaults__, value.__kwdefaults__])


def has_state_dict(obj: Any) -> bool:
    """Whether an object answers for its own state."""
    return callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None))
