# SPDX-License-Identifier: Apache-2.0
"""Components that cannot be cloned: which they are, and what a prototype puts in their place."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from torchcow._native import _C
from torchcow.errors import CloneError
from torchcow.objects.adapters import Reducer, reducers
from torchcow.objects.adapters.attributes import whole
from torchcow.objects.children import children
from torchcow.objects.paths import check, locate, walk

Reducers = tuple[tuple[type, Reducer], ...]

# The search enters the standard library's containers, but not its locks, files, threads and pools.
_OPEN = {"builtins", "abc", "collections", "dataclasses", "enum", "functools", "typing", "types"}


_LISTED = 20
_ROUNDS = 10  # of a search; nearly always two are enough


def copied(obj: Any, memo: dict[int, Any] | None, with_reducers: Reducers) -> Any:
    """Clone ``obj`` as a prototype does: like ``torchcow.clone``, but the adapters' reducers go first."""
    return _C.clone(obj, memo, False, with_reducers) if with_reducers else _C.clone(obj, memo, False)


@whole
class StandIn:
    """Stands in a snapshot for a component that is not copied. A clone of the snapshot has what ``make`` returns."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]):
        self.make = make

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[[], Any], tuple[()]]:
        return self.make, ()


@dataclass
class Substitutions:
    """What a prototype puts in the place of the components that ``share``, ``drop`` and ``rebuild`` name.

    A component is replaced by identity, so that all references to it agree. A value that is its own copy, such as None
    or a function, cannot be told from others like it. It is replaced by path, in each clone.
    """

    #: The argument that names a component, by path.
    arguments: dict[str, str] = field(default_factory=dict)
    #: What the snapshot has in the place of a component, by the component's identity.
    memo: dict[int, Any] = field(default_factory=dict)
    #: What makes the value that is set in each clone, by path.
    by_path: dict[str, Callable[[], Any]] = field(default_factory=dict)
    #: The memo of the first clone of the snapshot, which is a trial and calls no function of ``rebuild``.
    trial: dict[int, Any] = field(default_factory=dict)
    #: The components: their identities must stay theirs.
    components: list[Any] = field(default_factory=list)


def substitute(
    obj: Any, share: Iterable[str], drop: Iterable[str], rebuild: Mapping[str, Callable[[], Any]] | None
) -> Substitutions:
    """Return what takes the place of the named components.

    Raises:
        PathError: one of the paths leads nowhere.
        ValueError: two of them ask for different things.
        TypeError: what ``rebuild`` has for a path cannot be called.
    """
    result = Substitutions()
    paths: dict[int, str] = {}

    def add(path: str, argument: str, make: Callable[[Any], Callable[[], Any]]) -> None:
        if path in result.arguments:
            raise ValueError(f"{path!r} is in both {result.arguments[path]} and {argument}; name it in one of them")
        result.arguments[path] = argument
        component = locate(obj, path).value
        result.components.append(component)
        if _is_its_own_copy(component):
            if argument != "share":
                check(obj, path, None if argument == "drop" else component)
                result.by_path[path] = make(component)
            return
        other = paths.setdefault(id(component), path)
        if other != path and result.arguments[other] != argument:
            raise ValueError(
                f"{other!r} in {result.arguments[other]} and {path!r} in {argument} are one object; name it in one of "
                "them"
            )
        if other == path:
            replacement = result.memo[id(component)] = None if argument == "drop" else StandIn(make(component))
            if argument == "rebuild":
                result.trial[id(replacement)] = component
            if argument == "share" and isinstance(component, torch.nn.Module):
                # Others may refer to what is inside, an optimizer for example, and must find the same objects.
                for inner in (*component.modules(), *component.parameters(), *component.buffers()):
                    result.memo.setdefault(id(inner), StandIn(lambda inner=inner: inner))  # type: ignore[misc]

    for path in _listed(share):
        add(path, "share", lambda component: lambda: component)
    for path in _listed(drop):
        add(path, "drop", lambda component: lambda: None)
    for path, function in (rebuild or {}).items():
        if not callable(function):
            raise TypeError(f"rebuild[{path!r}]: expected a function without arguments, got {function!r}")
        add(path, "rebuild", lambda component, function=function: function)  # type: ignore[misc]
    return result


def copied_or_explained(obj: Any, memo: dict[int, Any], with_reducers: Reducers, what: str) -> Any:
    """Clone ``obj``; if that fails, raise the error that names all components which cannot be cloned."""
    try:
        return copied(obj, dict(memo) or None, with_reducers)
    except Exception as error:
        try:
            explanation = _refusal(obj, memo, with_reducers, what)
        except Exception:  # of an adapter, or of an object that was asked for its parts: the first error matters more
            explanation = None
        if explanation is None:
            raise
        raise explanation from error


@dataclass
class Failure:
    """A part that cannot be cloned, because of itself or of something in it."""

    path: str
    part: Any
    error: Exception
    parts: list[Any]


class _Nothing:
    """Takes the place of another part in a trial: it is copied without an error."""


def _refusal(obj: Any, memo: dict[int, Any], with_reducers: Reducers, what: str) -> CloneError | None:
    """Return the error that names all components of ``obj`` which cannot be cloned, or None if there is no such one."""
    blamed: list[Failure] = []
    known = dict(memo)
    for _ in range(_ROUNDS):
        failures = _failures(obj, known, with_reducers)
        # To blame is a failing part without another one inside. There may be one that no search finds, or a cycle: so
        # it must fail as well with nothing in place of the others.
        alone = [one for one in failures.values() if _fails_alone(one, failures, known, with_reducers)]
        innermost = [one for one in alone if not any(id(part) in failures for part in one.parts)] or alone
        if not innermost:  # or nothing fails any more
            break
        for one in innermost:
            known[id(one.part)] = one.part  # as if it was shared; what fails now fails for a reason of its own
        blamed += innermost
    # The error names no component that lies inside of another one.
    outer = [one for one in blamed if not any(one.path.startswith(f"{other.path}.") for other in blamed)]
    return CloneError(_explained(what, outer)) if outer else None


def _failures(obj: Any, known: dict[int, Any], with_reducers: Reducers) -> dict[int, Failure]:
    failures: dict[int, Failure] = {}
    for path, part in walk(obj, lambda part: id(part) in failures and not _is_opaque(part)):
        error = None if id(part) in known else _attempt(part, known, with_reducers)
        if error is not None:
            parts = [] if _is_opaque(part) else [child for _, child in children(part) if child is not part]
            failures[id(part)] = Failure(path, part, error, parts)
    return failures


def _attempt(part: Any, known: dict[int, Any], with_reducers: Reducers) -> Exception | None:
    try:
        copied(part, dict(known), with_reducers)
    except Exception as error:
        return error
    return None


def _fails_alone(one: Failure, failures: dict[int, Failure], known: dict[int, Any], with_reducers: Reducers) -> bool:
    others: dict[int, Any] = {key: _Nothing() for key in failures if key != id(one.part)}
    return _attempt(one.part, {**known, **others}, with_reducers) is not None


def _listed(paths: Iterable[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(dict.fromkeys(paths))


def _is_its_own_copy(component: Any) -> bool:
    try:
        return copied(component, None, reducers()) is component
    except Exception:
        return False


def _is_opaque(part: Any) -> bool:
    if isinstance(part, types.MethodType):
        return False
    modules = {cls.__module__.partition(".")[0] for cls in type(part).__mro__}
    return bool((modules & sys.stdlib_module_names) - _OPEN)


def _explained(what: str, blamed: list[Failure]) -> str:
    lines = []
    for one in blamed[:_LISTED]:
        where = repr(one.path) if one.path else "it"
        lines.append(f"  {where} ({_kind(one.part)}): {_reason(one.part, one.error)}")
    if len(blamed) > _LISTED:
        lines.append(f"  and {len(blamed) - _LISTED} more")
    first = blamed[0].path
    if not first:
        return f"{what} cannot be cloned:\n{lines[0]}\nPut it into a dict, and name it in share= or rebuild=."
    count = "a component" if len(blamed) == 1 else f"{len(blamed)} components"
    return "\n".join(
        [
            f"{what} has {count} that cannot be cloned:",
            *lines,
            f"Name each of them when the prototype is made: share={{{first!r}}} gives all clones the same one, "
            f"drop={{{first!r}}} puts None in its place, rebuild={{{first!r}: function}} what the function returns.",
        ]
    )


def _reason(part: Any, error: Exception) -> str:
    if isinstance(part, torch.Tensor) and not part.is_leaf:
        return "it was computed from others and belongs to their graph, so detach() it"
    return f"{type(error).__name__}: {error}"


def _kind(part: Any) -> str:
    cls = type(part)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(part, torch.Tensor):
        return f"{name}, {part.dtype}, shape {tuple(part.shape)}, {part.device}"
    return name
