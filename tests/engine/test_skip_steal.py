# SPDX-License-Identifier: Apache-2.0
"""How each first write is paid for: skip, steal or copy, counted through `events()`; and when a skip would be wrong.

Catches: a skip taken although something is left of the old bytes (a part written, an argument that reads the same
storage, an operator that is swallowed or raises, an alias), `steal` that copies or moves, a first write counted twice.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchcow
from support.oracle import SIDE, address, assert_same, check_isolation, freeze, ways

BYTES = 4 * SIDE * SIDE
ONES = torch.ones(SIDE, SIDE)


def shared():
    source = torch.rand(SIDE, SIDE) + 1
    clone = torchcow.clone(source)
    torchcow.events(clear=True)
    return source, clone


SKIPS = {
    "copy_": lambda t: t.copy_(ONES),
    "copy_ from another dtype": lambda t: t.copy_(ONES.double()),
    "copy_ broadcast": lambda t: t.copy_(ONES[0]),
    "zero_": lambda t: t.zero_(),
    "fill_": lambda t: t.fill_(3),
    "fill_ of another's element": lambda t: t.fill_(ONES[0, 0]),
    "uniform_": lambda t: t.uniform_(),
    "normal_": lambda t: t.normal_(),
    "random_": lambda t: t.random_(),
    "exponential_": lambda t: t.exponential_(),
    "bernoulli_": lambda t: t.bernoulli_(0.5),
    "log_normal_": lambda t: t.log_normal_(),
    "cauchy_": lambda t: t.cauchy_(),
    "geometric_": lambda t: t.geometric_(0.5),
    "flat view zero_": lambda t: t.view(-1).zero_(),
    "data.copy_": lambda t: t.data.copy_(ONES),
    "detach().zero_": lambda t: t.detach().zero_(),
    "add out": lambda t: torch.add(ONES, 1, out=t),
    "mm out": lambda t: torch.mm(ONES, ONES, out=t),
    "_foreach_zero_": lambda t: torch._foreach_zero_([t]),
    "_foreach_copy_": lambda t: torch._foreach_copy_([t], [ONES]),
    "init.normal_": lambda t: nn.init.normal_(t),
    "init.constant_": lambda t: nn.init.constant_(t, 2),
    "t[:] = tensor": lambda t: t.__setitem__(slice(None), ONES),
    "t[...] = 0": lambda t: t.__setitem__(..., 0),
}
COPIES = {
    "add_": lambda t: t.add_(1),
    "mul_ itself": lambda t: t.mul_(t),
    "a part zeroed": lambda t: t[3:].zero_(),
    "a part copied": lambda t: t[:, 1:].copy_(ONES[:, 1:]),
    "masked_fill_": lambda t: t.masked_fill_(ONES > 0, 0),
    "index_fill_": lambda t: t.index_fill_(0, torch.arange(3), 0),
    "copy_ from the own transpose": lambda t: t.view(-1)[:64].copy_(t.t()[5]),
    "fill_ with an own element": lambda t: t.fill_(t[0, 0]),
    "add out the input": lambda t: torch.add(t, 1, out=t),
    "mul out a part": lambda t: torch.mul(ONES[:3], 2, out=t[4:7]),
    "out too small": lambda t: torch.ones(3, out=t),
    "_foreach_copy_ rows swapped": lambda t: torch._foreach_copy_([t[0], t[1]], [t[1], t[0]]),
    "_foreach_copy_ of a part": lambda t: torch._foreach_copy_([t[:5]], [ONES[:5]]),
    "_foreach_zero_ of a part": lambda t: torch._foreach_zero_([t[2]]),
    "_foreach_add_": lambda t: torch._foreach_add_([t], 1),
    "as_strided zero_": lambda t: t.as_strided((SIDE, SIDE - 1), (SIDE, 1)).zero_(),
    "numpy": lambda t: t.numpy().fill(3),
}


@pytest.mark.sharing
@pytest.mark.parametrize("name", SKIPS)
def test_skip(name):
    source, clone = shared()
    want = freeze(source)
    SKIPS[name](clone)
    assert ways() == ["skip"]
    assert_same(want, source, "the source")


@pytest.mark.sharing
@pytest.mark.parametrize("name", COPIES)
def test_copy(name):
    source, clone = shared()
    want = freeze(source)
    COPIES[name](clone)
    assert ways() == ["copy"]
    assert_same(want, source, "the source")


@pytest.mark.parametrize("name", [*SKIPS, *COPIES])
def test_the_result_is_the_same_either_way(name):
    check_isolation(lambda: torch.rand(SIDE, SIDE) + 1, {**SKIPS, **COPIES}[name])


@pytest.mark.sharing
@pytest.mark.parametrize("name", [*SKIPS, *COPIES])
def test_the_last_sharer_steals_and_stays_where_it_is(name):
    source, clone = shared()
    if name in ("out too small", "numpy"):
        pytest.skip("its address may change, or be asked for, by right")
    before = address(source)
    del clone
    {**SKIPS, **COPIES}[name](source)
    assert set(ways()) <= {"steal"}
    assert address(source) == before
    assert not torchcow.is_shared(source)


@pytest.mark.sharing
def test_one_event_per_first_write():
    source, clone = shared()
    for _ in range(3):
        clone.add_(1)
    (event,) = [e for e in torchcow.events() if e.kind == "materialize"]
    assert (event.way, event.bytes) == ("copy", BYTES)
    assert "add_" in event.operator
    source.mul_(2)
    source.mul_(2)
    assert ways() == ["copy", "steal"]


@pytest.mark.sharing
def test_n_sharers_n_minus_one_copies_and_one_steal():
    source = torch.rand(SIDE, SIDE)
    relatives = [source, *(torchcow.clone(source) for _ in range(5))]
    torchcow.events(clear=True)
    for index, tensor in enumerate(relatives):
        tensor.add_(index)
    assert ways() == ["copy"] * 5 + ["steal"]


@pytest.mark.sharing
def test_load_state_dict_copies_no_old_bytes():
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.BatchNorm1d(SIDE))
    clone = torchcow.clone(model)
    state = {key: torch.full_like(value, 3) for key, value in model.state_dict().items()}
    torchcow.events(clear=True)
    clone.load_state_dict(state)
    assert set(ways()) == {"skip"}
    want = {key: value.clone() for key, value in state.items()}
    assert_same([*want.values()], [v.detach() for v in clone.state_dict().values()], "the loaded clone")


@pytest.mark.sharing
def test_alias_elsewhere_sees_the_skipped_write():
    """Another tensor over the same storage must move along, whichever way is taken."""
    source, clone = shared()
    alias = clone[3:5]
    clone.zero_()
    assert torch.equal(alias, torch.zeros(2, SIDE))
    alias.fill_(2)
    assert torch.equal(clone[3:5], torch.full((2, SIDE), 2.0))
    assert source.min() >= 1


@pytest.mark.sharing
def test_a_slice_of_a_larger_storage_is_no_full_overwrite():
    base = torch.rand(SIDE, SIDE)
    clone = torchcow.clone(base)
    want = clone + 0
    torchcow.events(clear=True)
    clone[1:].zero_()
    assert ways() == ["copy"]
    assert torch.equal(clone[0], want[0])


class Swallow(TorchDispatchMode):
    """Runs nothing: the operator that was announced never writes."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and func._schema.is_mutable:
            return args[0] if func._schema.returns else None
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SKIPS)
def test_a_swallowed_write_leaves_the_bytes(name):
    source = torch.rand(SIDE, SIDE) + 1
    clone = torchcow.clone(source)
    want = freeze(source)
    with Swallow():
        SKIPS[name](clone)
    assert_same(want, clone, "the clone, under a mode that swallows the write")
    assert_same(want, source, "the source")
    clone.add_(1)
    assert_same(want, source, "the source, after a real write")


