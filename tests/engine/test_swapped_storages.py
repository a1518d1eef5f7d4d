# SPDX-License-Identifier: Apache-2.0
"""`UntypedStorage._swap_data_ptr_` (torch 2.12 and newer) exchanges what two storages hold, their allocators included.

Break, on torch 2.12: the hook dies with its storage, although the other storage has it as its allocator by then. All
but the tests with one shared storage crash.
"""

from __future__ import annotations

import gc
import threading

import pytest
import torch

import torchcow
import torchcow.testing
from support.oracle import SIDE

pytestmark = pytest.mark.skipif(not hasattr(torch.UntypedStorage, "_swap_data_ptr_"), reason="torch 2.12 and newer")


@pytest.fixture(params=[False, True], ids=["alone", "another thread"], autouse=True)
def another_thread(request):
    """With another thread about, memory lingers under torch's own deleter on torch 2.12."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    if request.param:
        thread.start()
    yield
    done.set()
    if request.param:
        thread.join()


def filled(value):
    return torch.full((SIDE, SIDE), float(value))


def swap(a, b):
    a.untyped_storage()._swap_data_ptr_(b.untyped_storage())


def expect(**values):
    """Each tensor holds one value only: `expect(a=(a, 3))`."""
    for name, (tensor, value) in values.items():
        assert torch.equal(tensor, filled(value)), f"{name}: expected {value}, got {tensor[0, 0]}"
    torchcow.testing.verify()


WRITES = {"operator": lambda t, value: t.fill_(value), "pointer": lambda t, value: t.numpy().fill(value)}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_shared_with_plain(write):
    a, b = filled(1), filled(2)
    c = torchcow.clone(a)
    swap(a, b)
    expect(a=(a, 2), b=(b, 1), c=(c, 1))
    write(b, 3)
    expect(a=(a, 2), b=(b, 3), c=(c, 1))
    write(a, 4)
    expect(a=(a, 4), b=(b, 3), c=(c, 1))
    write(c, 5)
    expect(a=(a, 4), b=(b, 3), c=(c, 5))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_shared_with_shared(write):
    a, b = filled(1), filled(2)
    c, d = torchcow.clone(a), torchcow.clone(b)
    swap(a, b)
    write(a, 3)
    expect(a=(a, 3), b=(b, 1), c=(c, 1), d=(d, 2))
    write(d, 4)
    write(b, 5)
    expect(a=(a, 3), b=(b, 5), c=(c, 1), d=(d, 4))


def test_relatives():
    a = filled(1)
    b = torchcow.clone(a)
    swap(a, b)
    a.fill_(2)
    expect(a=(a, 2), b=(b, 1))


def test_cloned_again_afterwards():
    a, b = filled(1), filled(2)
    c = torchcow.clone(a)
    swap(a, b)
    d, e = torchcow.clone(a), torchcow.clone(b)
    a.fill_(3)
    b.fill_(4)
    expect(a=(a, 3), b=(b, 4), c=(c, 1), d=(d, 2), e=(e, 1))


@pytest.mark.parametrize("again", [False, True], ids=["", "cloned again"])
def test_one_dies_and_the_other_asks_for_memory(again):
    for _ in range(20):
        a, b = filled(1), filled(2)
        c = torchcow.clone(a)
        swap(a, b)
        if again:
            torchcow.clone(a).add_(1)
        del a, c
        gc.collect()
        litter = [torchcow.clone(filled(9)) for _ in range(20)]
        b.resize_(2 * SIDE, SIDE).fill_(3)
        assert b.eq(3).all()
        d = torchcow.clone(b)
        b.numpy().fill(4)
        assert d.eq(3).all() and b.eq(4).all()
        del litter
