# SPDX-License-Identifier: Apache-2.0
"""What does the first write cost, and where does copy-on-write stop paying?

Prediction: fresh memory is bound by page faults, so that huge pages and two threads beat both ``torch._lazy_clone``
and a plain copy; skip costs what the write costs plus the faults; steal costs nothing. A variant that trains all of its
weights copies as much as a deep copy does, in pieces: it should cost the same, and everything less than that is gain.
"""

from __future__ import annotations

import copy
import gc

import pytest
import torch

import models
import torchcow

KIB = 1024
SIZES = {  # bytes, and the form from which on they are measured
    "4 KiB": 4 * KIB,
    "64 KiB": 64 * KIB,
    "1 MiB": KIB**2,
    "16 MiB": 16 * KIB**2,
    "128 MiB": 128 * KIB**2,
    "512 MiB": 512 * KIB**2,
    "2 GiB": 2 * KIB**3,
}
LARGE = ("512 MiB", "2 GiB")


def touch(tensor):
    """A write to one element: the time is that of getting private memory."""
    return tensor[:1].zero_()


@pytest.mark.parametrize("size", SIZES)
def test_one_tensor(size, form, compare):
    """Each candidate ends with bytes that it may write. ``copy into warm memory`` is the time of memcpy alone.

    The candidates that say 'kept' find pages that another clone has freed, as when clones come and go.
    """
    if form == "quick" and size in LARGE:
        pytest.skip("measured by the full form")
    count = min(SIZES[size], 64 * KIB if form == "tiny" else SIZES[size]) // 4
    source, other = torch.rand(count), torch.rand(count)
    lazy, warm = torch.rand(count), torch.rand(count)
    before = source.clone()
    kept = torchcow.clone(other)  # something stays shared, so that pages are kept; ``source`` is alone between turns

    def fresh():
        nonlocal kept
        kept = None  # nothing is shared any more: the engine gives back the pages that it has kept
        return torchcow.clone(source)

    def reusing():
        nonlocal kept
        kept = torchcow.clone(other)
        touch(torchcow.clone(source))
        return torchcow.clone(source)

    def alone():
        owner = torch.ones(count)
        torchcow.clone(owner)
        return owner

    clone = torchcow.clone(source)
    touch(clone)
    assert torch.equal(source, before) and clone[0] == 0 and torch.equal(clone[1:], before[1:])
    del clone
    compare(
        seconds=8.0,
        labels={"size": size, "bytes": SIZES[size]},
        **{
            "torch clone": (lambda: source, lambda t: touch(t.clone())),
            "copy into warm memory": (lambda: warm, lambda t: t.copy_(source)),
            "_lazy_clone": (lambda: torch._lazy_clone(lazy), touch),
            "copy": (fresh, touch),
            "copy, kept pages": (reusing, touch),
            "steal": (alone, touch),
            "torch empty_like, zero_": (lambda: source, lambda t: torch.empty_like(t).zero_()),
            "skip": (fresh, lambda t: t.zero_()),
            "skip, kept pages": (reusing, lambda t: t.zero_()),
        },
    )
    assert torch.equal(source, before)


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
        seconds=20.0,
        labels={"model": "GPT-2 124M"},
        **{
            "deepcopy, then write": (lambda: model, lambda m: write_all(copy.deepcopy(m).parameters())),
            "_lazy_clone, then write": (lambda: lazy, lambda ts: write_all([torch._lazy_clone(t) for t in ts])),
            "torchcow.clone, then write": (lambda: model, lambda m: write_all(torchcow.clone(m).parameters())),
            "write alone": (lambda: list(warm.parameters()), write_all),
        },
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
        seconds=20.0,
        labels={"model": "GPT-2 124M"},
        **{
            "deepcopy, then load": (lambda: model, lambda m: load(copy.deepcopy(m))),
            "torchcow.clone, then load": (lambda: model, lambda m: load(torchcow.clone(m))),
            "load alone": (lambda: warm, load),
        },
    )
    assert torch.equal(load(torchcow.clone(model)).head.weight, model.head.weight + 1)


def use(copier, model, inputs, fraction, steps):
    """Clone, train the last layers for so many steps (0: add a number to their weights), and drop."""
    variant = copier(model)
    parts = [variant.tokens, variant.positions, *variant.blocks, variant.ln, variant.head]
    trained = parts[len(parts) - round(fraction * len(parts)) :]
    variant.requires_grad_(False)
    parameters = []
    for part in trained:
        parameters += list(part.requires_grad_(True).parameters())
    if not steps:
        write_all(parameters)
        return parameters
    if not parameters:
        with torch.no_grad():
            for _ in range(steps):
                variant(inputs)
        return parameters
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        variant(inputs).square().mean().backward()
        optimizer.step()
    return parameters


@pytest.mark.parametrize("steps", [0, 1, 10])
def test_break_even(steps, form, compare):
    """A GPT of 59 MB in 16 parts, of which the last ones are trained (0 steps: written once, and not trained)."""
    if form == "tiny":
        steps = min(steps, 2)
    torch.manual_seed(0)
    size = (2, 64, 4, 257) if form == "tiny" else (12, 256, 4, 8192)
    model = models.GPT(*size, context=64, tied=False)
    inputs = torch.randint(0, 257, (2, 16))
    total = sum(parameter.nbytes for parameter in model.parameters())
    expected = use(copy.deepcopy, model, inputs, 1.0, steps)
    results = use(torchcow.clone, model, inputs, 1.0, steps)
    assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))
    del expected, results
    gc.collect()
    for fraction in form.choose((0.0, 1.0), (0.0, 0.5, 1.0), (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)):
        written = sum(p.nbytes for p in use(copy.deepcopy, model, inputs, fraction, 0))
        compare(
            seconds=8.0 if steps == 10 else 4.0,
            labels={"steps": steps, "fraction": written / total},
            **{
                "copy.deepcopy": (lambda: None, lambda _, f=fraction: use(copy.deepcopy, model, inputs, f, steps)),
                "torchcow.clone": (lambda: None, lambda _, f=fraction: use(torchcow.clone, model, inputs, f, steps)),
            },
        )