RAISES = {
    "copy_ of a wrong shape": lambda t: t.copy_(torch.ones(3, 5)),
    "mm out, wrong inner size": lambda t: torch.mm(torch.ones(4, 3), torch.ones(4, 3), out=t),
    "add out, wrong dtype": lambda t: torch.add(ONES, 1j, out=t),
    "normal_ with a negative deviation": lambda t: t.normal_(0, -1),
    "uniform_ with a wrong range": lambda t: t.uniform_(3, 1),
    "random_ with an empty range": lambda t: t.random_(5, 5),
    "exponential_ with a wrong rate": lambda t: t.exponential_(-1),
    "bernoulli_ with a wrong probability": lambda t: t.bernoulli_(1.5),
    "fill_ with a matrix": lambda t: t.fill_(ONES),
    "_foreach_copy_ of a wrong shape": lambda t: torch._foreach_copy_([t], [torch.ones(3, 5)]),
    "_foreach_copy_ of a wrong count": lambda t: torch._foreach_copy_([t], [ONES, ONES]),
    "log_normal_ with a wrong deviation": lambda t: t.log_normal_(0, -1),
    "cholesky out": lambda t: torch.linalg.cholesky(-ONES, out=t),
    "inv out": lambda t: torch.linalg.inv(torch.zeros(SIDE, SIDE), out=t),
    "copy_ into a leaf that needs grad": lambda t: t.requires_grad_().copy_(ONES),
    "zero_ of a leaf that needs grad": lambda t: t.requires_grad_().zero_(),
    "div out into integers": lambda t: torch.bitwise_and(ONES, 1, out=t),
    "a second pair of _foreach_copy_": lambda t: torch._foreach_copy_([t, t[0].clone()], [ONES, torch.ones(3, 5)]),
    "a wrong probability at the end": lambda t: t.bernoulli_(torch.cat([ONES[1:], 2 * ONES[:1]])),
    "a kernel that stops in the middle": lambda t: torch.index_select(ONES, 0, torch.tensor([0, 999]), out=t),
}


