# SPDX-License-Identifier: Apache-2.0
"""What an object consists of, and under which names: the one place that knows, for reports, paths and files.

The adapters (:mod:`torchcow.objects.adapters`) say what the children of one object are. :func:`traverse` follows them
through a whole object. It gives each tensor the same dotted name for whoever asks.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torchcow.objects.adapters import adapter_of, built_in

#: The name of a child: unique among the children of one object.
Key = str

_EMPTY_IF_FALSE = frozenset({dict, OrderedDict, set, list, tuple})
_PARTS = (torch.nn.Module, torch.Tensor)
_ATOMS = frozenset({str, bytes, int, float, bool, complex, type(None), torch.dtype, torch.device})
# Modules of the standard library whose objects hold what a user put there. From a logger, an event loop or a thread one
# reaches what belongs to others.
_OPEN = frozenset(
    {"abc", "argparse", "builtins", "collections", "contextlib", "dataclasses", "enum", "functools", "types", "typing"}
    | {"unittest", "weakref"}
)
_CLOSED = sys.stdlib_module_names - _OPEN


def children(obj: Any, registered: bool = True) -> Iterator[tuple[Key, Any]]:
    """Yield (name, child) for each object that ``obj`` holds; no two children of one object have the same name.

    Code holds nothing: functions, classes and Python's modules have no children.

    Args:
        obj: any object.
        registered: False to leave out the adapters of frameworks and of users, which another process may not have.

    Example:
        >>> import torch
        >>> from torchcow.objects.children import children
        >>> [name for name, _ in children({1: "a", "1": "b"})]
        ['1', "'1'"]
        >>> [name for name, child in children(torch.nn.Linear(2, 2)) if isinstance(child, torch.Tensor)]
        ['weight', 'bias']
    """
    kind = type(obj)
    if kind in _ATOMS:
        return iter(())
    if not issubclass(kind, _PARTS):
        snapshot = getattr(kind, "__torchcow_snapshot__", None)
        if snapshot is not None:
            return iter((("_snapshot", snapshot(obj)),))
    adapter = adapter_of(obj) if registered else built_in(obj)
    return iter(adapter.parts(obj).items())


def traverse(
    obj: Any,
    prefix: str = "",
    into: Callable[[Any], bool] | None = None,
    of_tensor: Callable[[torch.Tensor, Key], bool] | None = None,
) -> Iterator[tuple[str, Any, bool]]:
    """Yield (dotted name, object, True) for ``obj`` and all that it holds, each object once, depth first.

    A tensor or an array that has further names is yielded again for each of them, with False. Two kinds of objects wait
    until all others have their names. Private attributes, but for modules and tensors: they may hold what has a public
    name, as the graphs of Keras do. And optimizers: their parameters have better names in the modules that own them,
    and a parameter in an optimizer is no further name.

    Numbers, strings and empty containers are left out, and so is what objects of the standard library hold that are no
    containers, such as loggers and threads.

    Args:
        obj: any object.
        prefix: the dotted name of ``obj``.
        into: asked, after an object was yielded, whether what it holds is wanted as well.
        of_tensor: asked for each child of a tensor, its gradient for example, whether it is wanted.
    """
    arrays = leaf_types()[1:]
    seen: dict[int, Any] = {}  # kept alive: the identity of a temporary could come again
    waiting: list[tuple[str, Any]] = [(prefix, obj)]
    private: deque[tuple[str, Any]] = deque()
    optimizers: dict[int, tuple[str, Any]] = {}
    ties = True
    while waiting or private or optimizers:
        if waiting or private:
            name, found = waiting.pop() if waiting else private.popleft()
        else:
            ties = False
            name, found = optimizers.pop(next(iter(optimizers)))
        kind = type(found)
        is_tensor = issubclass(kind, torch.Tensor)
        if id(found) in seen:
            if ties and (is_tensor or issubclass(kind, arrays)):
                yield name, found, False
            continue
        is_part = is_tensor or issubclass(kind, torch.nn.Module)
        if not is_part and ties and issubclass(kind, torch.optim.Optimizer):
            other = optimizers.setdefault(id(found), (name, found))
            if name.count(".") < other[0].count("."):  # the other one is that of a scheduler's reference
                optimizers[id(found)] = (name, found)
            continue
        seen[id(found)] = found
        yield name, found, True
        if not is_part and (issubclass(kind, arrays) or _is_closed(kind)):
            continue
        if into is not None and not into(found):
            continue
        start = f"{name}." if name or found is not obj else ""
        listed = [
            (key, child)
            for key, child in children(found)
            if (kind := type(child)) not in _ATOMS and (child if kind in _EMPTY_IF_FALSE else True)
        ]
        listed.reverse()
        for key, child in listed:
            if is_tensor and of_tensor is not None and not of_tensor(found, key):
                continue
            if key[:1] == "_" and not issubclass(type(child), _PARTS):
                private.append((start + key, child))
            else:
                waiting.append((start + key, child))


def leaf_types() -> tuple[type, ...]:
    """Return the classes of tensors and, once NumPy has been imported, of arrays."""
    numpy = sys.modules.get("numpy")
    array = getattr(numpy, "ndarray", None)
    return (torch.Tensor, array) if array is not None else (torch.Tensor,)


def _is_closed(kind: type) -> bool:
    module = getattr(kind, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in _CLOSED
