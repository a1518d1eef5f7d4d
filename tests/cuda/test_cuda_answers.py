# SPDX-License-Identifier: Apache-2.0
"""Answers, re-sharing and reserves for tensors on a CUDA device."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch

import torchcow
from torchcow import testing

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def finished() -> Iterator[None]:
    yield
    torch.cuda.synchronize()


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 256)).cuda()


def test_memory_tells_devices_apart() -> None:
    net = model()
    used = torchcow.memory(net, torchcow.clone(net), torch.zeros(1000))
    assert set(used.by_device()) == {"cuda:0", "cpu"}
    assert used.by_device()["cuda:0"].unique == used.by_device()["cuda:0"].logical / 2
    assert sum(part.fair_share for part in used.by_device().values()) == pytest.approx(used.fair_share)


def test_diff_and_explain() -> None:
    net = model()
    edited = torchcow.clone(net)
    with torch.no_grad():
        torch._foreach_add_([edited[0].weight], 1.0)
    found = torchcow.diff(net, edited)
    assert found.names("different") == ["0.weight"]
    assert found.tensors["0.weight"].norm == pytest.approx(256)
    assert torchcow.explain(edited).unshared["0.weight"].cause == "written"
    moved = torchcow.diff(net[0].weight, net[0].weight.cpu()).tensors[""]
    assert moved.status == "different" and moved.norm == 0 and not math.isnan(moved.relative)


def test_reshare_after_a_rollback() -> None:
    net = model()
    edited = torchcow.clone(net)
    expected = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for parameter in edited.parameters():
            parameter.add_(1)
    edited.load_state_dict(net.state_dict())
    assert torchcow.reshare(net, edited).tensors == 4
    assert torchcow.memory(net, edited).unique == torchcow.memory(net).logical
    torch.optim.AdamW(edited.parameters()).zero_grad()
    edited(torch.ones(3, 256, device="cuda")).sum().backward()
    torch.optim.AdamW(edited.parameters()).step()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in expected.items())
    testing.verify()


def test_reshare_waits_for_other_streams() -> None:
    a = torch.ones(1 << 22, device="cuda")
    b = a.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        b.add_(1)
    assert torchcow.reshare(a, b).tensors == 0
    assert (a == 1).all() and (b == 2).all()


def test_a_reserve_is_what_the_first_write_takes() -> None:
    net = model()
    variant = torchcow.clone(net)
    reservation = torchcow.reserve(variant)
    assert reservation.bytes == torchcow.worst_case(variant) == torchcow.memory(net).logical
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with testing.fail_allocations(0), torch.cuda.stream(side), torch.no_grad():
        torch._foreach_add_(list(variant.parameters()), 1.0)
    torch.cuda.current_stream().wait_stream(side)
    assert reservation.bytes == 0
    assert torch.equal(variant[0].weight, net[0].weight + 1)


def test_headroom_and_a_reserve_that_is_too_big() -> None:
    free = torchcow.headroom("cuda")
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
    source = torch.empty(free // 4, dtype=torch.uint8, device="cuda")
    clones = [torchcow.clone(source) for _ in range(5)]
    with pytest.raises(torch.OutOfMemoryError, match=r"on cuda:0, and .* are free; nothing was reserved"):
        torchcow.reserve(clones)
    assert torchcow.ledger().reserved_bytes == 0


def test_a_trace_sees_fused_optimizers() -> None:
    net = model()
    variant = torchcow.clone(net)
    variant(torch.ones(3, 256, device="cuda")).sum().backward()
    with torchcow.trace() as writes:
        torch.optim.AdamW(variant.parameters(), fused=True).step()
    assert {write.name for write in writes.materializations} == {
        *("Sequential.0.weight", "Sequential.0.bias", "Sequential.1.weight", "Sequential.1.bias")
    }
