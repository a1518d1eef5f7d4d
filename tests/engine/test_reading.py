# SPDX-License-Identifier: Apache-2.0
"""A shared tensor answers every question as a deep copy does, and answering un-shares nothing.

Catches: the barrier's mark where torch asks for a tensor's dispatch keys (`new_tensor` and its kin), a property that
leads to the block instead of the sharer, weak references that the engine leaves on users' tensors, and any read that
un-shares although the table below does not know it.
"""

from __future__ import annotations

import copy
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import torchcow
from support.oracle import SIDE, assert_same, attempt, difference, freeze


def matrix():
    return torch.rand(SIDE, SIDE) + 1


QUESTIONS = {
    "new_tensor": lambda t: t.new_tensor([1.0, 2.0]),
    "new_tensor with device": lambda t: t.new_tensor(3.0, device="cpu"),
    "new_tensor with dtype": lambda t: t.new_tensor([1], dtype=torch.int32),
    "new_empty": lambda t: t.new_empty(3, 5).fill_(1),
    "new_zeros": lambda t: t.new_zeros(3, device="cpu"),
    "new_ones": lambda t: t.new_ones((2, 2), dtype=torch.int64),
    "new_full": lambda t: t.new_full((3,), 4),
    "new_empty_strided": lambda t: t.new_empty_strided((2, 2), (1, 2)).zero_(),
    "new": lambda t: t.new(3).zero_(),
    "empty_like": lambda t: torch.empty_like(t).zero_(),
    "zeros_like": lambda t: torch.zeros_like(t),
    "rand_like": lambda t: torch.rand_like(t),
    "full_like": lambda t: torch.full_like(t, 3, dtype=torch.bfloat16),
    "tensor": lambda t: torch.tensor(t),
    "as_tensor": lambda t: torch.as_tensor(t),
    "asarray with copy": lambda t: torch.asarray(t, copy=True),
    "sparse": lambda t: t.to_sparse(),
    "csr": lambda t: t.to_sparse_csr(),
    "meta": lambda t: t.to("meta"),
    "double": lambda t: t.double(),
    "to other": lambda t: t.to(torch.ones(1, dtype=torch.int16)),
    "type": lambda t: t.type(),
    "type_as": lambda t: t.type_as(torch.ones(1, dtype=torch.float64)),
    "type of string": lambda t: t.type("torch.DoubleTensor"),
    "device": lambda t: (str(t.device), t.is_cpu, t.is_cuda, t.is_meta, t.get_device()),
    "layout": lambda t: (str(t.layout), t.is_sparse, t.is_quantized, t.is_nested, t.is_mkldnn),
    "flags": lambda t: (t.is_leaf, t.requires_grad, t.is_inference(), t.is_conj(), t.is_neg(), t.is_contiguous()),
    "sizes": lambda t: (t.size(), t.stride(), t.storage_offset(), t.numel(), t.element_size(), t.nbytes),
    "storage": lambda t: (t.untyped_storage().nbytes(), t.untyped_storage().device.type, t.storage().size()),
    "is_set_to": lambda t: (t.is_set_to(t), t.is_set_to(torch.ones(3))),
    "is_shared": lambda t: t.is_shared(),
    "is_pinned": lambda t: t.is_pinned(),
    "repr": lambda t: repr(t),
    "format": lambda t: f"{t[0, 0]:.3f}",
    "tolist": lambda t: t.tolist(),
    "item": lambda t: t[3, 4].item(),
    "float": lambda t: (float(t[0, 0]), int(t[0, 0]), bool(t[0, 0]), complex(t[0, 0])),
    "len and iter": lambda t: (len(t), list(t)[3]),
    "contains": lambda t: 1.0 in t,
    "equal": lambda t: (torch.equal(t, t), torch.allclose(t, t + 0)),
    "hash stays": lambda t: hash(t) == id(t),
    "nonzero": lambda t: t.nonzero(),
    "unique": lambda t: t.unique(),
    "matmul": lambda t: t @ t,
    "einsum": lambda t: torch.einsum("ij,kj->ik", t, t),
    "cat and stack": lambda t: [torch.cat([t, t]), torch.stack([t, t])],
    "where": lambda t: torch.where(t > 1.5, t, 0.0),
    "gather": lambda t: t.gather(0, torch.zeros(1, SIDE, dtype=torch.long)),
    "sort": lambda t: t.sort(),
    "linalg": lambda t: [torch.linalg.svdvals(t), torch.linalg.inv(t)],
    "fft": lambda t: torch.fft.rfft(t),
    "conv": lambda t: nn.functional.conv2d(t[None, None], t[None, None, :3, :3]),
    "attention": lambda t: nn.functional.scaled_dot_product_attention(t[None], t[None], t[None]),
    "embedding": lambda t: nn.functional.embedding(torch.arange(3), t),
    "layer_norm": lambda t: nn.functional.layer_norm(t, (SIDE,), t[0], t[1]),
    "linear": lambda t: nn.functional.linear(t, t, t[0]),
    "quantize": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
    "autocast": lambda t: torch.autocast("cpu", dtype=torch.bfloat16)(torch.mm)(t, t),
    "gradient": lambda t: torch.autograd.grad((t.detach().requires_grad_() ** 2).sum(), [], allow_unused=True),
    "func.grad": lambda t: torch.func.grad(lambda v: (v**2).sum())(t),
    "vmap": lambda t: torch.vmap(torch.sin)(t),
    "jvp": lambda t: torch.func.jvp(torch.sin, (t,), (t,)),
    "double dispatch": lambda t: torch.add(torch.ones(3, 1, 1), t),
    "meta arithmetic": lambda t: torch.empty(SIDE, device="meta") + t[0].to("meta"),
    "deepcopy": lambda t: copy.deepcopy(t),
    "copy": lambda t: copy.copy(t),
    "named parameters": lambda t: nn.Parameter(t),
    "subclass": lambda t: t.as_subclass(nn.Parameter),
    "make_subclass": lambda t: torch.Tensor._make_subclass(nn.Parameter, t),
    "split": lambda t: t.split(9),
    "nested": lambda t: torch.nested.nested_tensor([t, t[:3]]).unbind(),
    "pad_sequence": lambda t: nn.utils.rnn.pad_sequence([t, t[:3]]),
    "script": lambda t: torch.jit.trace(lambda v: v * 2, (t,))(t),
    "trace and read": lambda t: torch.fx.symbolic_trace(lambda v: v * 2)(t),
    "histogram": lambda t: torch.histc(t),
    "bincount": lambda t: torch.bincount(t.long().view(-1)),
    "cdist": lambda t: torch.cdist(t, t),
    "profiler": lambda t: _profiled(t),
}
# They ask for a writable pointer, though they only read (see the docs on what un-shares).
UNSHARING = {
    "numpy": lambda t: t.numpy().copy(),
    "array": lambda t: t.__array__().copy(),
    "data_ptr": lambda t: t.data_ptr() > 0,
    "dlpack": lambda t: torch.from_dlpack(t).clone(),
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "save": lambda t: torch.save(t, io.BytesIO()),
    "bytes of the storage": lambda t: bytes(t.untyped_storage()[:8]),
    "storage list": lambda t: t.storage().tolist(),
    "mkldnn": lambda t: t.to_mkldnn().to_dense(),
}


