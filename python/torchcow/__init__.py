"""Copy-on-write clones for PyTorch: ``torchcow.clone(model)`` is ``copy.deepcopy(model)`` that copies nothing yet."""

from torchcow import _native as _native  # before the others: it explains what is missing
from torchcow.budget import Reservation, headroom, reserve, worst_case
from torchcow.clone import clone
from torchcow.components import CloneError
from torchcow.delta import load_delta, save_delta
from torchcow.diff import Diff, TensorDiff, diff
from torchcow.errors import FileError, IsolationError, RegistryError, StateError
from torchcow.explain import Explanation, Unshared, explain
from torchcow.ledger import Event, Ledger, events, is_shared, ledger
from torchcow.materialize import materialize
from torchcow.memory import Memory, memory
from torchcow.parts import PathError
from torchcow.patch import Patch, deepcopy, patch
from torchcow.prototype import Prototype
from torchcow.reading import reading
from torchcow.registry import Registry, Version
from torchcow.reshare import Reshared, reshare
from torchcow.trace import Callback, Materialization, Trace, on_materialize, trace

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
