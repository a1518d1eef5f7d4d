# SPDX-License-Identifier: Apache-2.0
"""``Prototype``: a private snapshot of an object, from which clones are made."""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from torchcow._native import _C
from torchcow.errors import PathError
from torchcow.objects.adapters import Reducer, adapter_of, reducers
from torchcow.objects.adapters.attributes import whole
from torchcow.objects.paths import Place, locate
from torchcow.objects.tensors import named_tensors
from torchcow.snapshots.components import Reducers, copied, copied_or_explained, substitute
from torchcow.snapshots.progress import reporting

_NOTHING = object()


@whole
class Prototype:
    """A snapshot of an object that does not change, and that makes clones of the object.

    The snapshot is taken copy-on-write and shares memory with ``obj`` and with the clones. Later writes to ``obj`` or
    to a clone do not reach it. Put objects that belong together into one prototype: the optimizer in
    ``Prototype({"model": model, "optimizer": optimizer})`` drives the model beside it, in each clone. Any number of
    threads may use one prototype at once. A copy of a prototype has the same snapshot.

    The constructor also makes one clone and drops it, to find out whether that is possible.

    Args:
        obj: anything that can be cloned: a module, or a dict or dataclass of model, optimizer, scheduler, preprocessing
            and metrics.
        name: its name in reports.
        metadata: further facts; kept as a copy that is read-only.
        each: called with each clone when everything else is done, before it is returned. Its result is ignored.
        share: dotted paths of components that are not cloned: all clones have the same object.
        drop: dotted paths of components that are None in clones.
        rebuild: functions without arguments by dotted path. Each clone gets the result of a call of its own.

    Raises:
        CloneError: components such as locks, open files and CUDA graphs cannot be cloned, and ``share``, ``drop`` and
            ``rebuild`` do not name them. The message has the dotted path of each.
        PathError: one of these paths leads nowhere.
        ValueError: two of these arguments name the same component.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> prototype = torchcow.Prototype({"model": model, "optimizer": optimizer}, "regression")
        >>> mine = prototype.clone(**{"model.1.p": 0.3, "optimizer.lr": 0.01})
        >>> mine["model"][1].p, mine["optimizer"].param_groups[0]["lr"]
        (0.3, 0.01)
        >>> mine["optimizer"].param_groups[0]["params"][0] is mine["model"][0].weight
        True
    """

    def __init__(
        self,
        obj: Any,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        each: Callable[[Any], object] | None = None,
        share: Iterable[str] = (),
        drop: Iterable[str] = (),
        rebuild: Mapping[str, Callable[[], Any]] | None = None,
    ):
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected a string or None, got {name!r} of type {type(name).__name__}")
        if metadata is not None and not isinstance(metadata, Mapping):
            raise TypeError(f"metadata: expected a mapping or None, got a {type(metadata).__name__}")
        if each is not None and not callable(each):
            raise TypeError(f"each: expected a function that takes a clone, got {each!r}")
        self._name = name
        self._metadata = MappingProxyType(copy.deepcopy(dict(metadata or {})))
        self._each = each
        substitutions = substitute(obj, share, drop, rebuild)
        self._arguments = substitutions.arguments
        self._by_path = tuple(substitutions.by_path.items())
        counted, used = _counted(reducers())
        self._snapshot = copied_or_explained(obj, substitutions.memo, counted, f"this {_kind(obj)}")
        self._reducers = reducers() if used else ()
        copied_or_explained(self._snapshot, substitutions.trial, self._reducers, f"a copy of this {_kind(obj)}")
        self._plain = not (self._each or self._by_path or self._reducers)
        self._lock = threading.RLock()
        self._shallow: Any = _NOTHING
        self._places: dict[str, Place] = {}  # of earlier changes, by path

    @property
    def name(self) -> str | None:
        """Its name in reports."""
        return self._name

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata that was given, read-only."""
        return self._metadata

    def clone(self, /, deep: bool = True, **changes: Any) -> Any:
        """Return a clone of the snapshot, with changes.

        Args:
            deep: True for a copy-on-write clone, which is independent of everything else. False for a shallow clone:
                ``copy.copy`` of one deep clone, the same for all shallow clones of this prototype. Each has its own
                attributes, or items; the objects behind them are common to all shallow clones, but not to the
                snapshot or to deep clones.
            changes: new values by dotted path, ``clone(**{"dropout.p": 0.3, "optimizer.lr": 1e-4})``. The values are
                cloned as well. An option of an optimizer stands for that of all its parameter groups. An object with
                two names, such as a tied parameter, gets the new value under the name that is given.

        Raises:
            PathError: a path leads nowhere, and the message says what exists there; or the object at the path does not
                take the value; or, in a shallow clone, the place is common to other clones. No clone was made.
            CloneError: one of the values cannot be cloned.
            ValueError: one change lies inside of another.

        Example:
            >>> import torch, torchcow
            >>> prototype = torchcow.Prototype(torch.nn.Dropout(0.1))
            >>> prototype.clone(p=0.3).p, prototype.clone().p
            (0.3, 0.1)
        """
        if deep is True and not changes and self._plain:
            return _C.clone(self._snapshot, None, False)
        if deep is not True and deep is not False:
            raise TypeError(f"deep: expected True or False, got {deep!r}; changes are given by name: clone(**changes)")
        places = self._check(changes, deep)
        values = copied_or_explained(changes, {}, reducers(), "the dict of changes") if changes else {}
        clone = self._deep() if deep else self._shallow_copy()
        for place in places:
            place.within(clone).replace(values[place.path])
        if self._each is not None:
            self._each(clone)
        return clone

    def spawn(
        self,
        n: int,
        each: Callable[[Any, int], object] | None = None,
        progress: bool | Callable[[int, int], object] | None = None,
    ) -> list[Any]:
        """Return ``n`` clones.

        Args:
            n: how many, 0 or more.
            each: called with each clone and its index, after the prototype's own ``each``. Its result is ignored.
            progress: None for a progress bar on stderr, if that is a terminal and the work takes longer than a second;
                True for a bar in any case, False for none; or a function that is called with the number of clones that
                are done, and ``n``.

        Raises:
            ValueError: ``n`` is negative.
            TypeError: ``n`` is not a whole number.

        Example:
            >>> import torch, torchcow
            >>> prototype = torchcow.Prototype(torch.nn.Dropout(0.1))
            >>> [one.p for one in prototype.spawn(3, lambda one, i: setattr(one, "p", i / 10))]
            [0.0, 0.1, 0.2]
        """
        count = _count(n)
        clones = []
        with reporting(f"cloning {self._name or 'a prototype'}", count, progress) as tick:
            for index in range(count):
                clone = self.clone()
                if each is not None:
                    each(clone, index)
                clones.append(clone)
                tick()
        return clones

    def _deep(self) -> Any:
        clone = copied(self._snapshot, None, self._reducers)
        for path, make in self._by_path:
            locate(clone, path).replace(make())
        return clone

    def _shallow_copy(self) -> Any:
        with self._lock:
            if self._shallow is _NOTHING:
                self._shallow = self._deep()
        return copy.copy(self._shallow)

    def _check(self, changes: Mapping[str, Any], deep: bool) -> list[Place]:
        places = []
        for path, value in changes.items():
            for other in changes:
                if path.startswith(f"{other}."):
                    raise ValueError(f"the change of {path!r} lies inside of the change of {other!r}: give one of them")
            for component, argument in self._arguments.items():
                if path.startswith(f"{component}."):
                    raise PathError(
                        f"{path!r} cannot be set: {component!r} is not cloned but in {argument}=, see each="
                    )
            if path not in self._places:
                self._places[path] = locate(self._snapshot, path)
            place = self._places[path]
            place.check(value)
            if not deep and (len(place.names) > 1 or adapter_of(place.holder).aliased(place.holder, path, value)):
                raise PathError(
                    f"{path!r} cannot be set in a shallow clone: all shallow clones have it in common and would change "
                    "with this one; clone with deep=True"
                )
            places.append(place)
        return places

    def __torchcow_snapshot__(self) -> Any:
        """What the functions of the package look at, when they are given a prototype."""
        return self._snapshot

    def __repr__(self) -> str:
        tensors = [tensor for _, tensor in named_tensors(self._snapshot)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        name = "" if self._name is None else f"{self._name!r}, "
        return f"Prototype({name}{_kind(self._snapshot)}, {len(tensors)} tensors, {size:,} bytes)"

    def __copy__(self) -> Prototype:
        # The snapshot does not change, so the copies may have the same one.
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, _lock=threading.RLock(), _shallow=_NOTHING)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Prototype:
        return self.__copy__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Prototype cannot be pickled; keep it in a torchcow.Registry, or pickle what clone() returns")


def _counted(uncounted: Reducers) -> tuple[Reducers, list[type]]:
    """Return the same reducers, and a list that grows with each use. If it stays empty, clones need no reducers."""
    used: list[type] = []

    def counting(cls: type, reduce: Reducer) -> Reducer:
        def counted(obj: Any) -> Any:
            used.append(cls)
            return reduce(obj)

        return counted

    return tuple((cls, counting(cls, reduce)) for cls, reduce in uncounted), used


def _count(n: Any) -> int:
    try:
        count = -1 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        count = -1
    if count < 0:
        raise (ValueError if type(n) is int else TypeError)(f"n: expected a whole number of at least 0, got {n!r}")
    return count


def _kind(obj: Any) -> str:
    return type(obj).__name__
