"""Copy-on-write clones for PyTorch: ``torchcow.clone(model)`` is ``copy.deepcopy(model)`` that copies nothing yet."""

from torchcow.clone import clone
from torchcow.ledger import Event, Ledger, Memory, events, is_shared, ledger, memory
from torchcow.materialize import materialize
from torchcow.patch import Patch, deepcopy, patch

__version__ = "0.1.0"

__all__ = [
    "Event",
    "Ledger",
    "Memory",
    "Patch",
    "clone",
    "deepcopy",
    "events",
    "is_shared",
    "ledger",
    "materialize",
    "memory",
    "patch",
]
