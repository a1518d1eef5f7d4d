"""Copy-on-write clones for PyTorch: ``torchcow.clone(model)`` is ``copy.deepcopy(model)`` that copies nothing yet."""

from torchcow import _native as _native  # before the others: it explains what is missing
from torchcow.engine.clone import clone
from torchcow.engine.materialize import materialize
from torchcow.engine.patch import Patch, deepcopy, patch
from torchcow.engine.reading import reading
from torchcow.engine.reshare import Reshared, reshare
from torchcow.errors import FileError, IsolationError, RegistryError, StateError
from torchcow.objects.paths import PathError
from torchcow.persist.delta import load_delta, save_delta
from torchcow.registry import Registry, Version
from torchcow.report.accounting import Event, Ledger, events, is_shared, ledger
from torchcow.report.budget import Reservation, headroom, reserve, worst_case
from torchcow.report.diff import Diff, TensorDiff, diff
from torchcow.report.explain import Explanation, Unshared, explain
from torchcow.report.memory import Memory, memory
from torchcow.report.trace import Callback, Materialization, Trace, on_materialize, trace
from torchcow.snapshots.components import CloneError
from torchcow.snapshots.prototype import Prototype

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "CloneError",
    "Diff",
    "Event",
    "Explanation",
    "FileError",
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
