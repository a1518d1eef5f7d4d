"""Components of an object that cannot be cloned, and what a prototype puts in their place."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from torchcow._native import _C
from torchcow.errors import CloneError
from torchcow.objects.adapters import Reducer, adapter_of, reducers
from torchcow.objects.adapters.attributes import whole
from torchcow.objects.paths import check, locate, walk

Reducers = tuple[tuple[type, Reducer], ...]

# The standard library's containers are looked into, its locks, files, threads and pools are not.
_OPEN = {"builtins", "abc", "collections", "dataclasses", "enum", "functools", "typing", "types"}


_LISTED = 20
_ROUNDS = 10  # of a search; nearly always two are enough


def copied(obj: Any, memo: dict[int, Any] | None, how: Reducers) -> Any:
    """Clone ``obj`` as a prototype does: like ``torchcow.clone``, but the adapters' reducers go first."""
    return _C.clone(obj, memo, False, how) if how else _C.clone(obj, memo, False)


@whole
class StandIn:
    """In a snapshot, stands where a component is not copied. A clone of the snapshot has what ``make`` returns."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]):
        self.make = make

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[[], Any], tuple[()]]:
        return self.make, ()


@dataclass
class Treatment:
    """What becomes of the components that were named in ``share``, ``drop`` and ``rebuild``.

    ``memo`` holds what the snapshot has in their place, by the identity of the component, so that all references to it
    agree. What is its own copy, such as None or a function, is no component that could be told from others like it: it
    is replaced in each clone by path, and is in ``later``. ``trial`` is the memo for a clone of the snapshot that calls
    no function of ``rebuild``.
    """

    memo: dict[int, Any] = field(default_factory=dict)
    later: dict[str, Callable[[], Any]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    trial: dict[int, Any] = field(default_factory=dict)
    held: list[Any] = field(default_factory=list)


def treat(
    obj: Any, share: Iterable[str], drop: Iterable[str], rebuild: Mapping[str, Callable[[], Any]] | None
) -> Treatment:
    """Find the named components.

    Raises:
        PathError: one of the paths leads nowhere.
        ValueError: two of them ask for different things.
        TypeError: what ``rebuild`` has for a path cannot be called.
    """
    treatment = Treatment()
    names: dict[int, str] = {}

    def add(path: str, word: str, make: Callable[[Any], Callable[[], Any]]) -> None:
        if path in treatment.words:
            raise ValueError(f"{path!r} is in both {treatment.words[path]} and {word}; name it in one of them")
        treatment.words[path] = word
        component = locate(obj, path).value
        treatment.held.append(component)
        if _is_its_own_copy(component):
            if word != "share":
                check(obj, path, None if word == "drop" else component)
                treatment.later[path] = make(component)
            return
        other = names.setdefault(id(component), path)
        if other != path and treatment.words[other] != word:
            raise ValueError(
                f"{other!r} in {treatment.words[other]} and {path!r} in {word} are one object; name it in one of them"
            )
        if other == path:
            place = treatment.memo[id(component)] = None if word == "drop" else StandIn(make(component))
            if word == "rebuild":
                treatment.trial[id(place)] = component
            if word == "share" and isinstance(component, torch.nn.Module):
                # Others may refer to what is inside, an optimizer for example, and must find the same objects.
                for inner in (*component.modules(), *component.parameters(), *component.buffers()):
                    treatment.memo.setdefault(id(inner), StandIn(lambda inner=inner: inner))  # type: ignore[misc]

    for path in _paths(share):
        add(path, "share", lambda component: lambda: component)
    for path in _paths(drop):
        add(path, "drop", lambda component: lambda: None)
    for path, function in (rebuild or {}).items():
        if not callable(function):
            raise TypeError(f"rebuild[{path!r}]: expected a function without arguments, got {function!r}")
        add(path, "rebuild", lambda component, function=function: function)  # type: ignore[misc]
    return treatment


def copied_or_explained(obj: Any, memo: dict[int, Any], how: Reducers, what: str) -> Any:
    """Clone ``obj``; if that fails, raise the error that names all components which are to blame."""
    try:
        return copied(obj, dict(memo) or None, how)
    except Exception as error:
        try:
            explained = _refusal(obj, memo, how, what)
        except Exception:  # of an adapter, or of an object that was asked for its parts: the first error matters more
            explained = None
        if explained is None:
            raise
        raise explained from error


@dataclass
class Failure:
    """A part that cannot be cloned: itself, or something in it."""

    path: str
    part: Any
    error: Exception
    parts: list[Any]


class _Nothing:
    pass


def _refusal(obj: Any, memo: dict[int, Any], how: Reducers, what: str) -> CloneError | None:
    """The error that names all components of ``obj`` which cannot be cloned, or None if no single one is to blame."""
    blamed: list[Failure] = []
    known = dict(memo)
    for _ in range(_ROUNDS):
        failing = _failing(obj, known, how)
        # Guilty is what has no other one inside of it. There may be one that nobody sees, or a cycle: so it must fail
        # as well with nothing in place of the others.
        alone = [one for one in failing.values() if _fails_alone(one, failing, known, how)]
        guilty = [one for one in alone if not any(id(part) in failing for part in one.parts)] or alone
        if not guilty:  # or nothing fails any more
            break
        for one in guilty:
            known[id(one.part)] = one.part  # as if it was shared; what fails now fails for a reason of its own
        blamed += guilty
    # What lies inside of another one goes with it.
    outer = [one for one in blamed if not any(one.path.startswith(f"{other.path}.") for other in blamed)]
    return CloneError(_explained(what, outer)) if outer else None


def _failing(obj: Any, known: dict[int, Any], how: Reducers) -> dict[int, Failure]:
    failing: dict[int, Failure] = {}
    for path, part in walk(obj, lambda part: id(part) in failing and not _is_opaque(part)):
        error = None if id(part) in known else _attempt(part, known, how)
        if error is not None:
            parts = {} if _is_opaque(part) else adapter_of(part).parts(part)
            failing[id(part)] = Failure(path, part, error, [one for one in parts.values() if one is not part])
    return failing


def _attempt(part: Any, known: dict[int, Any], how: Reducers) -> Exception | None:
    try:
        copied(part, dict(known), how)
    except Exception as error:
        return error
    return None


def _fails_alone(one: Failure, failing: dict[int, Failure], known: dict[int, Any], how: Reducers) -> bool:
    others: dict[int, Any] = {key: _Nothing() for key in failing if key != id(one.part)}
    return _attempt(one.part, {**known, **others}, how) is not None


def _paths(paths: Iterable[str]) -> list[str]:
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
