# SPDX-License-Identifier: Apache-2.0
"""``save_delta`` and ``load_delta``: a file with the differences of a clone from its base."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchcow.errors import FileError, StateError
from torchcow.objects.tensors import same_memory, unwrap
from torchcow.persist.fingerprint import fingerprint
from torchcow.persist.state import State, capture, check, restore
from torchcow.persist.state.upgrade import upgraded
from torchcow.persist.tensor_file import TensorFile, write

_SHOWN = 5


def save_delta(clone: Any, base: Any, path: str | os.PathLike[str]) -> list[str]:
    """Write the differences of ``clone`` from ``base``: the tensors that differ, bit by bit, and all other values.

    The file is a safetensors file without pickle. It is written beside ``path`` and renamed when it is complete, so an
    existing file stays intact until then. All tensors of ``base`` are read once, by operators; shared ones stay shared.

    Args:
        clone: a module, or modules, optimizers and plain data in a dict or another plain object.
        base: an object of the same build, usually the source of ``clone``; or a :class:`Prototype`.
        path: the file.

    Returns:
        The dotted names of the tensors that were written.

    Raises:
        StateError: a part cannot be written down, or ``clone`` is built in another way than ``base``, so that it
            could not be loaded; the message lists all differences. Nothing was written.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch, torchcow
        >>> base = torch.nn.Linear(64, 64)
        >>> clone = torchcow.clone(base)
        >>> with torch.no_grad():
        ...     _ = clone.bias.zero_()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = torchcow.save_delta(clone, base, folder + "/clone.delta")
        ...     again = torchcow.load_delta(base, folder + "/clone.delta")
        >>> written, bool(again.bias.any()), torchcow.is_shared(again.weight)
        (['bias'], False, True)
    """
    base = unwrap(base)
    before, now = capture(base), capture(unwrap(clone))
    try:
        check(base, now.nodes)
    except StateError as error:
        raise StateError(f"the clone is built in another way than the base, so nothing was saved: {error}") from None
    prints = {name: fingerprint(tensor) for name, tensor in before.tensors.items()}
    changed = {}
    for name, tensor in now.tensors.items():
        old = before.tensors.get(name)
        if old is None or now.nodes[name].get("stride") != before.nodes[name].get("stride"):
            changed[name] = fingerprint(tensor)
        elif not same_memory(tensor, old) and (new := fingerprint(tensor)) != prints[name]:
            changed[name] = new
    info = {"base": content(before, prints), "base tensors": prints, "nodes": now.nodes}
    write(Path(path), "delta", {name: now.tensors[name] for name in changed}, changed, info)
    return list(changed)


def load_delta(base: Any, path: str | os.PathLike[str]) -> Any:
    """Return a clone of ``base`` with the differences in the file; unchanged tensors share memory with ``base``.

    Before it returns the clone, it checks the file, each tensor that it reads, and that ``base`` equals the base of the
    delta, bit by bit. ``base`` is never changed.

    Args:
        base: the object against which the delta was saved, or an equal one, or a :class:`Prototype`.
        path: a file of :func:`save_delta`.

    Raises:
        StateError: another base, or one that is built in another way; the message names the tensors.
        FileError: the file is damaged, truncated or not of :func:`save_delta`; a ``StateError``, too.
        OSError: the file cannot be read.
    """
    base = unwrap(base)
    path = Path(path)
    with TensorFile(path, "delta") as file:
        try:
            wanted, prints = file.info["base"], file.info["base tensors"]
            nodes = {path: upgraded(node) for path, node in file.info["nodes"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise FileError(f"{path}: the header is damaged (parts are missing)") from None
        state = capture(base)
        found = {name: fingerprint(tensor) for name, tensor in state.tensors.items()}
        if content(state, found) != wanted:
            raise StateError(f"{path}: saved against another base; {_differences(prints, found)}")
        try:
            return restore(base, nodes, lambda name: file.read(name) if name in file.entries else None)
        except FileError:
            raise
        except StateError as error:
            raise StateError(f"{path}: {error}") from error


def content(state: State, prints: Mapping[str, str]) -> str:
    """Return the fingerprint of all tensors of an object together: of names, ties, dtypes, shapes and bytes."""
    ties = {path: node["path"] for path, node in state.nodes.items() if node["kind"] == "same"}
    return hashlib.sha256(json.dumps([sorted(prints.items()), sorted(ties.items())]).encode()).hexdigest()


def _differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    texts = []
    for names, what in (
        ([name for name in wanted if name not in found], "missing in this base"),
        ([name for name in found if name not in wanted], "not in that base"),
        ([name for name in wanted if name in found and found[name] != wanted[name]], "different"),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            texts.append(f"{what}: {', '.join(map(repr, names[:_SHOWN]))}{more}")
    return "; ".join(texts) or "other names are one tensor"
