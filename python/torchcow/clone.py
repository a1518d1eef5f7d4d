"""``clone``: what ``copy.deepcopy`` returns, with tensor memory shared until somebody writes.

The walk over the object is ``copy.deepcopy`` itself. Three types are intercepted, through the dispatch table
that ``copy`` looks into before anything else: parameters, plain tensors, and storages. The entries act only
while ``clone`` runs, on its own memo; for every other deep copy they do what ``copy`` would have done.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from torchcow._names import remember
from torchcow._native import _C
from torchcow.ledger import is_shared

T = TypeVar("T")
_Copier = Callable[[Any, dict[int, Any]], Any]

_deepcopy_of_parameter = torch.nn.Parameter.__deepcopy__

# The running calls, by the identity of their memo; the memo is alive as long as its entry.
_calls: dict[int, _C.SharingCall] = {}


def clone(obj: T, memo: dict[int, Any] | None = None, *, strict: bool = False) -> T:
    """Return what ``copy.deepcopy(obj, memo)`` returns, sharing tensor memory copy-on-write.

    Source and clone are equals: whoever writes first, in whatever way, gets memory of its own for the tensor
    that is written, and nobody else notices. Tensors that cannot be shared safely are copied at once;
    :func:`torchcow.events` says which and why.

    Args:
        obj: anything that ``copy.deepcopy`` takes; typically an ``nn.Module``, or a tuple of model and optimizer.
        memo: as for ``copy.deepcopy``.
        strict: also copy every tensor whose memory is referenced from outside of ``obj``, by a view for example.

    Returns:
        The clone.

    Raises:
        Exception: whatever ``copy.deepcopy`` raises for ``obj``; the source is unchanged then.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(64, 64)
        >>> variant = torchcow.clone(model)
        >>> torchcow.is_shared(variant.weight)
        True
        >>> with torch.no_grad():
        ...     _ = variant.weight.zero_()
        >>> bool(model.weight.any()), torchcow.is_shared(variant.weight)
        (True, False)
    """
    if memo is None:
        memo = {}
    key = id(memo)
    if key in _calls:  # a __deepcopy__ method that calls clone with the memo it was given
        return copy.deepcopy(obj, memo)
    call = _C.SharingCall()
    _calls[key] = call
    try:
        result = copy.deepcopy(obj, memo)
        remember(obj, result)
        _record_subclasses(memo)
        return result
    finally:
        del _calls[key]
        call.finish(strict, gc.get_objects)


def _copy_parameter(source: torch.nn.Parameter, memo: dict[int, Any]) -> torch.nn.Parameter:
    call = _calls.get(id(memo))
    data = None
    if call is not None:
        if _as_torch_copies_it(source):
            data = call.share_parameter(source)
        else:
            _C.record_copied_tensor(source)
    if data is None:
        copied: torch.nn.Parameter = _inherited[torch.nn.Parameter](source, memo)
        return copied
    return torch.nn.Parameter(data, source.requires_grad)


def _as_torch_copies_it(source: torch.nn.Parameter) -> bool:
    """Whether torch's own method would run, seen by nobody: instances, patches and modes may have another one."""
    if getattr(source.__deepcopy__, "__func__", None) is not _deepcopy_of_parameter:
        return False
    # torch.set_default_device leaves such a mode behind for good, and it looks only at what makes tensors from nothing.
    return torch._C._len_torch_function_stack() == 0 or all(
        isinstance(mode, DeviceContext)
        for mode in _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    )


def _copy_tensor(source: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    result: torch.Tensor = _inherited[torch.Tensor](source, memo)
    call = _calls.get(id(memo))
    if call is not None:
        if source.layout == torch.strided and not source.is_quantized:
            call.meet(source)
        else:
            _C.record_copied_tensor(source)
    return result


def _copy_storage(source: torch.UntypedStorage, memo: dict[Any, Any]) -> torch.UntypedStorage:
    call = _calls.get(id(memo))
    if call is not None:
        storages: dict[int, torch.UntypedStorage] = memo.setdefault("torch", {})
        if source._cdata not in storages:
            shared = call.share_storage(source)
            if shared is not None:
                storages[source._cdata] = shared
    result: torch.UntypedStorage = _inherited[torch.UntypedStorage](source, memo)
    return result


def _record_subclasses(memo: dict[int, Any]) -> None:
    """Tensor subclasses copy themselves; the ledger says so for those that share nothing."""
    for value in list(memo.values()):
        # No isinstance: it would ask each object for its __class__, which runs foreign code and may change the memo.
        if issubclass(type(value), torch.Tensor) and type(value) not in _inherited and not is_shared(value):
            _C.record_copied_tensor(value)


def _install() -> dict[type, _Copier]:
    """Put the three entries into ``copy``'s dispatch table; return what was used before."""
    table: dict[type, _Copier] = copy._deepcopy_dispatch  # type: ignore[attr-defined]
    entries: dict[type, _Copier] = {
        torch.nn.Parameter: _copy_parameter,
        torch.Tensor: _copy_tensor,
        torch.UntypedStorage: _copy_storage,
    }
    inherited = {cls: table.get(cls, lambda source, memo: source.__deepcopy__(memo)) for cls in entries}
    table.update(entries)
    return inherited


_inherited = _install()
