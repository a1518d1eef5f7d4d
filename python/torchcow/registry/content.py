"""A version of a durable registry as it is stored: described, read and compared without the structure of a model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from torchcow.errors import RegistryError
from torchcow.persist.state.plain import decode
from torchcow.registry.store import OpenFiles
from torchcow.registry.version import reference
from torchcow.report.diff import TensorDiff
from torchcow.report.diff import compare as compare_tensors

if TYPE_CHECKING:
    from torchcow import Registry

#: The words under which a node tells dtype and shape of the tensor that it holds.
_HOLDERS = ("tensor", "generator", "array")


@dataclass(frozen=True)
class StoredTensor:
    """What the database knows about one tensor; ``fingerprint`` stands for dtype, shape and every bit of it."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    fingerprint: str


class Content:
    """What a version is made of, by dotted name: ``tensors``, and ``parts``, which is all that is told beside them."""

    def __init__(self, registry: Registry, version: str):
        library = registry._library
        assert library is not None
        found, self._manifest = library._look_up(registry._identity(reference(version)))
        self.version = str(found)
        self._folder = library.store.folder
        self.tensors: dict[str, StoredTensor] = {}
        self.parts: dict[str, Any] = {}
        for name, line in self._manifest.items():
            node = json.loads(line.node)
            if line.fingerprint is not None:
                holder = next(word for word in _HOLDERS if word in node)
                dtype, shape = node.pop(holder)
                node = {"holds": holder, **node}
                size = math.prod(shape) * getattr(torch, dtype).itemsize
                self.tensors[name] = StoredTensor(dtype, tuple(shape), size, line.fingerprint)
            self.parts[name] = node

    @property
    def values(self) -> dict[str, Any]:
        """Plain values, such as an epoch or a learning rate."""
        return {name: decode(node["value"]) for name, node in self.parts.items() if "value" in node}

    def files(self) -> OpenFiles:
        """The files of the version, for :meth:`read`; to be used in a ``with`` statement."""
        return OpenFiles(self._folder, self.version)

    def read(self, files: OpenFiles, name: str) -> torch.Tensor:
        """Read a tensor, and check it against its fingerprint.

        Raises:
            RegistryError: its file is damaged or missing.
        """
        try:
            return files.read(name, self._manifest[name])
        except FileNotFoundError as error:
            raise RegistryError(
                f"{self.version}: the file {error.filename} is missing, with tensors of this version; restore it from "
                "a backup"
            ) from error


def compare(first: Content, second: Content) -> dict[str, TensorDiff]:
    """How each tensor differs, by dotted name; only tensors with other fingerprints are read, one pair at a time."""
    left, right = first.tensors, second.tensors
    found = {}
    with first.files() as files, second.files() as other_files:
        for name in _names(left, right):
            if name not in right:
                found[name] = TensorDiff("removed", left[name].bytes, math.nan, math.nan)
            elif name not in left:
                found[name] = TensorDiff("added", right[name].bytes, math.nan, math.nan)
            elif left[name].fingerprint == right[name].fingerprint:
                found[name] = TensorDiff("equal", right[name].bytes)
            else:
                found[name] = compare_tensors(first.read(files, name), second.read(other_files, name))
    return found


def compare_parts(first: Content, second: Content) -> dict[str, dict[str, Any]]:
    """What else differs, by dotted name: plain values, and of other parts their kind, ties and flags.

    A part has a "first" and a "second", and only one of them where the other version has no such part.
    """
    found = {}
    for name in _names(first.parts, second.parts):
        sides = {
            side: decode(content.parts[name]["value"]) if "value" in content.parts[name] else content.parts[name]
            for side, content in (("first", first), ("second", second))
            if name in content.parts
        }
        tensor_alone = len(sides) == 1 and (name in first.tensors or name in second.tensors)
        if first.parts.get(name) != second.parts.get(name) and not tensor_alone:
            found[name] = sides
    return found


def part_change(sides: dict[str, Any]) -> str:
    """What :func:`compare_parts` found of one part, in words."""
    first, second = sides.get("first"), sides.get("second")
    if isinstance(first, dict) and isinstance(second, dict) and _kind(first) == _kind(second):
        changed = [word for word in _names(first, second) if first.get(word) != second.get(word)]
        return "; ".join(f"{word}: {first.get(word)!r} became {second.get(word)!r}" for word in changed)
    return " became ".join(_kind(side) if isinstance(side, dict) else repr(side) for side in sides.values())


def _kind(node: dict[str, Any]) -> str:
    """What a part is, which its node says first: ``module Linear``."""
    return " ".join(map(str, next(iter(node.items()))))


def _names(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    return [*left, *(name for name in right if name not in left)]
