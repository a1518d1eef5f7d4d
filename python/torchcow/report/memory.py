# SPDX-License-Identifier: Apache-2.0
"""``memory``: the memory of objects, together and each, and that of deep copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from torchcow._native import _C
from torchcow.objects.tensors import named_leaves, subject, unwrap
from torchcow.report.table import Table, Tabular, size


class _Holding(NamedTuple):
    """One storage (or array) of one object, under the name by which it was found first."""

    obj: str
    name: str
    device: str
    storage: int
    block: int
    block_bytes: int
    sharers: int
    bytes: int

    @property
    def private(self) -> bool:
        return self.block == 0 or self.sharers <= 1

    @property
    def allocated(self) -> int:
        return self.block_bytes if self.block else self.bytes

    @property
    def fair_share(self) -> float:
        return self.allocated if self.private else self.block_bytes / self.sharers


@dataclass(frozen=True)
class Memory(Tabular):
    """The memory of a set of objects, in bytes.

    ``logical`` is the size of deep copies; ``unique`` the bytes that are allocated for these objects, each block once;
    ``private`` the part that no other tensor shares; ``shared`` the blocks that any other tensor shares;
    ``fair_share`` private bytes plus each shared block's bytes divided by its sharers: over all sharers of the
    process, fair shares add up to the bytes that are allocated. NumPy arrays count as private.

    :meth:`by_object`, :meth:`by_device` and :meth:`by_module` have the same sums for parts. A tensor in several parts
    (a tie) counts in each, but its fair share is divided among them, so that fair shares of parts add up to that of the
    whole. ``print(memory)`` shows a table, as does a notebook; :meth:`to_dict` is for programs, :meth:`plot` draws.
    """

    logical: int
    unique: int
    private: int
    shared: int
    fair_share: float
    _holdings: tuple[_Holding, ...] = field(default=(), repr=False, compare=False)

    def by_object(self) -> dict[str, Memory]:
        """Return one entry for each object, in order: position and class, or a prototype's name, as in ``0 Linear``."""
        return self._by(lambda holding: holding.obj)

    def by_device(self) -> dict[str, Memory]:
        """Return one entry for each device."""
        return self._by(lambda holding: holding.device)

    def by_module(self, depth: int = 1) -> dict[str, Memory]:
        """Return one entry for each subtree: the first ``depth`` parts of dotted names, over all objects together.

        Example:
            >>> import torch, torchcow
            >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
            >>> {name: part.logical for name, part in torchcow.memory(model).by_module().items()}
            {'0': 16640, '1': 16640}
        """
        return self._by(lambda holding: ".".join(holding.name.split(".")[:depth]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers: the totals, and those of each object and each device."""

        def totals(memory: Memory) -> dict[str, float]:
            return {name: getattr(memory, name) for name in ("logical", "unique", "private", "shared", "fair_share")}

        objects, devices = self.by_object(), self.by_device()
        return {
            **totals(self),
            "objects": {name: totals(part) for name, part in objects.items()},
            "devices": {name: totals(part) for name, part in devices.items()},
        }

    def plot(self, path: str | None = None) -> Any:
        """Draw one stacked bar for each object, private memory and fair share of shared blocks, against its deep copy.

        Args:
            path: where to save the chart (``.png``, ``.svg``, ...); nothing is saved without it.

        Returns:
            The figure of matplotlib.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from torchcow.report.plot import memory_bars

        return memory_bars(self, path)

    def _by(self, key: Callable[[_Holding], str]) -> dict[str, Memory]:
        groups: dict[str, dict[int, _Holding]] = {}
        for holding in self._holdings:
            groups.setdefault(key(holding), {}).setdefault(holding.storage, holding)
        within: dict[int, int] = {}
        for group in groups.values():
            for storage in group:
                within[storage] = within.get(storage, 0) + 1
        return {name: _sum(group.values(), within) for name, group in groups.items()}

    def _table(self) -> Table:
        saved = 1 - self.unique / self.logical if self.logical else 0.0
        copies = f"deep copies would take {size(self.logical)} ({saved:.1%} saved)"
        table = Table(
            ["", "deep copy", "private", "shared", "fair share"],
            caption=f"{size(self.unique)} are allocated; {copies}.",
        )
        parts = self.by_object()
        if len(parts) > 20:
            names = list(parts)
            parts = {name: parts[name] for name in [*names[:10], *names[-9:]]}
            table.caption = f"{len(names) - len(parts)} objects are not shown. {table.caption}"
        for name, part in parts.items():
            table.rows.append((name, *(size(n) for n in (part.logical, part.private, part.shared, part.fair_share))))
        devices = self.by_device()
        if len(devices) > 1:
            for name, part in devices.items():
                figures = (part.logical, part.private, part.shared, part.fair_share)
                table.rows.append((f"on {name}", *(size(n) for n in figures)))
        table.rows.append(("together", *(size(n) for n in (self.logical, self.private, self.shared, self.fair_share))))
        return table


def memory(*objs: Any) -> Memory:
    """Return the memory of ``objs`` together; tensors that occur twice count once.

    Args:
        objs: modules, optimizers, tensors, :class:`torchcow.Prototype`, and containers or iterators of these.

    Returns:
        Bytes, in total and in parts.

    Raises:
        TypeError: one of ``objs`` is a plain value or code, which holds no tensor.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(1024, 1024, bias=False)
        >>> variants = [torchcow.clone(model) for _ in range(3)]
        >>> used = torchcow.memory(model, *variants)
        >>> used.logical // used.unique
        4
        >>> print(used)
                  deep copy  private   shared  fair share
        0 Linear    4.19 MB      0 B  4.19 MB     1.05 MB
        1 Linear    4.19 MB      0 B  4.19 MB     1.05 MB
        2 Linear    4.19 MB      0 B  4.19 MB     1.05 MB
        3 Linear    4.19 MB      0 B  4.19 MB     1.05 MB
        together   16.78 MB      0 B  4.19 MB     4.19 MB
        4.19 MB are allocated; deep copies would take 16.78 MB (75.0% saved).
    """
    holdings: list[_Holding] = []
    for index, obj in enumerate(objs):
        inner = subject("torchcow.memory", obj)
        snapshot = unwrap(obj)
        name = obj.name if snapshot is not obj else None
        holdings += _holdings(f"{index} {name or type(snapshot).__name__}", inner)
    once = {holding.storage: holding for holding in reversed(holdings)}
    total = _sum(once.values(), {})
    return Memory(total.logical, total.unique, total.private, total.shared, total.fair_share, tuple(holdings))


def _holdings(obj: str, inner: Any) -> Iterable[_Holding]:
    leaves = named_leaves(inner)
    tensors = [(name, leaf) for name, leaf in leaves if isinstance(leaf, torch.Tensor)]
    found: dict[int, _Holding] = {}
    for (name, tensor), usage in zip(tensors, _C.usages([leaf for _, leaf in tensors]), strict=True):
        if usage is not None and usage.storage not in found:
            found[usage.storage] = _Holding(
                obj,
                name,
                str(tensor.device),
                usage.storage,
                usage.block,
                usage.block_bytes,
                usage.sharers,
                usage.bytes,
            )
    for name, array in leaves:
        if not isinstance(array, torch.Tensor):
            owner = array
            while isinstance(owner.base, type(array)):
                owner = owner.base
            found.setdefault(id(owner), _Holding(obj, name, "cpu", id(owner), 0, 0, 1, owner.nbytes))
    return found.values()


def _sum(holdings: Iterable[_Holding], groups: Mapping[int, int]) -> Memory:
    """Add up storages, each once; the fair share of one that stands in several groups is divided by their number."""
    blocks: dict[int, int] = {}
    logical = private = 0
    fair_share = 0.0
    kept = tuple(holdings)
    for holding in kept:
        logical += holding.bytes
        fair_share += holding.fair_share / groups.get(holding.storage, 1)
        if holding.private:
            private += holding.allocated
        else:
            blocks[holding.block] = holding.block_bytes
    shared = sum(blocks.values())
    return Memory(logical, private + shared, private, shared, fair_share, kept)