def _profiled(t):
    with torch.profiler.profile():
        return t + 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [matrix, lambda: nn.Parameter(matrix())], ids=["tensor", "parameter"])
@pytest.mark.parametrize("name", {**QUESTIONS, **UNSHARING})
def test_the_answer_is_that_of_a_deep_copy(name, make):
    source = make()
    clone, other, oracle = torchcow.clone(source), torchcow.clone(source), copy.deepcopy(source)
    was_shared = torchcow.is_shared(clone) and torchcow.is_shared(source)
    before = freeze(source)
    ask = {**QUESTIONS, **UNSHARING}[name]
    want = attempt(ask, oracle)
    for tensor in (clone, source):
        got = attempt(ask, tensor)
        assert got[0] == want[0], f"expected {want}, got {got}"
        text = difference(freeze(list(want)), freeze(list(got)))
        assert not text or name == "profiler", text
        if was_shared and name in QUESTIONS:
            assert torchcow.is_shared(tensor), "asking un-shared it"
    for tensor in (source, clone, other):
        assert_same(before, tensor, "after asking")


def test_every_property_answers():
    """All attributes of a tensor that take no argument and return plain data."""
    source = matrix()
    clone, oracle = torchcow.clone(source), copy.deepcopy(source)
    plain = (bool, int, float, str, tuple, torch.dtype, torch.device, torch.layout, torch.Size)
    for name in dir(torch.Tensor):
        if name.startswith("__") or name in ("_cdata", "_version"):
            continue
        want, got, mine = (attempt(getattr, t, name) for t in (oracle, clone, source))
        assert want[0] == got[0] == mine[0], name
        if want[0] == "returned" and isinstance(want[1], plain):
            assert want[1] == got[1] == mine[1], name


METHODS = sorted(
    name
    for name in dir(torch.Tensor)
    if not name.startswith("_") and not name.endswith("_") and callable(getattr(torch.Tensor, name))
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("cuda", "xpu", "ipu", "hpu", "mtia", "backward")]
)
def test_every_method_without_arguments(name):
    source = matrix()
    clone, oracle = torchcow.clone(source), copy.deepcopy(source)
    want = attempt(lambda t: getattr(t, name)(), oracle)
    for tensor in (clone, source):
        got = attempt(lambda t: getattr(t, name)(), tensor)
        assert got[0] == want[0], f"expected {want}, got {got}"
        if name not in ("data_ptr", "const_data_ptr", "new", "__hash__"):
            text = difference(freeze(list(want)), freeze(list(got)))
            assert not text, text


def test_nothing_is_left_on_the_users_tensors():
    """No weak reference, no attribute: `torch.utils.swap_tensors` refuses tensors that have any."""
    source = nn.Linear(SIDE, SIDE)
    clone = torchcow.clone(source)
    torchcow.events()
    for module in (source, clone):
        for parameter in module.parameters():
            assert weakref.getweakrefcount(parameter) == 0
            assert not parameter.__dict__
    torch.utils.swap_tensors(source.weight, torch.ones(3))
    torch.utils.swap_tensors(clone.weight, torch.ones(3))


def test_results_are_plain_tensors():
    """What operators return carries no mark: its dispatch keys are those of any tensor."""
    keys = torch._C._dispatch_keys
    clone = torchcow.clone(matrix())
    results = (clone + 1, clone.sum(), clone.clone(), torch.empty_like(clone), clone @ clone, copy.deepcopy(clone))
    plain = torch.ones(3)
    for result in results:
        assert keys(result).raw_repr() == keys(plain).raw_repr()
