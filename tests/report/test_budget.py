# SPDX-License-Identifier: Apache-2.0
"""Budgets: what first writes can cost, whether it is there, and memory that was set aside for them.

Catches: a worst case that is wrong, a reserve that is not used, lost after a failure, kept after its clone, or smaller
than was asked; amounts and names that make no sense.
"""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchcow
import torchcow.testing
from support.oracle import SIDE, run_script

pytestmark = pytest.mark.sharing
BYTES = 4 * SIDE * SIDE


def model():
    return nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(4)))


def reserved():
    gc.collect()
    return torchcow.ledger().reserved_bytes


def write(*tensors):
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6), st.booleans())
def test_the_worst_case_is_what_writing_everything_allocates(count, written, source_too):
    source = model()
    clones = [torchcow.clone(source) for _ in range(count)]
    for which, layer in written:
        write(clones[which % count][layer].weight)
    objs = [*clones, *([source] if source_too else [])]
    expected = torchcow.worst_case(objs)
    torchcow.events(clear=True)
    write(*(parameter for obj in objs for parameter in obj.parameters()))
    assert sum(e.bytes for e in torchcow.events() if e.way in ("copy", "skip")) == expected
    assert torchcow.worst_case(objs) == 0


def test_a_first_write_takes_what_was_set_aside():
    source = model()
    clone = torchcow.clone(source)
    reservation = torchcow.reserve(clone)
    assert reservation.bytes == reserved() == torchcow.worst_case(clone) == 4 * BYTES
    with torchcow.testing.fail_allocations(0):
        write(*clone.parameters())  # no allocation is left to fail
    assert reservation.bytes == reserved() == 0
    assert torch.equal(clone[0].weight, source[0].weight + 1)


def test_a_failure_leaves_the_reserve_as_it_was():
    source = model()
    clone = torchcow.clone(source)
    reservation = torchcow.reserve(clone, names=["0"])
    with torchcow.testing.fail_allocations(0), torch.no_grad(), pytest.raises(RuntimeError, match="no memory"):
        torch._foreach_add_([clone[0].weight, clone[1].weight], 1.0)
    assert reservation.bytes == BYTES
    assert torchcow.is_shared(clone[0].weight)
    write(clone[0].weight)
    assert reservation.bytes == 0


def test_a_piece_of_another_size_makes_room():
    source = [torch.rand(SIDE, SIDE), torch.rand(SIDE)]
    clone = torchcow.clone(source)
    reservation = torchcow.reserve(clone, bytes=BYTES)
    write(clone[1])
    assert reservation.bytes == 0
    write(clone[0])
    assert torch.equal(clone[0], source[0] + 1)


@pytest.mark.parametrize(
    ("amount", "tensors"), [({"fraction": 0.5}, 2), ({"bytes": BYTES + 1}, 2), ({"fraction": 0.0}, 0)]
)
def test_a_part_can_be_reserved(amount, tensors):
    source = model()
    clone = torchcow.clone(source)
    assert torchcow.reserve(clone, **amount).bytes == tensors * BYTES


def test_names_are_for_these_tensors_only():
    source = model()
    clone = torchcow.clone(source)
    reservation = torchcow.reserve(clone, names=["1.weight", "3"])
    assert reservation.bytes == 2 * BYTES
    write(clone[0].weight)
    assert reservation.bytes == 2 * BYTES
    write(clone[3].weight)
    assert reservation.bytes == BYTES


def test_it_goes_with_a_tensor_that_shares_again():
    source = [torch.rand(SIDE, SIDE)]
    clone = torchcow.clone(source)
    other = torchcow.clone(source)
    write(clone[0])
    clone[0].copy_(source[0])
    sibling = torchcow.clone(clone)
    reservation = torchcow.reserve(clone)
    assert torchcow.reshare(source, clone).tensors == 1
    assert reservation.bytes == BYTES
    with torchcow.testing.fail_allocations(0):
        write(clone[0])
    assert reservation.bytes == 0
    assert torch.equal(sibling[0], other[0])


def test_it_ends_with_the_clone():
    source = model()
    clone = torchcow.clone(source)
    reservation = torchcow.reserve(clone)
    del clone
    assert reserved() == reservation.bytes == 0
    clone = torchcow.clone(source)
    first = torchcow.reserve(clone)
    second = torchcow.reserve(clone, fraction=0.25)
    assert (first.bytes, second.bytes, reserved()) == (0, BYTES, BYTES)
    second.release()
    second.release()
    assert reserved() == 0
    write(*clone.parameters())


def test_nothing_to_reserve():
    assert torchcow.reserve(model()).bytes == 0
    assert torchcow.worst_case(model()) == 0


@pytest.mark.parametrize(
    ("amount", "error", "message"),
    [
        ({"fraction": 1.5}, ValueError, "a fraction from 0 to 1, got 1.5"),
        ({"fraction": float("nan")}, ValueError, "a fraction from 0 to 1, got nan"),
        ({"bytes": -1}, ValueError, f"expected 0 to {4 * BYTES} bytes"),
        ({"bytes": 5 * BYTES}, ValueError, "all that Sequential can need"),
        ({"fraction": 0.5, "names": ["0"]}, ValueError, "expected one of fraction, bytes and names"),
        ({"names": ["0.wight"]}, LookupError, "has no tensor or module '0.wight'. Tensors there: 0.weight"),
    ],
)
def test_amounts_that_make_no_sense(amount, error, message):
    source = model()
    clone = torchcow.clone(source)
    with pytest.raises(error, match=message):
        torchcow.reserve(clone, **amount)
    assert reserved() == 0


def test_a_lack_of_memory_shows_when_it_is_reserved(monkeypatch):
    source = model()
    clone = torchcow.clone(source)
    with torchcow.testing.fail_allocations(2), pytest.raises(torch.OutOfMemoryError, match="nothing was reserved"):
        torchcow.reserve(clone)
    assert reserved() == 0
    monkeypatch.setattr(sys.modules["torchcow.report.budget"], "headroom", lambda device: BYTES)
    with pytest.raises(torch.OutOfMemoryError, match=f"needs {4 * BYTES} bytes on cpu, and {BYTES} are free"):
        torchcow.reserve(clone)
    write(*clone.parameters())


def test_headroom():
    assert 0 < torchcow.headroom() < 1 << 60
    with pytest.raises(ValueError, match="cpu or cuda, got meta"):
        torchcow.headroom("meta")


def test_headroom_knows_the_limit_of_the_process():
    run_script("""
import resource
import torch, torchcow
before = torchcow.headroom()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
assert 200 << 20 < torchcow.headroom() <= 256 << 20
clone = torchcow.clone(source := torch.zeros(100 << 20, dtype=torch.uint8))
clones = [torchcow.clone(source) for _ in range(3)]
try:
    torchcow.reserve(clones)
except torch.OutOfMemoryError as error:
    assert "nothing was reserved" in str(error)
else:
    raise AssertionError
assert torchcow.is_shared(clones[0])
""")


def test_the_error_of_a_first_write_says_who_shares():
    source = nn.Linear(SIDE, SIDE)
    clone = torchcow.clone(source)
    head = nn.Sequential(torchcow.clone(source))
    sibling = torchcow.clone(head)
    message = (
        rf"Linear.weight \({BYTES} bytes on cpu\) by aten::add_.Tensor. It is shared by 4 tensors, among them "
        r"(Linear.weight, Sequential.0.weight|Sequential.0.weight, Linear.weight)"
    )
    with torchcow.testing.fail_allocations(0), pytest.raises(RuntimeError, match=message):
        write(clone.weight)
    assert sibling is not None
