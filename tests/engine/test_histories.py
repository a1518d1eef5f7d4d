# SPDX-License-Identifier: Apache-2.0
"""Random histories of clones, views, writes and drops in two worlds: one clones with `copy.deepcopy`, the other with
`torchcow.clone`, and now and then that one shares what is equal again, or sets memory aside. After every step all
tensors of both worlds are the same, bit by bit, with the same ties and layouts.

Catches what single writes do not: a steal, a skip or a resize that is right for one family and wrong for the next one.
Breaks: a steal while two sharers are left (crashes), a skip although the operator reads what it writes (6 of 60 fail).
TORCHCOW_HISTORIES=N runs N histories.
"""

from __future__ import annotations

import copy
import os
import random

import pytest
import torch
from torch import nn

import torchcow
import torchcow.testing
from support import writes
from support.oracle import SIDE, attempt, difference, freeze, raised_alike, regrown

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 40
MOST = 9  # tensors in a world

MAKES = [
    writes.matrix,
    writes.matrix,
    writes.integers,
    writes.complex_matrix,
    lambda: nn.Parameter(writes.matrix(), requires_grad=False),
    lambda: torch.rand(SIDE * SIDE + 8)[8:].view(SIDE, SIDE),
]


def _beyond(tensor):
    """Does it reach out of its storage? An operator that fails to resize its result leaves it like that."""
    if not tensor.numel():
        return False
    last = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize > tensor.untyped_storage().nbytes()


# Whatever torch then makes of it: views in no_grad() that want a gradient raise, shared memory that is resized crashes.
METHODS = sorted(set(writes.METHODS) - {"requires_grad_", "share_memory_"})
ONE = [
    *((lambda t, name=name: getattr(t, name)(*writes.METHODS[name](t))) for name in METHODS),
    lambda t: t.__setitem__(3, 7),
    lambda t: t.__setitem__(t != 0, 3),
    lambda t: t[1:, ::2].fill_(5),
    lambda t: t.data.mul_(2),
    lambda t: t.numpy().fill(2),
    lambda t: t.untyped_storage().fill_(9),
    lambda t: t.untyped_storage().__setitem__(5, 77),
    lambda t: torch.arange(t.numel(), out=t),
    lambda t: torch.full((5, 5), 3, out=t),
    lambda t: torch.randperm(t.numel(), out=t),
    lambda t: torch._foreach_zero_(list(t)),
    lambda t: torch._foreach_add_([*t[:3], t], 1),
    lambda t: torch.nn.init.trunc_normal_(t),
    lambda t: torch.vmap(lambda row: row.mul_(2))(t),
    lambda t: torchcow.materialize(t),
    lambda t: t.data_ptr() and None,
    lambda t: regrown(t).fill_(3),
]
TWO = [
    lambda a, b: a.copy_(b),
    lambda a, b: a.copy_(b.flip(0)),
    lambda a, b: a.add_(b),
    lambda a, b: a.lerp_(b, 0.5),
    lambda a, b: a[:9].copy_(b[-9:]),
    lambda a, b: a.masked_scatter_(a > 0, b),
    lambda a, b: a.index_copy_(0, torch.tensor([1]), b[:1]),
    lambda a, b: torch.add(b, 1, out=a),
    lambda a, b: torch.mul(a, b, out=b),
    lambda a, b: torch.mm(b, b, out=a),
    lambda a, b: torch.addmm(a, b, b, out=a),
    lambda a, b: torch.cat([b, b], out=a),
    lambda a, b: torch.sum(b, 0, out=a),
    lambda a, b: torch.where(a != 0, a, b, out=a),
    lambda a, b: torch.sort(b, out=(a, torch.empty(0, dtype=torch.long))),
    lambda a, b: torch.neg(b, out=a[2:]),
    lambda a, b: torch.exp(b, out=a.view(-1)),
    lambda a, b: torch.cumsum(b, 0, out=a),
    lambda a, b: torch._foreach_copy_([a, b], [b, a]),
    lambda a, b: torch._foreach_copy_([a], [b]),
    lambda a, b: torch._foreach_mul_([a, b, a], 2),
    lambda a, b: torch._foreach_lerp_([a], [b], 0.5),
    lambda a, b: a.set_(b),
    lambda a, b: setattr(a, "data", b),
    lambda a, b: torch.utils.swap_tensors(a, b),
    lambda a, b: a.resize_as_(b),
    lambda a, b: a.untyped_storage().copy_(b.untyped_storage()),
]
# Without those that deep copy refuses, and that reach outside of a storage that has shrunk.
VIEWS = [view for name, view in writes.VIEWS.items() if name not in ("subclass", "set_ with shape")]


class Worlds:
    """The same history twice: what `copy.deepcopy` makes of it, and what `torchcow.clone` makes of it."""

    def __init__(self, seed):
        self.choose = random.Random(seed)
        self.want, self.got = [], []
        self.log = []

    def both(self, what, act):
        """Runs `act(world, clone)` in both; returns their results, or None if it raised in both."""
        self.log.append(what)
        want = attempt(act, self.want, copy.deepcopy)
        got = attempt(act, self.got, torchcow.clone)
        return None if raised_alike(want, got, self.log) else (want[1], got[1])

    def grow(self, results, many=False):
        if results is None:
            return
        for world, result in zip((self.want, self.got), results, strict=True):
            world.extend(result if many else [result])

    def step(self):
        pick = self.choose.randrange
        size, dice = len(self.want), self.choose.random()
        if self.choose.random() < 0.08:
            self.log.append("reshare")
            torchcow.reshare(*self.got)
        if self.choose.random() < 0.05:
            self.log.append("reserve")
            torchcow.reserve(self.got, fraction=self.choose.random())
        if size == 0 or dice < 0.05:
            kind = pick(len(MAKES))
            self.grow(self.both(f"make {kind}", lambda world, clone: MAKES[kind]()))
        elif dice < 0.10 or size > MOST:
            which = pick(size)
            self.both(f"drop {which}", lambda world, clone: world.pop(which) and None)
        elif dice < 0.28:
            which = [pick(size) for _ in range(pick(3) + 1)]
            self.grow(self.both(f"clone {which}", lambda world, clone: clone([world[i] for i in which])), many=True)
        elif dice < 0.42:
            which, view = pick(size), pick(len(VIEWS))
            self.grow(self.both(f"view {view} of {which}", lambda world, clone: VIEWS[view](world[which])))
        elif dice < 0.75:
            which, write = pick(size), pick(len(ONE))
            self.both(f"write {write} {which}", lambda world, clone: ONE[write](world[which]) and None)
        else:
            a, b, write = pick(size), pick(size), pick(len(TWO))
            self.both(f"write {write} {a} {b}", lambda world, clone: TWO[write](world[a], world[b]) and None)

    def compare(self):
        assert [_beyond(t) for t in self.want] == [_beyond(t) for t in self.got], self.log
        self.want, self.got = ([t for t in world if not _beyond(t)] for world in (self.want, self.got))
        want, got = freeze(self.want, layout=True), freeze(self.got, layout=True)
        text = difference(want, got)
        assert not text, f"{self.log}\n{text}"
        assert [t._version for t in self.want] == [t._version for t in self.got], self.log


@pytest.fixture
def deterministic():
    """Memory that an operator enlarges holds the same in both worlds."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("seed", range(int(os.environ.get("TORCHCOW_HISTORIES", "60"))))
def test_history(seed, deterministic):
    worlds = Worlds(seed)
    with torch.no_grad():
        for _ in range(STEPS):
            worlds.step()
            worlds.compare()
    torchcow.testing.verify()
