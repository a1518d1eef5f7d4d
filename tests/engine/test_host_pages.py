# SPDX-License-Identifier: Apache-2.0
"""Large first writes get memory of the engine's own: everything that torch does with memory works on it.

Catches: pages that are freed by torch's deleter or twice, that are not recognized as shareable, or that outlive what is
shared (each was tried, in csrc/core/host_pages.cpp, share.cpp and engine_state.cpp).
"""

from __future__ import annotations

import copy
import gc
import pickle

import numpy as np
import pytest
import torch

import torchcow
from support.oracle import not_under, regrown, saved_and_loaded

COUNT = 3 << 18  # floats: three megabytes, more than a huge page
SHARED = pytest.mark.sharing


def written():
    """A tensor that was cloned and written; its source, which holds zeros; what it holds now."""
    source = torch.zeros(COUNT)
    clone = torchcow.clone(source)
    clone.copy_(torch.arange(COUNT))
    return clone, source, torch.arange(COUNT, dtype=torch.float32)


def _grown(tensor):
    return tensor.resize_(2 * COUNT)[:COUNT]


def _freed_and_grown(tensor):
    kept = tensor.clone()
    regrown(tensor)
    return tensor.copy_(kept)


def _set(tensor):
    return torch.empty(0).set_(tensor.untyped_storage(), 0, (COUNT,))


USES = {
    "clone": torchcow.clone,
    "deepcopy": copy.deepcopy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "save": saved_and_loaded,
    "resize_": _grown,
    "storage.resize_": _freed_and_grown,
    "set_": _set,
    "share_memory_": torch.Tensor.share_memory_,
    "numpy": lambda t: torch.from_numpy(t.numpy()),
    "dlpack": lambda t: torch.from_dlpack(np.from_dlpack(t)),
    "lazy_clone": torch._lazy_clone,
    "byteswap": lambda t: (t.untyped_storage().byteswap(t.dtype), t.untyped_storage().byteswap(t.dtype), t)[-1],
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_torch_does_with_memory(use):
    tensor, source, expected = written()
    result = use(tensor)
    del tensor
    gc.collect()
    assert torch.equal(result, expected)
    result.add_(1)
    assert torch.equal(result, expected + 1)
    assert not source.any()


@SHARED
@not_under("asan", "malloc only, for that sanitizer to watch")
def test_freed_memory_serves_the_next_write_while_something_is_shared():
    tensor, source, _ = written()
    address = tensor.const_data_ptr() if hasattr(tensor, "const_data_ptr") else tensor.data_ptr()
    del tensor
    assert torchcow.ledger().kept_bytes == COUNT * 4
    again = torchcow.clone(source)
    again[0] = 1
    assert torchcow.ledger().kept_bytes == 0
    assert again.data_ptr() == address
    assert not again[1:].any()
    del again, source
    assert torchcow.ledger().kept_bytes == 0


@SHARED
def test_many_sizes_come_and_go():
    """Sources and clones of different sizes, written and dropped in turn: no clone sees another one's old bytes."""
    sources = [torch.full((COUNT + 512 * i,), float(i)) for i in range(5)]
    for turn in range(20):
        clones = [torchcow.clone(source) for source in sources]
        for i, clone in enumerate(clones):
            if (turn + i) % 3:
                clone[turn] = -1
        for i, (clone, source) in enumerate(zip(clones, sources, strict=True)):
            expected = torch.full_like(source, float(i))
            assert torch.equal(source, expected)
            if (turn + i) % 3:
                expected[turn] = -1
            assert torch.equal(clone, expected)
