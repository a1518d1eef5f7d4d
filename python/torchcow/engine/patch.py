"""``patch``: ``copy.deepcopy`` becomes copy-on-write, for code that nobody wants to change.

The code of the function ``copy.deepcopy`` is exchanged, not the name: whoever imported the function before, or holds it
as a default argument, gets the new behaviour, and the old one back at the end.
"""

from __future__ import annotations

import copy
import threading
import types
from collections.abc import Iterable
from typing import Any, TypeVar

from torchcow._native import _C

T = TypeVar("T")

_lock = threading.Lock()
_active: list[Patch] = []
_function = copy.deepcopy
_original: Any = getattr(_function, "__code__", None)


class Patch:
    """A patch that is on. :meth:`Patch.remove` ends it, and so does the end of a ``with`` block."""

    def __init__(self, exclude: tuple[type, ...]):
        self._exclude = exclude

    def remove(self) -> None:
        """End this patch; with the last one, ``copy.deepcopy`` is what it was. A second call does nothing."""
        with _lock:
            if self in _active:
                _active.remove(self)
                _apply()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def patch(*, exclude: type | Iterable[type] = ()) -> Patch:
    """Make ``copy.deepcopy`` share tensor memory copy-on-write, in the whole process, until the patch is removed.

    Results and errors stay those of ``copy.deepcopy``. It also reaches modules that have imported the function by name.
    Patches may be nested and overlap, in any thread; while several are on, what any of them excludes is excluded.

    Args:
        exclude: a class or classes whose objects are still copied at once, with all that they contain.
            :func:`torchcow.deepcopy` makes a single ordinary copy.

    Returns:
        The patch, which can be used in a ``with`` statement.

    Raises:
        TypeError: ``exclude`` holds something that is no class.
        RuntimeError: something else has replaced ``copy.deepcopy`` or its code.

    Example:
        >>> import copy, torch, torchcow
        >>> model = torch.nn.Linear(64, 64)
        >>> with torchcow.patch():
        ...     best = copy.deepcopy(model)
        >>> torchcow.is_shared(best.weight), torchcow.is_shared(copy.deepcopy(model).weight)
        (True, False)
    """
    classes = (exclude,) if isinstance(exclude, type) else tuple(exclude)
    for cls in classes:
        if not isinstance(cls, type):
            raise TypeError(f"patch(exclude=...): expected classes, got {cls!r} of type {type(cls).__name__}")
    new = Patch(classes)
    with _lock:
        _check_that_it_is_copys()
        _active.append(new)
        _apply()
    return new


def deepcopy(obj: T, memo: dict[int, Any] | None = None) -> T:
    """Return what ``copy.deepcopy(obj, memo)`` returns, sharing nothing, whether a :func:`patch` is on or not.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(64, 64)
        >>> with torchcow.patch():
        ...     torchcow.is_shared(torchcow.deepcopy(model).weight)
        False
    """
    result: T = _C.ordinary_deepcopy(obj, memo)
    return result


def _check_that_it_is_copys() -> None:
    code = getattr(_function, "__code__", None)
    if copy.deepcopy is not _function or code is None or code not in (_original, _code):
        where = code.co_filename if code is not None else "no Python code"
        raise RuntimeError(
            f"copy.deepcopy is not the function of Python's standard library any more (its code is from {where}): "
            "something else has replaced it. Remove that first, or use torchcow.clone."
        )


def _apply() -> None:
    """Bring the function and the engine into the state that the active patches ask for."""
    if _active:
        excluded = {cls for one in _active for cls in one._exclude}
        _C.set_patch(tuple(excluded))
        _function.__code__ = _code
    else:
        if _function.__code__ is _code:  # else somebody has exchanged it again, and that is theirs to undo
            _function.__code__ = _original
        _C.set_patch(None)


def _replacement() -> types.CodeType:
    """The code of a function with the signature of ``copy.deepcopy`` that calls the engine.

    The engine's function is a constant of the code: the module ``copy`` gets no new name.
    """

    def deepcopy(x: Any, memo: Any = None, _nil: Any = ()) -> Any:
        engine: Any = b"the engine"
        return engine(x, memo)

    code = deepcopy.__code__
    return code.replace(
        co_consts=tuple(_C.patched_deepcopy if value == b"the engine" else value for value in code.co_consts)
    )


_code = _replacement()
