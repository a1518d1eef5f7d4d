# SPDX-License-Identifier: Apache-2.0
"""Compiled code reads through raw pointers: within ``torchcow.reading`` it un-shares nothing (inductor on the CPU).

Run by ``tests/engine/test_reading_compiled.py`` in a process of its own.
"""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import torchcow
from torchcow import IsolationError

pytestmark = pytest.mark.threads  # those of the compiler


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    gc.collect()


def network():
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 8))


def test_a_compiled_forward_keeps_sharing():
    """Seen to fail without the scope, which is what the last lines show."""
    source = network()
    clone = torchcow.clone(source)
    x = torch.rand(4, 32)
    with torch.no_grad():
        expected = torch.compile(copy.deepcopy(source))(x)
        compiled = torch.compile(clone)
        with torchcow.reading(clone, checksum=True):
            results = [compiled(x), compiled(x)]
        assert all(torch.equal(result, expected) for result in results)
        assert all(torchcow.is_shared(parameter) for parameter in clone.parameters())
        assert torch.equal(compiled(x), expected)
    assert not all(torchcow.is_shared(parameter) for parameter in clone.parameters())


def test_variants_take_turns_in_one_compiled_function():
    source = network()
    variants = [torchcow.clone(source) for _ in range(3)]
    with torch.no_grad():
        for index, variant in enumerate(variants):
            variant[0].bias.add_(index)
    x = torch.rand(4, 32)
    run = torch.compile(lambda model, x: model(x))
    with torch.no_grad(), torchcow.reading(variants):
        results = [run(variant, x) for variant in variants]
        expected = [copy.deepcopy(variant)(x) for variant in variants]
    for result, one in zip(results, expected, strict=True):
        torch.testing.assert_close(result, one)
    assert all(torchcow.is_shared(variant[3].weight) for variant in variants)


def test_compiled_training_steps_are_those_of_a_deep_copy():
    """The optimizer writes through operators: each weight is materialized at its first step, and not before."""
    torch.manual_seed(0)
    source = network()
    clone, reference = torchcow.clone(source), copy.deepcopy(source)
    before = copy.deepcopy(source.state_dict())
    x = torch.rand(16, 32)
    for model in (clone, reference):
        compiled = torch.compile(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with torchcow.reading(model, checksum=True):
            for _ in range(3):
                compiled(x).square().mean().backward()
                if model is clone and not optimizer.state:
                    assert all(torchcow.is_shared(parameter) for parameter in clone.parameters())
                optimizer.step()
                optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(clone.parameters(), reference.parameters(), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


def test_a_compiled_function_that_writes_is_told():
    """Its kernel writes through the pointer that it got; autograd counts that, and so it is seen."""

    def damage():
        clone = torchcow.clone(nn.Linear(32, 32))
        source = torchcow.clone(clone)

        @torch.compile
        def scale(weight):
            weight.mul_(2)

        with (
            pytest.raises(IsolationError, match="weight: its version counter moved"),
            torch.no_grad(),
            torchcow.reading(clone),
        ):
            scale(clone.weight)
        del source

    damage()
    gc.collect()


def test_outside_of_the_scope_a_compiled_function_that_writes_is_isolated():
    source = nn.Linear(32, 32)
    clone, expected = torchcow.clone(source), copy.deepcopy(source)

    @torch.compile
    def scale(weight):
        weight.mul_(2)

    with torch.no_grad():
        scale(clone.weight)
    assert torch.equal(source.weight, expected.weight)
    assert torch.equal(clone.weight, expected.weight * 2)
