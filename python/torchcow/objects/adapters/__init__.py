# SPDX-License-Identifier: Apache-2.0
"""What objects consist of, by class: one small protocol, and the adapters that implement it.

In reading order:

- ``adapter``: the protocol
- ``attributes``: objects in general, with their attributes and slots; the base of the other adapters
- ``keys``: names for the keys of a mapping
- ``containers``: mappings, sequences, sets, partial functions
- ``torch``: modules, optimizers, tensors
- ``sklearn``, ``keras``: loaded after their framework was imported. NumPy's arrays have no parts
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import threading
import warnings
from importlib import util
from pathlib import Path
from typing import Any

from torch import Tensor, nn  # the name torch is that of a module of this package

from torchcow.objects.adapters.adapter import Adapter, Reducer
from torchcow.objects.adapters.attributes import Attributes
from torchcow.objects.adapters.containers import ForeignMappings, Mappings, Partials, Sequences
from torchcow.objects.adapters.torch import Modules, Optimizers, Tensors

__all__ = ["Adapter", "Reducer", "adapter_of", "names_missing", "reducers", "register", "unregister"]

_lock = threading.Lock()
_registered: list[Adapter] = []
_of_frameworks: list[Adapter] = []
_tensors, _modules, _mappings, _sequences = Tensors(), Modules(), Mappings(), Sequences()
_own: list[Adapter] = [
    *(_tensors, Optimizers(), _modules, _mappings, ForeignMappings(), _sequences, Partials(), Attributes())
]
_by_type: dict[type, Adapter] = {
    Tensor: _tensors,
    nn.Parameter: _tensors,
    dict: _mappings,
    list: _sequences,
    tuple: _sequences,
}
_pending = {"keras": "Keras", "sklearn": "Estimators"}


def register(adapter: Adapter) -> None:
    """Use ``adapter`` for the objects that it accepts, before all adapters that were registered earlier.

    Example:
        >>> import torchcow.objects.adapters
        >>> from torchcow.objects.adapters.attributes import Attributes
        >>> class Point:
        ...     def __init__(self):
        ...         self.xy = [0.0, 1.0]
        >>> class Points(Attributes):
        ...     def accepts(self, obj):
        ...         return isinstance(obj, Point)
        ...
        ...     def parts(self, obj):
        ...         return {"x": obj.xy[0], "y": obj.xy[1]}
        ...
        ...     def replace(self, obj, name, value):
        ...         obj.xy["xy".index(name)] = value
        >>> points = Points()
        >>> torchcow.objects.adapters.register(points)
        >>> torchcow.Prototype({"at": Point()}).clone(**{"at.x": 5.0})["at"].xy
        [5.0, 1.0]
        >>> torchcow.objects.adapters.unregister(points)
    """
    with _lock:
        _registered.insert(0, adapter)


def unregister(adapter: Adapter) -> None:
    """Remove an adapter that was registered. Another one is ignored."""
    with _lock:
        _registered[:] = [one for one in _registered if one is not adapter]


def adapter_of(obj: Any) -> Adapter:
    """Return the first adapter that accepts ``obj``; the last one accepts everything."""
    _load()
    if _registered or _of_frameworks:
        for adapter in (*_registered, *_of_frameworks):
            if adapter.accepts(obj):
                return adapter
    return built_in(obj)


def built_in(obj: Any) -> Adapter:
    """Return the adapter for ``obj`` that every process has, whatever it imports and registers."""
    kind = type(obj)
    if issubclass(kind, nn.Module):
        return _modules
    return _by_type.get(kind) or next(adapter for adapter in _own if adapter.accepts(obj))


def reducers() -> tuple[tuple[type, Reducer], ...]:
    """Return the reducers of all adapters: how a prototype copies classes of frameworks."""
    _load()
    return tuple(pair for adapter in (*_registered, *_of_frameworks) for pair in adapter.reducers)


def names_missing(framework: str) -> list[str]:
    """Return the private names that the adapter of a framework imports, and that the installed framework lacks.

    They are looked for in the framework's files; the framework is not imported.

    Example:
        >>> from torchcow.objects.adapters import names_missing
        >>> names_missing("sklearn")
        []
    """
    spec = util.find_spec(framework)
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    source = Path(__file__).with_name(f"{framework}.py").read_text()
    lacking = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{framework}.src."):
            file = folder.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
            text = file.read_text() if file.is_file() else ""
            lacking += [f"{node.module}.{one.name}" for one in node.names if not re.search(rf"\b{one.name}\b", text)]
    return lacking


def _load() -> None:
    """Load the adapters of frameworks that have been imported since the last time."""
    for name in list(_pending):
        if name not in sys.modules:
            continue
        with _lock:
            if name not in _pending:
                continue
            try:
                module = importlib.import_module(f"torchcow.objects.adapters.{name}")
                _of_frameworks.append(getattr(module, _pending[name])())
                continue
            except (ImportError, AttributeError) as error:
                reason = str(error)
            finally:
                del _pending[name]  # it is tried only once
        version = getattr(sys.modules[name], "__version__", "of an unknown version")
        warnings.warn(
            f"torchcow has no adapter for {name} {version}: {reason}. Prototypes copy its objects by their own "
            "protocol, which may lose a part of their state, and paths use the names of attributes only. Install a "
            f"version of {name} that torchcow supports.",
            RuntimeWarning,
            stacklevel=2,
        )
