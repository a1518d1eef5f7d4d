"""What does the first write cost?

Prediction: fresh memory is bound by page faults, so that huge pages and two threads beat both `torch._lazy_clone`
and a plain copy; skip costs what the write costs plus the faults; steal costs nothing.
"""

from __future__ import annotations

import copy

import pytest
import torch

import models
import torchcow


def write_all(tensors):
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(1)


def test_every_parameter_of_gpt2(tiny, compare):
    model, _ = models.gpt2(tiny)
    other, _ = models.gpt2(tiny)
    lazy = [p.detach() for p in other.parameters()]
    warm = copy.deepcopy(model)
    compare(
        rounds=7,
        lazy_clone=(lambda: [torch._lazy_clone(t) for t in lazy], write_all),
        deepcopy_then_write=(lambda: model, lambda m: write_all(copy.deepcopy(m).parameters())),
        clone=(lambda: list(torchcow.clone(model).parameters()), write_all),
        unshared=(lambda: list(warm.parameters()), write_all),
    )
    clone = torchcow.clone(model)
    write_all(clone.parameters())
    assert all(torch.equal(a + 1, b) for a, b in zip(model.parameters(), clone.parameters(), strict=True))


def test_load_state_dict(tiny, compare):
    model, _ = models.gpt2(tiny)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    warm = copy.deepcopy(model)

    def load(target):
        target.load_state_dict(state)
        return target

    compare(
        rounds=7,
        unshared_warm=(lambda: warm, load),
        deepcopy_then_load=(lambda: model, lambda m: load(copy.deepcopy(m))),
        clone=(lambda: torchcow.clone(model), load),
    )


@pytest.mark.parametrize("kilobytes", [4, 64, 1024, 16384, 131072])
def test_one_tensor(kilobytes, tiny, compare):
    if tiny:
        kilobytes = min(kilobytes, 64)
    source = torch.rand(kilobytes * 256)

    def shared():
        return torchcow.clone(source)

    def stolen():
        return torchcow.clone(torch.rand(kilobytes * 256))

    compare(
        rounds=25,
        tensor_clone=(lambda: source, lambda t: t.clone()),
        copy=(shared, lambda t: t[:1].zero_()),
        skip=(shared, lambda t: t.zero_()),
        steal=(stolen, lambda t: t[:1].zero_()),
    )
