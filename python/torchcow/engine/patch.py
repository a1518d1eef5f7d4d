# SPDX-License-Identifier: Apache-2.0
"""``patch``: makes ``copy.deepcopy`` copy-on-write, for code that should stay as it is.

A patch exchanges the code of the function ``copy.deepcopy``, not the name. So it also reaches modules that imported the
function by name or keep it as a default argument, and its end gives them the old behaviour back.
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
    """An active patch. :meth:`Patch.remove` ends it, and so does the end of a ``with`` block."""

    def __init__(self, exclude: tuple[type, ...]):
        self._exclude = exclude

    def remove(self) -> None:
        """End this patch; the end of the last one restores ``copy.deepcopy``. A second call does nothing."""
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

    Results and errors stay those of ``copy.deepcopy``. The patch also reaches modules that imported the function by
    name. Patches may be nested and overlap, in any thread; a class is excluded while any active patch excludes it.

    Args:
        exclude: a class or classes whose objects are still copied eagerly, with everything that they contain. To make
            a single ordinary copy, call :func:`torchcow.deepcopy`.

    Returns:
        The patch, which can be used in a ``with`` statement.

    Raises:
        TypeError: ``exclude`` contains an object that is not a class.
        RuntimeError: another library has replaced ``copy.deepcopy`` or its code.

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
    added = Patch(classes)
    with _lock:
        _check_that_nothing_replaced_it()
        _active.append(added)
        _apply()
    return added


def deepcopy(obj: T, memo: dict[int, Any] | None = None) -> T:
    """Return an ordinary deep copy, which shares nothing, whether a :func:`patch` is active or not.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(64, 64)
        >>> with torchcow.patch():
        ...     torchcow.is_shared(torchcow.deepcopy(model).weight)
        False
    """
    result: T = _C.ordinary_deepcopy(obj, memo)
    return result


def is_on() -> bool:
    """Return whether ``copy.deepcopy`` is copy-on-write at the moment."""
    return copy.deepcopy is _function and getattr(_function, "__code__", None) is _code


def _check_that_nothing_replaced_it() -> None:
    function: Any = copy.deepcopy
    code = getattr(function, "__code__", None)
    is_original = function is _function and getattr(function, "__globals__", None) is vars(copy)
    if not is_original or code not in (_original, _code):
        named = f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', repr(function))}"
        where = f"{code.co_filename}:{code.co_firstlineno}" if code is not None else "no Python code"
        raise RuntimeError(
            f"copy.deepcopy is not the function of Python's standard library: it was replaced by {named} ({where}). "
            "Undo that first, or call torchcow.clone."
        )


def _apply() -> None:
    """Set the code of the function, and the excluded classes of the engine, as the active patches require."""
    if _active:
        excluded = {cls for one in _active for cls in one._exclude}
        _C.set_patch(tuple(excluded))
        _function.__code__ = _code
    else:
        if _function.__code__ is _code:  # otherwise another library has exchanged it since, and has to undo that
            _function.__code__ = _original
        _C.set_patch(None)


def _replacement() -> types.CodeType:
    """Return the code of a function with the signature of ``copy.deepcopy`` that calls the engine.

    The function of the engine is a constant of the code, so the module ``copy`` gets no new name.
    """

    def deepcopy(x: Any, memo: Any = None, _nil: Any = ()) -> Any:
        engine: Any = b"the engine"
        return engine(x, memo)

    code = deepcopy.__code__
    return code.replace(
        co_consts=tuple(_C.patched_deepcopy if value == b"the engine" else value for value in code.co_consts)
    )


_code = _replacement()
