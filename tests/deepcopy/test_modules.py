# SPDX-License-Identifier: Apache-2.0
"""Every nn.Module of torch's module database: forward, backward and a training step of a clone against a deep copy.

Catches: a kind of module whose parameters, buffers or flat weights escape the barrier (running statistics, RNN
weights), a clone whose forward reads other memory than its own, gradients that land in a relative.
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch.testing._internal.common_modules import module_db

import torchcow
import torchcow.testing
from support.oracle import assert_adds_up, assert_same, attempt, difference, freeze, seed

SAMPLES = 2
pytestmark = pytest.mark.filterwarnings("ignore")


def builders(info, training):
    """For each sample: a function that builds the module, always the same, and the call's arguments."""
    dtypes = [d for d in info.supported_dtypes("cpu") if d.is_floating_point]
    dtype = torch.float32 if torch.float32 in dtypes else dtypes[0]
    seed(0)
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=training, training=training)
    for sample in inputs[:SAMPLES]:
        if sample.forward_input is None:
            continue

        def make(arguments=sample.constructor_input):
            seed(0)
            args, kwargs = copy.deepcopy((arguments.args, arguments.kwargs))
            with contextlib.suppress(TypeError):
                return info.module_cls(*args, **{**kwargs, "dtype": dtype, "device": "cpu"}).train(training)
            return info.module_cls(*args, **kwargs).train(training).to(dtype)

        yield make, (sample.forward_input.args, sample.forward_input.kwargs)


def leaves(obj):
    if isinstance(obj, torch.Tensor):
        return [obj]
    values = obj.values() if isinstance(obj, dict) else obj if isinstance(obj, (list, tuple)) else ()
    return [leaf for value in values for leaf in leaves(value)]


def use(module, inputs, training):
    """One forward; in training, one backward and one SGD step as well. Returns what forward gave, detached."""
    args, kwargs = copy.deepcopy(inputs)
    result = module(*args, **kwargs)
    if training:
        total = sum(leaf.float().sum() for leaf in leaves(result) if leaf.requires_grad)
        if isinstance(total, torch.Tensor):
            total.backward()
        parameters = [p for p in module.parameters() if p.grad is not None]
        if parameters:
            torch.optim.SGD(parameters, lr=0.5).step()
    return [leaf.detach().clone() for leaf in leaves(result)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("info", module_db, ids=lambda info: info.formatted_name)
def test_module(info, training):
    """Each relative is used in turn; the others, and the unshared oracles, stay what they are."""
    for make, inputs in builders(info, training):
        try:
            copy.deepcopy(make())
        except Exception as error:  # what cannot be deep-copied must not be cloneable either
            with pytest.raises(type(error)):
                torchcow.clone(make())
            continue
        for order in (("source", "first", "second"), ("second", "first", "source")):
            source = make()
            family = {"source": source, "first": torchcow.clone(source), "second": torchcow.clone(source)}
            oracle = {name: make() if name == "source" else copy.deepcopy(make()) for name in family}
            for name in order:
                want = attempt(use, oracle[name], inputs, training)
                got = attempt(use, family[name], inputs, training)
                assert_same(freeze(list(want)), freeze(list(got)), f"{info.name}: the result of {name}")
                for relative in family:
                    what = f"{info.name}: used {name}, looking at {relative}"
                    assert_same(freeze(oracle[relative]), freeze(family[relative]), what)
                torchcow.testing.verify()
            assert_adds_up(*family.values())


@pytest.mark.parametrize("info", module_db, ids=lambda info: info.formatted_name)
def test_writing_every_parameter_and_buffer(info):
    """Whatever the module is made of: each tensor of a clone, then of the source, is overwritten."""
    for make, _ in builders(info, False):
        try:
            source = make()
            copy.deepcopy(source)
        except Exception:  # see above
            continue
        clone, other = torchcow.clone(source), torchcow.clone(source)
        before = freeze(other)
        for module in (clone, source):
            for tensor in [*module.parameters(), *module.buffers()]:
                if not torch.nn.parameter.is_lazy(tensor) and tensor.layout == torch.strided and tensor.numel():
                    tensor.data.add_(1) if tensor.dtype != torch.bool else tensor.data.logical_not_()
            assert not difference(before, freeze(other)), f"{info.name}: the other clone changed"
        torchcow.testing.verify()


@pytest.mark.sharing
@pytest.mark.parametrize("info", module_db, ids=lambda info: info.formatted_name)
def test_inference_un_shares_nothing(info):
    for make, inputs in builders(info, False):
        source = make()
        try:
            clone = torchcow.clone(source)
        except Exception:  # see above
            continue
        before = {name: torchcow.is_shared(t) for name, t in clone.state_dict().items()}
        dense = [t for t in clone.state_dict().values() if not torch.nn.parameter.is_lazy(t) and t.numel()]
        assert any(before.values()) or not dense, "nothing is shared: this proves nothing"
        with torch.no_grad():
            attempt(use, clone, inputs, False)
        after = {name: torchcow.is_shared(t) for name, t in clone.state_dict().items()}
        if before != after:
            assert info.name.removeprefix("nn.") in UNSHARING_FORWARD, f"un-shared: {before} {after}"


# Their CPU kernels ask for writable pointers of what they only read (oneDNN's LSTM), or max_norm really writes.
UNSHARING_FORWARD = {"LSTM", "GRU", "RNN", "LSTMCell", "TransformerEncoderLayer", "Embedding", "EmbeddingBag"}
