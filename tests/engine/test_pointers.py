# SPDX-License-Identifier: Apache-2.0
"""Every way in which a pointer leaves torch: numpy, DLPack, data_ptr, the buffer protocol; before and after the clone.

A handle taken before the clone keeps writing into its own tensor, as with a deep copy, and into nobody else; memory
that a tensor has moved away from stays readable for whoever still holds a handle.

Catches: sharing memory that NumPy looks into (drop the `resizable()` test), `strict=True` that does not look at use
counts, exports that hand out the block itself (drop the storage hook), retired memory that is freed too early.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import threading

import numpy as np
import pytest
import torch
from torch import nn

import torchcow
import torchcow.testing
from support.oracle import SIDE, assert_same, check_isolation, freeze

COUNT = SIDE * SIDE


def matrix():
    return torch.rand(SIDE, SIDE) + 1


def from_address(address):
    return np.ctypeslib.as_array((ctypes.c_float * COUNT).from_address(address))


class Interface:
    def __init__(self, tensor):
        self.tensor = tensor
        self.__array_interface__ = {
            "shape": (SIDE, SIDE), "typestr": "<f4", "data": (tensor.data_ptr(), False), "version": 3,
        }  # fmt: skip


# How a handle is taken; each returns something that numpy can write.
NUMPY = {
    "numpy": lambda t: t.numpy(),
    "numpy of a view": lambda t: t.view(-1).numpy(),
    "numpy of a transposed view": lambda t: t.t().numpy(),
    "numpy of rows": lambda t: t[0:].numpy(),
    "numpy of detach": lambda t: t.detach().numpy(),
    "np.asarray": lambda t: np.asarray(t),
    "np.array without copy": lambda t: np.array(t, copy=None),
    "memoryview": lambda t: np.asarray(memoryview(t.numpy())),
    "from_numpy and back": lambda t: torch.from_numpy(t.numpy()).numpy(),
    "numpy of a parameter": lambda t: nn.Parameter(t).detach().numpy(),
}
DLPACK = {
    "torch.from_dlpack": lambda t: torch.from_dlpack(t).numpy(),
    "capsule": lambda t: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(t)).numpy(),
    "__dlpack__": lambda t: torch.utils.dlpack.from_dlpack(t.__dlpack__()).numpy(),
}
RAW = {
    "data_ptr": lambda t: from_address(t.data_ptr()),
    "data_ptr of a view": lambda t: from_address(t[0].data_ptr()),
    "storage data_ptr": lambda t: from_address(t.untyped_storage().data_ptr()),
    "__array_interface__": lambda t: np.asarray(Interface(t)),
}
EXPORTS = {**NUMPY, **DLPACK, **RAW}


@pytest.mark.parametrize("name", EXPORTS)
def test_handle_taken_after_the_clone_I2(name):
    check_isolation(matrix, lambda t: EXPORTS[name](t).fill(5))


@pytest.mark.parametrize("name", EXPORTS)
def test_reading_through_a_handle_changes_nobody(name):
    check_isolation(matrix, lambda t: EXPORTS[name](t).sum() is None, writes=False)


@pytest.mark.parametrize("writer", ["numpy", "torch"])
@pytest.mark.parametrize("name", NUMPY)
def test_numpy_handle_taken_before_the_clone(name, writer):
    source = matrix()
    handle = NUMPY[name](source)
    clone, other = torchcow.clone(source), torchcow.clone(source)
    want = freeze(other)
    handle.fill(5) if writer == "numpy" else source.fill_(5)
    assert torch.equal(source, torch.full((SIDE, SIDE), 5.0)), "the handle lost its tensor"
    assert (np.asarray(handle) == 5).all()
    assert_same(want, clone, "the clone, after the source was written through a handle from before")
    clone.fill_(6)
    assert (np.asarray(handle) == 5).all(), "the handle sees what the clone writes"
    assert_same(want, other, "the other clone")


@pytest.mark.parametrize("name", {**NUMPY, **DLPACK})
def test_strict_copies_what_has_any_handle(name):
    source = matrix()
    handle = EXPORTS[name](source)
    clone = torchcow.clone(source, strict=True)
    want = freeze(clone)
    handle.fill(5)
    assert torch.equal(source, torch.full((SIDE, SIDE), 5.0))
    assert_same(want, clone, "the strict clone")


def test_strict_copies_what_has_references_from_outside_the_graph():
    model = nn.Linear(SIDE, SIDE)
    outside = model.weight.detach()
    clone = torchcow.clone(model, strict=True)
    want = freeze(clone)
    outside.zero_()
    assert_same(want, clone, "the strict clone")
    assert not torchcow.is_shared(clone.weight)


class WritesItsCopy(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("values", matrix())

    def __deepcopy__(self, memo):
        result = memo[id(self)] = type(self).__new__(type(self))
        result.__dict__ = copy.deepcopy(self.__dict__, memo)
        result.values.zero_()
        return result


def test_a_consumer_keeps_its_source_though_the_copy_is_written_within_the_call():
    """Break: a share that is taken back leaves the memory to the copy's readers, if other threads might be some: the
    consumer was cut off from its tensor, and three seconds later it looked into memory that was free."""
    stop = threading.Event()
    company = threading.Thread(target=stop.wait)
    company.start()
    try:
        source = WritesItsCopy()
        consumer = torch.from_dlpack(torch.utils.dlpack.to_dlpack(source.values))
        before = source.values + 0
        clone = torchcow.clone(source)
        assert not clone.values.any()
        assert_same(freeze(before), source.values, "the source")
        source.values.add_(1)
        assert torch.equal(consumer, before + 1)
    finally:
        stop.set()
        company.join()


@pytest.mark.sharing
def test_strict_shares_what_has_none():
    model = nn.Linear(SIDE, SIDE)
    clone = torchcow.clone(model, strict=True)
    assert torchcow.is_shared(clone.weight)


@pytest.mark.sharing
@pytest.mark.parametrize("name", NUMPY)
def test_numpy_before_the_clone_is_an_eager_copy_with_a_reason(name):
    source = matrix()
    handle = NUMPY[name](source)
    torchcow.events(clear=True)
    clone = torchcow.clone(source)
    assert not torchcow.is_shared(clone)
    (event,) = [e for e in torchcow.events() if e.kind == "eager"]
    assert event.way == "eager" and event.reason and event.bytes == 4 * COUNT
    del handle


@pytest.mark.sharing
def test_a_write_through_a_forgotten_address_is_found_by_verify_I1():
    source = matrix()
    handle = from_address(source.data_ptr())
    clone = torchcow.clone(source)
    if not torchcow.is_shared(clone):
        pytest.skip("copied at once: nothing to find")
    old = handle[7]
    handle[7] = old + 1
    with pytest.raises(torchcow.testing.IsolationError):
        torchcow.testing.verify()
    handle[7] = old
    torchcow.testing.verify()


def test_the_tensor_that_an_array_is_based_on_is_copied_when_asked():
    """It is the only tensor on its memory, so no count shows the array. Break: strict that looks at references only."""
    array = matrix().numpy()
    clone = torchcow.clone(array.base, strict=True)
    want = clone + 0
    array.fill(5)
    assert torch.equal(clone, want)


class LeavesItsMemory:
    def __init__(self):
        self.tensor = matrix()

    def __deepcopy__(self, memo):
        result = type(self)()
        result.tensor = copy.deepcopy(self.tensor, memo)
        self.tensor.data = torch.zeros(2)
        return result


def test_a_tensor_that_leaves_its_memory_while_it_is_cloned_explains_no_handle():
    """It was met on the storage, and stood for the reference that the consumer of DLPack holds."""
    source = LeavesItsMemory()
    handle = torch.from_dlpack(source.tensor.detach())
    clone = torchcow.clone(source)
    want = clone.tensor + 0
    handle.zero_()
    assert torch.equal(clone.tensor, want)


HOLDERS = {**NUMPY, **DLPACK, "np.from_dlpack": lambda t: np.from_dlpack(t), "view": lambda t: t[:3]}
HOLDERS["storage"] = lambda t: t.untyped_storage()


@pytest.mark.parametrize("first", ["source", "clone"])
@pytest.mark.parametrize("name", HOLDERS)
def test_memory_that_was_left_stays_readable_for_its_holders_I3(name, first):
    """Churn the heap after every relative has gone or moved: the handle must still see something it may see."""
    source = matrix()
    source.fill_(3)
    handle = HOLDERS[name](source)
    clone = torchcow.clone(source)
    if first == "source":
        source.add_(1)
        del clone
    else:
        clone.add_(1)
        del clone
        source.add_(1)
    gc.collect()
    churn = [torch.full((SIDE, SIDE), -77.0) for _ in range(200)]
    seen = torch.tensor(np.asarray(handle)) if not isinstance(handle, torch.UntypedStorage) else None
    if seen is None:
        seen = torch.empty(0).set_(handle).clone()
    assert bool(((seen == 3) | (seen == 4)).all()), f"freed memory: {seen.unique()[:8]}"
    del churn


@pytest.mark.parametrize("name", EXPORTS)
def test_handle_outlives_its_tensor(name):
    source = matrix()
    clone = torchcow.clone(source)
    want = clone + 0
    if name in RAW:
        pytest.skip("a bare address keeps nothing alive, with or without a clone")
    handle = EXPORTS[name](clone)
    del clone
    gc.collect()
    churn = [torch.full((SIDE, SIDE), -77.0) for _ in range(50)]
    assert np.array_equal(np.sort(np.asarray(handle).reshape(-1)), np.sort(want.numpy().reshape(-1)))
    handle.fill(9)
    assert torch.equal(source, want)
    del churn


FOREIGN = {
    "from_numpy": lambda: torch.from_numpy(np.random.rand(SIDE, SIDE)),
    "frombuffer": lambda: torch.frombuffer(bytearray(4 * COUNT), dtype=torch.float32),
    "asarray of numpy": lambda: torch.asarray(np.random.rand(SIDE, SIDE)),
    "as_tensor of numpy": lambda: torch.as_tensor(np.random.rand(SIDE, SIDE)),
    "from_dlpack of numpy": lambda: torch.from_dlpack(np.random.rand(SIDE, SIDE)),
    "shared memory": lambda: torch.rand(SIDE, SIDE).share_memory_(),
    "copied numpy": lambda: torch.from_numpy(np.broadcast_to(np.float32(2), (SIDE, SIDE)).copy()),
    "unsafe storage": lambda: torch.UntypedStorage(4 * COUNT).fill_(1) and torch.ones(SIDE, SIDE),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_memory(name):
    check_isolation(FOREIGN[name], lambda t: t.add_(1))
    check_isolation(FOREIGN[name], lambda t: t.numpy().fill(3))


@pytest.mark.parametrize("name", ["from_numpy", "frombuffer", "from_dlpack of numpy", "shared memory"])
def test_foreign_memory_is_never_shared(name):
    source = FOREIGN[name]()
    clone = torchcow.clone(source)
    assert not torchcow.is_shared(clone) and not torchcow.is_shared(source)


def test_the_array_behind_from_numpy_writes_only_its_own_tensor():
    array = np.ones((SIDE, SIDE), dtype=np.float32)
    source = torch.from_numpy(array)
    clone = torchcow.clone(source)
    array.fill(2)
    assert torch.equal(source, torch.full((SIDE, SIDE), 2.0))
    assert torch.equal(clone, torch.ones(SIDE, SIDE))
