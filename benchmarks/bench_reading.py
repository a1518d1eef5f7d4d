"""Is reading free?

Prediction: yes. Operators that only read have no kernel of ours, and a shared tensor is a plain tensor whose storage
has another deleter. Operators that write pass one kernel more.
"""

from __future__ import annotations

import copy

import pytest
import torch

import models
import torchcow


@pytest.mark.parametrize("name", models.MODELS)
def test_forward(name, tiny, compare):
    model, inputs = models.MODELS[name](tiny)
    clone = torchcow.clone(model)
    with torch.no_grad():
        assert torch.equal(model(inputs), clone(inputs))
        reference = model  # the source is a sharer itself; `plain` is not
        plain = models.MODELS[name](tiny)[0]
        compare(
            rounds=60,
            plain=(lambda: plain, lambda m: m(inputs)),
            source=(lambda: reference, lambda m: m(inputs)),
            clone=(lambda: clone, lambda m: m(inputs)),
        )
    assert all(torchcow.is_shared(p) for p in clone.parameters() if p.nbytes >= 1024)


SMALL = {
    "add": lambda t: t + t,
    "sum": lambda t: t.sum(),
    "matmul": lambda t: t @ t,
    "view": lambda t: t.view(-1),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_operator(name, tiny, compare):
    """A thousand calls on a 32 x 32 tensor.

    The baseline is a deep copy: reading ``tensor.__dict__``, as deep copies do with its source and its result, makes
    Python look up methods 60 ns slower from then on.
    """
    act = SMALL[name]
    plain, source = copy.deepcopy(torch.rand(32, 32)), torch.rand(32, 32)
    clone = torchcow.clone(source)
    assert torchcow.is_shared(clone)

    def loop(tensor):
        for _ in range(1000):
            act(tensor)

    compare(rounds=60, plain=(lambda: plain, loop), shared=(lambda: clone, loop))


def test_writing_to_unshared_memory(tiny, compare):
    """A thousand in-place operators on plain tensors: what the barrier costs those who share nothing."""
    tensor = torch.rand(32, 32)
    out = torch.empty(32, 32)

    def add_(_):
        for _ in range(1000):
            tensor.add_(0.0)

    def add_out(_):
        for _ in range(1000):
            torch.add(tensor, 0.0, out=out)

    compare(rounds=60, unboxed=(lambda: None, add_), boxed=(lambda: None, add_out))
