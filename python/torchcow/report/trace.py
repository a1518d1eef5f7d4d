# SPDX-License-Identifier: Apache-2.0
"""``trace`` and ``on_materialize``: first writes, and the code that makes them, as they happen."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torchcow._native import _C
from torchcow.engine import names as _names
from torchcow.report.table import Table, Tabular, size


@dataclass(frozen=True)
class Materialization:
    """A first write by ``operator`` to ``bytes`` bytes on ``device``; ``way`` is "steal", "copy" or "skip".

    ``thread`` is the name of the Python thread that wrote, or "" if that thread runs no Python. ``stack`` is its Python
    stack, innermost call last, if a :func:`trace` recorded it. ``name`` is the dotted name of the tensor in a module
    that was cloned, if it has one.
    """

    way: str
    operator: str
    bytes: int
    device: str
    thread: str
    stack: traceback.StackSummary | None = None
    _storage: int = field(default=0, repr=False, compare=False)
    _name: str | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str | None:
        """The dotted name; reading it searches the modules that were cloned."""
        return self._name or (_names.find(self._storage) if self._storage else None)

    @property
    def culprit(self) -> str:
        """``file:line in function`` of the innermost call outside of torch and this package, or ""."""
        for frame in reversed(self.stack or ()):
            if not frame.filename.startswith(_LIBRARIES):
                return f"{frame.filename}:{frame.lineno} in {frame.name}"
        return ""


class Callback:
    """A callback that is active until :meth:`Callback.remove`, or until the end of a ``with`` block."""

    def __init__(self, function: Callable[[Materialization], object], stacks: bool = False) -> None:
        self.function = function
        self._stacks = stacks

    def remove(self) -> None:
        """End the calls. A second call of ``remove`` does nothing."""
        with _lock:
            if self in _callbacks:
                _callbacks.remove(self)
            _install()

    def __enter__(self) -> Callback:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


@dataclass
class Trace(Tabular):
    """The first writes that a :func:`trace` has recorded so far, oldest first. ``print(trace)`` shows a table."""

    materializations: list[Materialization] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """The bytes of all storages in the trace."""
        return sum(one.bytes for one in self.materializations)

    def _table(self) -> Table:
        return Table(
            ["tensor", "operator", "way", "size", "where"],
            caption=f"{len(self.materializations)} first writes, {size(self.bytes)}.",
            rows=[(m.name or "?", m.operator, m.way, size(m.bytes), m.culprit) for m in self.materializations],
            left=frozenset({"operator", "way", "where"}),
        )


def on_materialize(function: Callable[[Materialization], object]) -> Callback:
    """Call ``function`` at each first write in this process, from any thread, until the callback is removed.

    The thread that writes calls it, after the tensor got its own memory and before the write continues, outside of all
    locks of the engine. An exception in ``function`` does not reach the write; ``sys.unraisablehook`` reports it. First
    writes that ``function`` makes are not reported. It must not read the tensor, which may not hold its values yet. The
    main thread reports first writes of threads that run no Python, a little later.

    Args:
        function: called with one :class:`Materialization`, without a stack.

    Returns:
        A handle with ``remove()``, which is also a context manager.

    Raises:
        TypeError: ``function`` is not callable.

    Example:
        >>> import torch, torchcow
        >>> source = torch.zeros(1000)
        >>> variant = torchcow.clone(source)
        >>> with torchcow.on_materialize(lambda write: print(write.operator, write.way, write.bytes)):
        ...     _ = variant.add_(1)
        aten::add_.Tensor copy 4000
    """
    if not callable(function):
        raise TypeError(f"on_materialize: expected a function, got {type(function).__name__}")
    return _add(Callback(function))


@contextmanager
def trace() -> Iterator[Trace]:
    """Record the first writes of all threads within the block, each with the Python stack of the thread that wrote.

    Returns:
        A context manager that gives the :class:`Trace`, which can be read within the block and after it.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(64, 64)
        >>> variant = torchcow.clone(model)
        >>> with torchcow.trace() as writes, torch.no_grad():
        ...     _ = variant.weight.zero_()
        >>> [(write.name, write.operator) for write in writes.materializations]
        [('Linear.weight', 'aten::zero_')]
    """
    found = Trace()
    callback = _add(Callback(found.materializations.append, stacks=True))
    try:
        yield found
    finally:
        callback.remove()
        names = _names.find_all({one._storage for one in found.materializations})
        found.materializations[:] = [
            replace(one, _name=names.get(one._storage), _storage=0) for one in found.materializations
        ]


_lock = threading.Lock()
_callbacks: list[Callback] = []
_LIBRARIES = tuple(str(sys.modules[name].__path__[0]) for name in ("torch", "torchcow"))


def _add(callback: Callback) -> Callback:
    with _lock:
        _callbacks.append(callback)
        _install()
    return callback


def _install() -> None:
    _C.set_listener(_notify if _callbacks else None)


def _notify(event: _C.Event, by_writer: bool) -> None:
    """Call the callbacks; ``by_writer``: in the thread that writes, whose name and stack are the writer's."""
    stack = None
    errors: list[BaseException] = []
    thread = threading.current_thread().name if by_writer else ""
    write = Materialization(event.way, event.operator, event.bytes, event.device, thread, _storage=event.storage)
    for callback in tuple(_callbacks):
        notification = write
        if callback._stacks and by_writer:
            if stack is None:
                frames = traceback.walk_stack(sys._getframe(1))
                stack = traceback.StackSummary.extract(frames, lookup_lines=False)
                stack.reverse()
            notification = replace(write, stack=stack)
        try:
            callback.function(notification)
        except BaseException as error:
            errors.append(error)
    # The engine passes what leaves this function to sys.unraisablehook; Python code cannot make that hook's argument.
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup("callbacks of torchcow.on_materialize", errors)
