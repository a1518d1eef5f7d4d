# SPDX-License-Identifier: Apache-2.0
"""Copy-on-write clones for PyTorch: ``torchcow.clone(model)`` is a ``copy.deepcopy(model)`` that defers the copying.

Only the engine is imported with the package. The modules of all other names load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torchcow import _native as _native  # first, because it explains what is missing
from torchcow.engine import hooks as _hooks
from torchcow.engine.clone import clone

if TYPE_CHECKING:
    from torchcow.engine.materialize import materialize
    from torchcow.engine.patch import Patch, deepcopy, patch
    from torchcow.engine.reading import reading
    from torchcow.engine.reshare import Reshared, reshare
    from torchcow.errors import (
        CloneError,
        FileError,
        InternalError,
        IsolationError,
        PathError,
        RegistryError,
        StateError,
    )
    from torchcow.persist.delta import load_delta, save_delta
    from torchcow.registry import Registry, Version
    from torchcow.report.accounting import Event, Ledger, events, is_shared, ledger
    from torchcow.report.budget import Reservation, headroom, reserve, worst_case
    from torchcow.report.diff import Diff, TensorDiff, diff
    from torchcow.report.explain import Explanation, Unshared, explain
    from torchcow.report.memory import Memory, memory
    from torchcow.report.trace import Callback, Materialization, Trace, on_materialize, trace
    from torchcow.snapshots.prototype import Prototype

_hooks.install()

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "CloneError",
    "Diff",
    "Event",
    "Explanation",
    "FileError",
    "InternalError",
    "IsolationError",
    "Ledger",
    "Materialization",
    "Memory",
    "Patch",
    "PathError",
    "Prototype",
    "Registry",
    "RegistryError",
    "Reservation",
    "Reshared",
    "StateError",
    "TensorDiff",
    "Trace",
    "Unshared",
    "Version",
    "clone",
    "deepcopy",
    "diff",
    "events",
    "explain",
    "headroom",
    "is_shared",
    "ledger",
    "load_delta",
    "materialize",
    "memory",
    "on_materialize",
    "patch",
    "reading",
    "reserve",
    "reshare",
    "save_delta",
    "trace",
    "worst_case",
]

# The same as the imports above, for the interpreter; tests/package/test_imports.py compares the two.
_MODULES = {
    "engine.materialize": ("materialize",),
    "engine.patch": ("Patch", "deepcopy", "patch"),
    "engine.reading": ("reading",),
    "engine.reshare": ("Reshared", "reshare"),
    "errors": (
        "CloneError",
        "FileError",
        "InternalError",
        "IsolationError",
        "PathError",
        "RegistryError",
        "StateError",
    ),
    "persist.delta": ("load_delta", "save_delta"),
    "registry": ("Registry", "Version"),
    "report.accounting": ("Event", "Ledger", "events", "is_shared", "ledger"),
    "report.budget": ("Reservation", "headroom", "reserve", "worst_case"),
    "report.diff": ("Diff", "TensorDiff", "diff"),
    "report.explain": ("Explanation", "Unshared", "explain"),
    "report.memory": ("Memory", "memory"),
    "report.trace": ("Callback", "Materialization", "Trace", "on_materialize", "trace"),
    "snapshots.prototype": ("Prototype",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_PACKAGES = ("objects", "persist", "registry", "report", "snapshots")


def __getattr__(name: str) -> Any:
    """Load the module of a public name, or a subpackage, when it is first used."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"torchcow.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:
        return importlib.import_module(f"torchcow.{name}")
    raise AttributeError(f"module 'torchcow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
