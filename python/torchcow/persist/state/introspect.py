# SPDX-License-Identifier: Apache-2.0
"""What a file can hold of an object: what the structure brings instead, and which classes hide their state."""

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

from torchcow.objects.adapters.attributes import slots_of
from torchcow.objects.children import children
from torchcow.persist.state.plain import NotPlainError, encode

#: The tables of a module that hold hooks, which come from the structure.
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
    """Return a description of code or a constant, which the structure brings, or None for any other object.

    A structure fits if it has the same description at the same place. A device is always the structure's.
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


def set_attribute(obj: Any, name: str, value: Any) -> None:
    """Set an attribute without ``__setattr__``, which frozen dataclasses and modules override."""
    if name in slots_of(type(obj)):
        object.__setattr__(obj, name, value)
    else:
        obj.__dict__[name] = value


def is_transparent(obj: Any) -> bool:
    """Return whether an instance holds its attributes and nothing else: no state in C, no copy protocol of its own."""
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
    """Yield the tensors that code or hooks refer to: in closures, defaults and bound objects, and containers there."""
    waiting, seen = [value], {}
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen[id(found)] = found
        if isinstance(found, torch.Tensor):
            yield found
        elif isinstance(found, torch.nn.Module):
            yield from itertools.chain(found.parameters(), found.buffers())
        elif isinstance(found, (list, tuple, dict, functools.partial, types.MethodType)):
            waiting += [child for _, child in children(found, registered=False)][::-1]
        elif isinstance(found, (types.BuiltinFunctionType, types.MethodWrapperType)):
            waiting.append(found.__self__)
        elif isinstance(found, types.FunctionType):
            waiting += [found.__kwdefaults__, found.__defaults__]
            for cell in found.__closure__ or ():
                with contextlib.suppress(ValueError):  # a name that is not bound yet
                    if not isinstance(cell.cell_contents, types.FunctionType):
                        waiting.append(cell.cell_contents)


def has_state_dict(obj: Any) -> bool:
    """Return whether an object saves and loads its own state."""
    return callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None))
