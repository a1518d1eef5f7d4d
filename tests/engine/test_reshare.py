# SPDX-License-Identifier: Apache-2.0
"""Equal tensors share again, and are as isolated afterwards as clones are.

Catches: tensors joined that differ, memory given away that something else looks into, a write between comparison and
join, a view or tie that loses its tensor, a reader that meets freed memory, bytes that are not given back.
"""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

import torchcow
import torchcow.testing
from support.oracle import SIDE

pytestmark = pytest.mark.sharing


def matrix():
    return torch.rand(SIDE, SIDE)


def unique(*objs):
    return torchcow.memory(*objs).unique


def test_a_rollback_gives_the_memory_back():
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE))
    saved = torchcow.clone(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.load_state_dict(saved.state_dict())
    one = torchcow.memory(model).logical
    assert unique(model, saved) == 2 * one
    assert torchcow.reshare(model, saved) == torchcow.Reshared(4, one)
    assert unique(model, saved) == one
    assert torchcow.diff(model, saved).names("shared") == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert torchcow.reshare(model, saved) == torchcow.Reshared(0, 0)


def test_what_shares_again_is_isolated():
    a = matrix()
    b = a.clone()
    expected = a.clone()
    view = b[0]
    assert torchcow.reshare(a, b).tensors == 1
    b.add_(1)
    assert torch.equal(a, expected) and torch.equal(b, expected + 1) and torch.equal(view, b[0])
    assert torchcow.reshare(a, b).tensors == 0
    b.copy_(a)
    torchcow.reshare(a, b)
    a.numpy()[:] = 7
    assert torch.equal(b, expected) and (a == 7).all() and torch.equal(view, expected[0])


def test_copies_of_all_kinds_come_together():
    model = nn.Linear(SIDE, SIDE)
    copies = [copy.deepcopy(model) for _ in range(5)]
    clones = [torchcow.clone(copies[0]) for _ in range(3)]
    with torch.no_grad():
        copies[4].weight[0, 0] += 1
    one = torchcow.memory(model).logical
    torchcow.reshare(model, *copies, *clones)
    assert unique(model, *copies, *clones) == one + model.weight.nbytes
    assert not torchcow.is_shared(copies[4].weight)


def test_bits_decide_I11():
    zero, minus, nan = torch.zeros(1000), -torch.zeros(1000), torch.full((1000,), float("nan"))
    assert torchcow.reshare(zero, minus).tensors == 0
    assert torchcow.reshare(nan, nan.clone()).tensors == 1
    # The same bytes as other numbers are the same memory.
    assert torchcow.reshare(torch.zeros(1000, dtype=torch.int32), zero).tensors == 1
    # Those that differ where no sample is taken.
    other = torch.zeros(1000)
    other[501] = 1
    assert torchcow.reshare(zero, other).tensors == 0


def test_slices_of_a_flat_buffer_are_joined_by_their_clones():
    flat = torch.rand(4 * SIDE * SIDE)
    source = [nn.Parameter(part.view(SIDE, SIDE)) for part in flat.chunk(4)]
    clones = torchcow.clone(source)
    with torch.no_grad():
        for clone, original in zip(clones, source, strict=True):
            clone.add_(1).copy_(original)
    assert not any(map(torchcow.is_shared, clones))
    assert torchcow.reshare(source, clones).tensors == 4
    assert unique(source, clones) == flat.nbytes
    with torch.no_grad():
        source[1].zero_()
    assert clones[1].any() and not flat.chunk(4)[1].any()


def test_optimizers_and_gradients_share_again():
    model = nn.Linear(SIDE, SIDE)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, SIDE)).sum().backward()
    optimizer.step()
    both = copy.deepcopy((model, optimizer))
    assert torchcow.reshare((model, optimizer), both).tensors >= 6
    expected = copy.deepcopy(both[0].weight)
    model(torch.ones(1, SIDE)).sum().backward()
    optimizer.step()
    assert torch.equal(both[0].weight, expected)


def test_memory_of_others_is_left_alone():
    a = matrix()
    foreign = torch.from_numpy(a.numpy().copy())
    looked_into = a.clone()
    array = looked_into.numpy()
    consumer = a.clone()
    capsule = torch.utils.dlpack.to_dlpack(consumer)
    torchcow.reshare(a, foreign, looked_into, consumer)
    array[:] = 5
    assert (looked_into == 5).all()
    assert np.shares_memory(array, looked_into.numpy())
    behind = torch.utils.dlpack.from_dlpack(capsule)
    behind.fill_(6)
    assert (consumer == 6).all() and not (a == 6).any()


def test_nothing_to_do():
    assert torchcow.reshare() == torchcow.Reshared(0, 0)
    assert torchcow.reshare(nn.Linear(3, 3), torch.empty(0), torch.empty(3, device="meta")).tensors == 0
    one = matrix()
    assert torchcow.reshare(one, one, {"again": one.view(-1)}).tensors == 0


def test_writers_and_readers_in_other_threads_I11():
    start = torch.full((SIDE, SIDE), 1.0)
    tensors = [start.clone() for _ in range(4)]
    stop = threading.Event()
    wrong = []

    def write(tensor):
        value = 1.0
        while not stop.is_set():
            value = 3.0 - value
            tensor.fill_(value)
            if not (tensor == value).all():
                wrong.append("a write was lost")

    def read(tensor):
        while not stop.is_set():
            if not (tensor == 1.0).all():
                wrong.append("somebody else's write was seen")

    threads = [threading.Thread(target=write, args=(tensors[0],)), threading.Thread(target=write, args=(tensors[1],))]
    threads += [threading.Thread(target=read, args=(tensor,)) for tensor in tensors[2:]]
    for thread in threads:
        thread.start()
    for _ in range(300):
        torchcow.reshare(*tensors)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    torchcow.testing.verify()


def test_readers_keep_the_memory_that_was_left_I3():
    a = torch.ones(1 << 18)
    wrong = []
    stop = threading.Event()
    box = [a.clone()]

    def read():
        while not stop.is_set():
            if float(box[0].sum()) != 1 << 18:
                wrong.append("freed memory was read")

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(200):
        torchcow.reshare(a, box[0])
        with torch.no_grad():
            box[0].add_(0)
    stop.set()
    thread.join()
    assert wrong == []
