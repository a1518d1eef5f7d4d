"""What the objects of frameworks consist of: one small protocol, and a registry of those who implement it.

In reading order:

- ``adapter``: the protocol
- ``attributes``: objects in general: their attributes and slots; what the other adapters build upon
- ``containers``: mappings, sequences, sets, partial functions
- ``torch``: modules, optimizers, tensors
- ``sklearn``, ``keras``: imported once their framework is. NumPy's arrays have no parts, and are copied
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

from torchcow.objects.adapters.adapter import Adapter, Reducer
from torchcow.objects.adapters.attributes import Attributes
from torchcow.objects.adapters.containers import ForeignMappings, Mappings, Partials, Sequences
from torchcow.objects.adapters.torch import Modules, Optimizers, Tensors

__all__ = ["Adapter", "Reducer", "adapter_of", "names_missing", "reducers", "register", "unregister"]

_lock = threading.Lock()
_registered: list[Adapter] = []
_of_frameworks: list[Adapter] = []
_mappings, _sequences = Mappings(), Sequences()
_own: list[Adapter] = [
    *(Tensors(), Optimizers(), Modules(), _mappings, ForeignMappings(), _sequences, Partials(), Attributes())
]
_by_type: dict[type, Adapter] = {dict: _mappings, list: _sequences, tuple: _sequences}
_pending = {"keras": "Keras", "sklearn": "Estimators"}


def register(adapter: Adapter) -> None:
    """Let ``adapter`` answer for the objects that it accepts, before all adapters that are known already.

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
    """Take an adapter away that was registered; one that was not is ignored."""
    with _lock:
        _registered[:] = [one for one in _registered if one is not adapter]


def adapter_of(obj: Any) -> Adapter:
    """Return the first adapter that accepts ``obj``; the last one accepts everything."""
    _load()
    for adapter in (*_registered, *_of_frameworks):
        if adapter.accepts(obj):
            return adapter
    return built_in(obj)


def built_in(obj: Any) -> Adapter:
    """Return the adapter for ``obj`` that every process has, whatever it imports and registers."""
    return _by_type.get(type(obj)) or next(adapter for adapter in _own if adapter.accepts(obj))


def reducers() -> tuple[tuple[type, Reducer], ...]:
    """Return how classes of frameworks are copied that define another protocol, for all adapters together."""
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
    for name in [name for name in _pending if name in sys.modules]:
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
