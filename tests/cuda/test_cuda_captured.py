# SPDX-License-Identifier: Apache-2.0
"""Graphs that were captured before a clone: what they write does not reach it, what they read stays in its place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import torchcow

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def captured(act):
    """A graph of ``act``, which has run three times before, as capturing asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            act()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        act()
    return graph


def test_what_a_replay_writes_does_not_reach_a_clone():
    weight = torch.ones(4096, device="cuda")
    graph = captured(lambda: weight.mul_(2))
    expected = copy.deepcopy(weight)
    clone = torchcow.clone(weight)
    graph.replay()
    assert torch.equal(clone, expected)
    assert torch.equal(weight, expected * 2)


def test_a_replay_reads_what_was_written_after_the_clone():
    model = nn.Linear(64, 64, device="cuda").requires_grad_(False)
    x = torch.rand(8, 64, device="cuda")
    result = torch.empty(8, 64, device="cuda")
    graph = captured(lambda: result.copy_(model(x)))
    clone = torchcow.clone(model)
    before = clone(x)
    model.weight.add_(1)
    graph.replay()
    torch.testing.assert_close(result, model(x))
    torch.testing.assert_close(clone(x), before)


def test_what_is_made_after_the_capture_is_shared():
    weight = torch.ones(4096, device="cuda")
    captured(lambda: weight.mul_(2))
    base = torchcow.clone(weight)
    assert torchcow.is_shared(torchcow.clone(base))
