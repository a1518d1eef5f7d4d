# SPDX-License-Identifier: Apache-2.0
"""Which tensors differ: by place first, then by bits, with norms; and looking un-shares nothing.

Catches: a comparison by value (NaN, signed zeros), bytes read where the place tells, tensors missing on one side, forms
that make a comparison fail, an un-sharing read.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import torchcow
from support.oracle import run_script

pytestmark = pytest.mark.sharing


def statuses(a, b):
    return {name: tensor.status for name, tensor in torchcow.diff(a, b).tensors.items()}


def test_the_four_cases():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    edited = torchcow.clone(model)
    with torch.no_grad():
        edited[0].weight.add_(0.5)
        edited[1].bias.copy_(model[1].bias)
    edited.extra = nn.Parameter(torch.ones(3))
    del edited[1].weight
    found = torchcow.diff(model, edited)
    assert statuses(model, edited) == {
        "0.weight": "different",
        "0.bias": "shared",
        "1.weight": "removed",
        "1.bias": "equal",
        "extra": "added",
    }
    changed = found.tensors["0.weight"]
    assert changed.norm == pytest.approx(0.5 * 8)
    assert changed.relative == pytest.approx(4 / model[0].weight.norm().item())
    assert changed.bytes == 256
    assert not found.identical
    assert math.isnan(found.tensors["extra"].norm)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([math.nan, 1.0], [math.nan, 1.0], True),
        ([0.0, 1.0], [-0.0, 1.0], False),
        ([math.inf], [math.inf], True),
    ],
)
def test_bits_count_and_not_values(a, b, same):
    assert torchcow.diff(torch.tensor(a), torch.tensor(b)).identical is same


@pytest.mark.parametrize(
    "dtype",
    [
        *("float64", "float16", "bfloat16", "float8_e4m3fn", "complex64", "complex128"),
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
    ],
)
def test_all_kinds_of_numbers(dtype):
    a = torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, dtype)).t()
    b = a.clone()
    assert statuses(a, b) == {"": "equal"}
    b[0, 1] = 0
    assert statuses(a, b) == {"": "different"}
    assert torchcow.diff(a, b).tensors[""].norm == 1


def test_forms_that_cannot_be_compared_bit_by_bit():
    a = torch.eye(4)
    for make in (torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, lambda t: torch.nested.nested_tensor([t])):
        assert statuses(make(a), make(a.clone())) == {"": "equal"}
        assert statuses(make(a), make(2 * a)) == {"": "different"}
    assert statuses(torch.empty(2, device="meta"), torch.empty(2, device="meta")) == {"": "equal"}
    z = torch.randn(3, dtype=torch.complex64)
    assert statuses(z.conj(), z.clone().conj()) == {"": "equal"}
    assert statuses(z, z.conj()) == {"": "different"}


def test_what_changed_beside_the_numbers():
    found = torchcow.diff({"w": torch.zeros(2, 3)}, {"w": torch.zeros(3, 2, dtype=torch.float64)}).tensors["w"]
    assert found.change == "shape (2, 3) became (3, 2); dtype torch.float32 became torch.float64"
    assert math.isnan(found.norm)
    half = torchcow.diff(torch.ones(4), torch.ones(4, dtype=torch.float16)).tensors[""]
    assert (half.status, half.norm) == ("different", 0.0)


def test_views_at_other_places_of_one_memory_are_not_shared():
    base = torch.arange(8.0)
    assert statuses(base[:4], base[4:]) == {"": "different"}
    assert statuses(base[:4], base[:4]) == {"": "shared"}
    assert statuses(base[:4], torchcow.clone(base)[:4]) == {"": "shared"}
    square = torch.ones(2, 2)
    assert statuses(square, square.t()) == {"": "equal"}


def test_ties_have_every_name():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert statuses(model, torchcow.clone(model)) == {"0.weight": "shared", "1.weight": "shared"}


def test_gradients_and_the_parameters_of_optimizers_are_not_listed_again():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    together = {"model": model, "optimizer": optimizer}
    found = torchcow.diff(together, torchcow.clone(together))
    assert found.identical
    assert list(found.tensors) == [
        *("model.weight", "model.bias"),
        *("optimizer.state.0.momentum_buffer", "optimizer.state.1.momentum_buffer"),
    ]
    assert set(torchcow.diff(optimizer, optimizer).tensors) == {
        *("param_groups.0.params.0", "param_groups.0.params.1"),
        *("state.0.momentum_buffer", "state.1.momentum_buffer"),
    }


def test_looking_unshares_nothing():
    model = nn.Linear(8, 8)
    written = torchcow.clone(model)
    with torch.no_grad():
        written.weight.add_(1)
    other = torchcow.clone(written)
    torchcow.events(clear=True)
    torchcow.diff(model, written)
    torchcow.diff(written, other)
    assert torchcow.events() == []
    assert torchcow.is_shared(other.weight)


def test_tables():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    text = str(torchcow.diff(a, b))
    assert "weight" in text and text.endswith("2 different")
    assert str(torchcow.diff([], [])).endswith("no tensors")
    assert torchcow.diff(a, a).to_dict()["bias"]["status"] == "shared"


def test_shared_tensors_are_not_read():
    # Memory that nobody may read: only the place can have been looked at.
    run_script("""
import ctypes, mmap
import torch, torchcow
source = torch.zeros(1 << 20)
clone = torchcow.clone(source)
assert torchcow.diff(source, clone).tensors[""].status == "shared"
libc = ctypes.CDLL(None, use_errno=True)
start = source.const_data_ptr() if hasattr(source, "const_data_ptr") else None  # torch 2.13 and newer
if start is not None:
    page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(1 << 20), 0) == 0
    assert torchcow.diff(source, clone).tensors[""].status == "shared"
    assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(1 << 20), 3) == 0
""")
