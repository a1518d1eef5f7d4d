# SPDX-License-Identifier: Apache-2.0
"""``StoredVersion``: a version as a folder has it, described, read and compared without the structure of the model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchcow.errors import RegistryError
from torchcow.persist.state.messages import title
from torchcow.persist.state.plain import decode
from torchcow.persist.state.upgrade import upgraded
from torchcow.registry.files import Manifest, OpenFiles
from torchcow.registry.version import Version
from torchcow.report.diff import TensorDiff
from torchcow.report.diff import compare as compare_tensors


@dataclass(frozen=True)
class StoredTensor:
    """What the database has about one tensor. Tensors with the same ``fingerprint`` agree in every bit."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    fingerprint: str


class StoredVersion:
    """The content of a version by dotted name: ``tensors``, and ``parts``, which has a description of every node."""

    def __init__(self, version: Version, manifest: Manifest, folder: Path):
        self.version = version
        self.manifest = manifest
        self._folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self.parts: dict[str, Any] = {}
        for name, line in manifest.items():
            node = upgraded(json.loads(line.node))
            if line.fingerprint is not None:
                dtype, shape = node.pop("dtype"), node.pop("shape")
                size = math.prod(shape) * getattr(torch, dtype).itemsize
                self.tensors[name] = StoredTensor(dtype, tuple(shape), size, line.fingerprint)
            self.parts[name] = node

    @property
    def values(self) -> dict[str, Any]:
        """Plain values, such as an epoch or a learning rate."""
        return {name: decode(node["value"]) for name, node in self.parts.items() if node["kind"] == "value"}

    def files(self) -> OpenFiles:
        """The files of the version for :meth:`read`, as a context manager."""
        return OpenFiles(self._folder, str(self.version))

    def read(self, files: OpenFiles, name: str) -> torch.Tensor:
        """Read a tensor, and check it against its fingerprint.

        Raises:
            RegistryError: its file is damaged or missing.
        """
        try:
            return files.read(name, self.manifest[name])
        except FileNotFoundError as error:
            raise self.missing_file(error.filename) from error

    def missing_file(self, path: str | None) -> RegistryError:
        """The error for a file that the database names and the folder has not."""
        return RegistryError(
            f"{self.version}: the file {path} is missing, with tensors of this version; restore it from a backup"
        )


def compare(first: StoredVersion, second: StoredVersion) -> dict[str, TensorDiff]:
    """Return how each tensor differs, by dotted name. Only pairs with different fingerprints are read."""
    left, right = first.tensors, second.tensors
    diffs = {}
    with first.files() as left_files, second.files() as right_files:
        for name in _names(left, right):
            if name not in right:
                diffs[name] = TensorDiff("removed", left[name].bytes, math.nan, math.nan)
            elif name not in left:
                diffs[name] = TensorDiff("added", right[name].bytes, math.nan, math.nan)
            elif left[name].fingerprint == right[name].fingerprint:
                diffs[name] = TensorDiff("equal", right[name].bytes)
            else:
                diffs[name] = compare_tensors(first.read(left_files, name), second.read(right_files, name))
    return diffs


def compare_parts(first: StoredVersion, second: StoredVersion) -> dict[str, dict[str, Any]]:
    """Return the other differences, by dotted name: of plain values, and of the kind, ties and flags of other parts.

    A part has a "first" and a "second", each a node. It has only one of them if the other version has no such part.
    """
    diffs = {}
    for name in _names(first.parts, second.parts):
        pair = (("first", first), ("second", second))
        sides = {side: stored.parts[name] for side, stored in pair if name in stored.parts}
        tensor_alone = len(sides) == 1 and (name in first.tensors or name in second.tensors)
        if first.parts.get(name) != second.parts.get(name) and not tensor_alone:
            diffs[name] = sides
    return diffs


def plain_part(node: dict[str, Any]) -> Any:
    """Return the value of a node of a plain value, and any other node as it is."""
    return decode(node["value"]) if node["kind"] == "value" else node


def part_change(sides: dict[str, dict[str, Any]]) -> str:
    """Return a difference of :func:`compare_parts` in words."""
    first, second = sides.get("first", {}), sides.get("second", {})
    titles = [repr(plain_part(node)) if node["kind"] == "value" else title(node) for node in sides.values()]
    if len(sides) == 2 and titles[0] == titles[1]:
        changed = [fact for fact in _names(first, second) if first.get(fact) != second.get(fact)]
        return "; ".join(f"{fact}: {first.get(fact)!r} became {second.get(fact)!r}" for fact in changed)
    return " became ".join(titles)


def _names(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    return [*left, *(name for name in right if name not in left)]