@pytest.mark.parametrize("name", RAISES)
def test_a_write_that_raises_leaves_what_it_would_leave_a_deep_copy(name):
    """The contents after the error are those of a deep copy: the old ones, unless the kernel had begun."""
    want = torch.rand(SIDE, SIDE)
    oracle, source = want.clone(), want.clone()
    clone = torchcow.clone(source)
    for tensor in (oracle, clone):
        with pytest.raises((RuntimeError, IndexError, TypeError)):
            RAISES[name](tensor)
    assert_same(oracle.detach(), clone.detach(), "the clone, after the error")
    assert_same(want, source, "the source")
    clone.detach().zero_()
    assert_same(want, source, "the source, after a real write")


EYE = torch.eye(SIDE, dtype=torch.bool)
DIVISORS = torch.arange(-9, SIDE - 9)[:, None].expand(SIDE, SIDE).contiguous()
HALF_WAY = {
    "addmm out copies its input first": (EYE, lambda t: torch.addmm(EYE, EYE, EYE, out=t)),
    "a zero among the divisors": (DIVISORS, lambda t: torch.div(DIVISORS * 5, DIVISORS, rounding_mode="floor", out=t)),
}


@pytest.mark.parametrize("name", HALF_WAY)
def test_an_integer_operator_that_raises_half_way(name):
    like, write = HALF_WAY[name]
    source = torch.ones_like(like)
    oracle, clone = source.clone(), torchcow.clone(source)
    for tensor in (oracle, clone):
        with pytest.raises(RuntimeError, match=r"not implemented|ZeroDivision"):
            write(tensor)
    assert not torch.equal(oracle, source)
    assert_same(oracle, clone, "the clone, after the error")


def test_an_out_that_grew_before_the_error_keeps_its_first_elements():
    source = torch.rand(SIDE, SIDE) + 1
    clone = torchcow.clone(source)
    want = freeze(source)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.add(torch.ones(2 * SIDE, SIDE, dtype=torch.uint16), 1, out=clone)
    assert clone.shape == (2 * SIDE, SIDE)
    assert_same(want, clone[:SIDE], "the clone, after the error")
