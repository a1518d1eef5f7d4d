# SPDX-License-Identifier: Apache-2.0
"""What breaks ``torch._lazy_clone`` on CUDA, and must not break torchcow.

Five traps, all seen in torch itself: multi-tensor operators write through const pointers, so that nothing notices
(``_foreach_*``; fused optimizers and AMP unscaling); the copy of a first write runs on the legacy stream, unordered
with side streams; ``record_stream`` is ignored for shared storages; an out-of-memory error in a first write corrupts
the source. Two more belong here: first writes during graph capture, and a random walk over all of it on several
streams.

The oracle is always a deep copy, made before anything is shared, or the value that a deep copy would have. Each test
writes to one relative and looks at the others. 'Catches: ...' names the broken engine that a test is there for.
"""

from __future__ import annotations

import copy
import gc
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import torchcow
from torchcow import testing

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ELEMENTS = 1 << 20
LONG = 200_000_000  # clock cycles: about a tenth of a second, longer than any host-side step of these tests


@pytest.fixture(autouse=True)
def finished() -> Iterator[None]:
    """The device is idle after the test, so that the checks that follow every test see what was in flight."""
    yield
    torch.cuda.synchronize()


def tensors(count: int = 4, elements: int = ELEMENTS) -> list[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(count)
    return [torch.rand(elements, device="cuda", generator=generator) + 0.5 for _ in range(count)]


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(256, 512, bias=False), torch.nn.BatchNorm1d(512), torch.nn.GELU(), torch.nn.Linear(512, 256)
    ).cuda()


def loss_of(net: torch.nn.Module) -> torch.Tensor:
    batch = torch.linspace(-1, 1, 32 * 256, device="cuda").reshape(32, 256)
    return net(batch).square().mean()


def assert_same(got: Any, expected: Any) -> None:
    torch.cuda.synchronize()
    if isinstance(got, torch.nn.Module):
        got, expected = got.state_dict(), expected.state_dict()
    for a, b in zip(*(x.values() if isinstance(x, dict) else x for x in (got, expected)), strict=True):
        assert torch.equal(a, b)


def share(source: Any) -> tuple[Any, Any]:
    """A shared clone, and what both must still be as long as nobody writes."""
    oracle = copy.deepcopy(source)
    clone = torchcow.clone(source)
    return clone, oracle


FOREACH: dict[str, Callable[[list[torch.Tensor], list[torch.Tensor]], Any]] = {
    "add_scalar": lambda x, _: torch._foreach_add_(x, 1.0),
    "add_list": lambda x, y: torch._foreach_add_(x, y, alpha=2.0),
    "mul": lambda x, _: torch._foreach_mul_(x, 0.5),
    "div_scalars": lambda x, _: torch._foreach_div_(x, [2.0] * len(x)),
    "sqrt": lambda x, _: torch._foreach_sqrt_(x),
    "neg": lambda x, _: torch._foreach_neg_(x),
    "lerp": lambda x, y: torch._foreach_lerp_(x, y, 0.25),
    "addcmul": lambda x, y: torch._foreach_addcmul_(x, y, y, 0.1),
    "addcdiv": lambda x, y: torch._foreach_addcdiv_(x, y, y, 0.1),
    "pow": lambda x, _: torch._foreach_pow_(x, 2.0),
    "clamp_max": lambda x, _: torch._foreach_clamp_max_(x, 0.7),
    "copy": lambda x, y: torch._foreach_copy_(x, y),
    "zero": lambda x, _: torch._foreach_zero_(x),
}


@pytest.mark.parametrize("writer", ["clone", "source"])
@pytest.mark.parametrize("name", FOREACH)
def test_foreach_in_place(name: str, writer: str) -> None:
    """Catches: an engine without the dispatcher barrier (the hook in the storage never fires here)."""
    source = tensors()
    other = [torch.full_like(t, 3.0) for t in source]
    clone, oracle = share(source)
    written, expected = (clone, copy.deepcopy(oracle)) if writer == "clone" else (source, copy.deepcopy(oracle))
    assert all(torchcow.is_shared(t) for t in written)
    FOREACH[name](written, other)
    FOREACH[name](expected, other)
    assert_same(written, expected)
    assert_same(source if writer == "clone" else clone, oracle)


def test_foreach_where_shared_tensors_are_read_too() -> None:
    """Catches: skipping the copy although another argument reads the same block."""
    source = tensors()
    clone, oracle = share(source)
    torch._foreach_copy_(clone, list(reversed(source)))
    assert_same(clone, list(reversed(oracle)))
    torch._foreach_add_(source, clone)
    torch._foreach_add_(oracle, list(reversed(copy.deepcopy(oracle))))
    assert_same(source, oracle)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "Adagrad": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "Adadelta": {"lr": 0.1},
    "ASGD": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.9},
    "Rprop": {"lr": 0.01},
}
FUSED = ("SGD", "Adam", "AdamW")


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()


@pytest.mark.parametrize("form", ["default", "forloop", "foreach", "fused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_on_a_clone_leave_the_source_alone(name: str, form: str) -> None:
    """Catches: an engine without the dispatcher barrier, in the forms default, foreach and fused."""
    if form == "fused" and name not in FUSED:
        pytest.skip(f"{name} has no fused form on CUDA in every supported torch")
    flags = {"default": {}, "forloop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[form]
    source = model()
    clone, oracle = share(source)
    twin = copy.deepcopy(oracle)
    for net in (clone, twin):
        train(net, getattr(torch.optim, name)(net.parameters(), **OPTIMIZERS[name], **flags))
    assert_same(source, oracle)
    for a, b in zip(clone.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)  # the backward pass itself may use atomics


@pytest.mark.parametrize("form", ["default", "fused"])
def test_a_cloned_state_dict_stays_when_the_model_trains_on(form: str) -> None:
    """The classic 'best so far': what was cloned are other tensors than those that are written.

    Catches: a barrier that sees only the tensors it has met (the parameters themselves were never handed to it).
    """
    net = model()
    best = torchcow.clone(net.state_dict())
    detached = torchcow.clone([p.detach() for p in net.parameters()])
    oracle, frozen = copy.deepcopy(best), copy.deepcopy(detached)
    train(net, torch.optim.AdamW(net.parameters(), lr=0.01, fused=True if form == "fused" else None))
    assert_same(best, oracle)
    assert_same(detached, frozen)


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_state_is_isolated_too(fused: bool) -> None:
    """A model is cloned together with its optimizer in mid-training; each goes on alone."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
    train(net, optimizer)
    twin = copy.deepcopy((net, optimizer))
    clone = torchcow.clone((net, optimizer))
    frozen = copy.deepcopy(optimizer.state_dict())
    train(*clone)
    assert_same(net, twin[0])
    for key, state in optimizer.state_dict()["state"].items():
        assert_same(state, frozen["state"][key])


def test_amp_unscale_writes_gradients_of_one_relative_only() -> None:
    """Catches: an engine without the dispatcher barrier (`_amp_foreach_non_finite_check_and_unscale_`)."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    scaler.scale(loss_of(net)).backward()
    scaled = [p.grad for p in net.parameters()]
    clone, oracle = share(scaled)
    parameters, frozen = share([p.detach() for p in net.parameters()])
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-4)
    scaler.step(optimizer)
    scaler.update()
    assert_same(clone, oracle)
    assert_same(parameters, frozen)
    assert not any(torch.equal(p, f) for p, f in zip(net.parameters(), frozen, strict=True))


def test_first_write_on_a_side_stream_sees_the_finished_source() -> None:
    """Catches: copying on the legacy stream or without waiting for the clone's event."""
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    source = torch.zeros(ELEMENTS, device="cuda")
    torch.cuda._sleep(LONG)
    source.fill_(7)
    clone = torchcow.clone(source)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        clone.add_(1)
    torch.cuda.current_stream().wait_stream(side)
    assert_same([source, clone], [torch.full_like(source, 7), torch.full_like(source, 8)])


@pytest.mark.parametrize("writer", ["steal", "skip"])
def test_a_steal_waits_for_the_pending_copy_of_its_sibling(writer: str) -> None:
    """The clone's copy is still queued behind a slow side stream when the source, now alone, writes in place.

    Catches: stealing without waiting for the siblings' copies.
    """
    side = torch.cuda.Stream()
    source = torch.full((ELEMENTS,), 7.0, device="cuda")
    clone = torchcow.clone(source)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        clone.add_(1)
    if writer == "steal":
        source.add_(100)
    else:
        source.fill_(107)
    torch.cuda.current_stream().wait_stream(side)
    assert_same([clone, source], [torch.full_like(source, 8), torch.full_like(source, 107)])


def test_record_stream_keeps_the_block_from_being_used_again() -> None:
    """Both relatives die while a side stream still has to read; main then allocates memory of the same size.

    Catches: a `record_stream` that ends at the sharer and does not reach the block.
    """
    side = torch.cuda.Stream()
    out = torch.zeros(ELEMENTS, device="cuda")
    source = torch.full((ELEMENTS,), 7.0, device="cuda")
    clone = torchcow.clone(source)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        torch.add(clone, 0, out=out)
    clone.record_stream(side)
    del clone, source
    junk = [torch.full((ELEMENTS,), -1.0, device="cuda") for _ in range(8)]
    torch.cuda.current_stream().wait_stream(side)
    assert_same([out], [torch.full_like(out, 7)])
    del junk


def test_record_stream_of_a_dropped_clone_holds_back_the_steal() -> None:
    """The clone is dropped while a side stream still has to read it: the source, now the last sharer, must wait.

    A deep copy would be safe here: its memory is its own, and `record_stream` keeps it.
    Catches: stealing without waiting for the streams that read the block.
    """
    side = torch.cuda.Stream()
    out = torch.zeros(ELEMENTS, device="cuda")
    source = torch.full((ELEMENTS,), 7.0, device="cuda")
    clone = torchcow.clone(source)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        torch.add(clone, 0, out=out)
    clone.record_stream(side)
    del clone
    source.add_(100)
    torch.cuda.current_stream().wait_stream(side)
    assert_same([out, source], [torch.full_like(out, 7), torch.full_like(out, 107)])


def test_a_clone_made_on_a_side_stream_may_die_there() -> None:
    """A deep copy made on a side stream has that stream's memory: used and dropped there, nobody else can get it early.

    Catches: a block that goes back to the stream it was allocated on while the clone's own stream still reads it.
    """
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    out = torch.zeros(ELEMENTS, device="cuda")
    source = torch.full((ELEMENTS,), 7.0, device="cuda")
    side.wait_stream(main)
    with torch.cuda.stream(side):
        clone = torchcow.clone(source)
    main.wait_stream(side)
    del source
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        torch.add(clone, 0, out=out)
    del clone
    junk = [torch.full((ELEMENTS,), -1.0, device="cuda") for _ in range(8)]
    main.wait_stream(side)
    assert_same([out], [torch.full_like(out, 7)])
    del junk


def test_a_steal_on_a_side_stream_waits_for_reads_of_a_clone_that_died_at_home() -> None:
    """The clone lives, is read and dies on the main stream, where it needs no `record_stream`; the source is written
    on a side stream that knows nothing of that read.

    Catches: counting only recorded streams as a block's readers, and not the stream that each clone was made on.
    """
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    out = torch.zeros(ELEMENTS, device="cuda")
    source = torch.full((ELEMENTS,), 7.0, device="cuda")
    clone = torchcow.clone(source)
    side.wait_stream(main)
    torch.cuda._sleep(LONG)
    torch.add(clone, 0, out=out)
    del clone
    with torch.cuda.stream(side):
        source.add_(100)
    main.wait_stream(side)
    assert_same([out, source], [torch.full_like(out, 7), torch.full_like(out, 107)])


def test_a_clone_first_written_on_a_side_stream_may_die_at_home() -> None:
    """A deep copy made on the main stream has the main stream's memory, wherever it was written since.

    Catches: memory allocated by a first write on a side stream, given back to that stream while the main one reads it.
    """
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    out = torch.zeros(ELEMENTS, device="cuda")
    source = torch.full((ELEMENTS,), 7.0, device="cuda")
    clone = torchcow.clone(source)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        clone.add_(1)
    clone.record_stream(side)
    main.wait_stream(side)
    torch.cuda._sleep(LONG)
    torch.add(clone, 0, out=out)
    del clone
    with torch.cuda.stream(side):
        junk = [torch.full((ELEMENTS,), -1.0, device="cuda") for _ in range(8)]
    assert_same([out], [torch.full_like(out, 8)])
    del junk


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], None]]:
    """Lets the process allocate so many bytes more than now, until the test ends."""

    def limit(bytes_left: int) -> None:
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + bytes_left) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_out_of_memory_at_the_first_write(little_memory: Callable[[int], None]) -> None:
    """Catches: giving up the reference to the block before the copy has succeeded."""
    source = torch.arange(64 << 20, device="cuda", dtype=torch.float32)
    clone = torchcow.clone(source)
    probe = source[::4097].clone()
    little_memory(8 << 20)
    for written in (clone, source):
        for _ in range(3):
            with pytest.raises(torch.OutOfMemoryError):
                written.add_(1)
        assert torchcow.is_shared(source)
        assert torchcow.is_shared(clone)
        assert torch.equal(source[::4097], probe)
        assert torch.equal(clone[::4097], probe)
        testing.verify()
    torch.cuda.set_per_process_memory_fraction(1.0)
    clone.add_(1)
    assert torch.equal(source[::4097], probe)
    assert torch.equal(clone[::4097], probe + 1)


def test_out_of_memory_in_a_multi_tensor_write_is_all_or_none(little_memory: Callable[[int], None]) -> None:
    """There is memory for one of four: none is written, all still share, and the retry writes each once.

    Catches: materializing one by one.
    """
    source = tensors(4, 16 << 20)
    clone, oracle = share(source)
    little_memory((64 << 20) + (32 << 20))
    with pytest.raises(torch.OutOfMemoryError):
        torch._foreach_add_(clone, 1.0)
    assert all(torchcow.is_shared(t) for t in (*source, *clone))
    assert_same(clone, oracle)
    assert_same(source, oracle)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch._foreach_add_(clone, 1.0)
    assert_same(source, oracle)
    torch._foreach_add_(oracle, 1.0)
    assert_same(clone, oracle)


def warm_stream() -> torch.cuda.Stream:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return stream


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("multi", [False, True])
def test_a_first_write_during_graph_capture_raises_with_the_remedy(multi: bool) -> None:
    """Catches: copying into the graph (each replay would copy again, from memory that may be gone)."""
    source = tensors(2)
    clone, oracle = share(source)

    def write() -> None:
        if multi:
            torch._foreach_add_(clone, 1.0)
        else:
            for t in clone:
                t.add_(1.0)

    torch.cuda.synchronize()
    failed = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match=r"torchcow\.materialize"), torch.cuda.graph(failed, stream=warm_stream()):
        write()
    torch.cuda.synchronize()
    assert all(torchcow.is_shared(t) for t in clone)
    assert_same(source, oracle)

    torchcow.materialize(clone)
    assert not any(torchcow.is_shared(t) for t in clone)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=warm_stream()):
        write()
    for _ in range(3):
        graph.replay()
    assert_same(source, oracle)
    assert_same(clone, [t + 1 + 1 + 1 for t in oracle])


def test_reads_during_graph_capture_stay_shared() -> None:
    source = tensors(1)[0]
    clone = torchcow.clone(source)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=warm_stream()):
        out = clone * 2
    graph.replay()
    assert_same([out], [source * 2])
    assert torchcow.is_shared(clone)


class Slot:
    """A tensor under test, what it must hold (on the CPU), and the event that orders the user's own accesses to it."""

    def __init__(self, tensor: torch.Tensor, oracle: torch.Tensor) -> None:
        self.tensor = tensor
        self.oracle = oracle
        self.event = torch.cuda.Event()
        self.event.record()
        self.streams: set[torch.cuda.Stream] = set()


class Walk:
    """A random walk over clones, writes, reads and drops on several streams.

    Each slot's accesses are ordered by the test, as a user of deep copies would have to; what happens to *different*
    slots is not ordered at all, though they share blocks. Numbers are integers, so that the comparison is exact.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.streams = [torch.cuda.current_stream(), *(torch.cuda.Stream() for _ in range(3))]
        self.slots: list[Slot] = []
        self.reads: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.names = itertools.count(1)

    def enter(self, stream: torch.cuda.Stream, *slots: Slot) -> None:
        for slot in slots:
            stream.wait_event(slot.event)
            slot.streams.add(stream)

    def leave(self, stream: torch.cuda.Stream, *slots: Slot) -> None:
        for slot in slots:
            slot.event = torch.cuda.Event()
            slot.event.record(stream)

    def step(self) -> None:
        stream = self.random.choice(self.streams)
        with torch.cuda.stream(stream):
            if self.random.random() < 0.2:
                torch.cuda._sleep(self.random.randrange(1, 5_000_000))
            actions = [self.clone, self.clone, self.write, self.write, self.write, self.read, self.drop]
            action = self.random.choice(actions)
            if not self.slots:
                action = self.make
            action(stream)

    def make(self, stream: torch.cuda.Stream) -> None:
        value = next(self.names)
        oracle = torch.arange(ELEMENTS // 4, dtype=torch.int32) * value
        self.slots.append(Slot(oracle.cuda(), oracle))

    def clone(self, stream: torch.cuda.Stream) -> None:
        if len(self.slots) >= 12:
            self.drop(stream)
            return
        slot = self.random.choice(self.slots)
        self.enter(stream, slot)
        clone = Slot(torchcow.clone(slot.tensor), copy.deepcopy(slot.oracle))
        clone.streams.add(stream)
        self.leave(stream, slot, clone)
        self.slots.append(clone)

    def write(self, stream: torch.cuda.Stream) -> None:
        chosen = self.random.sample(self.slots, min(len(self.slots), self.random.choice([1, 1, 2, 4])))
        value = next(self.names)
        self.enter(stream, *chosen)
        kind = self.random.choice(["add", "fill", "foreach", "slice", "copy"])
        if kind == "foreach":
            torch._foreach_add_([s.tensor for s in chosen], value)
            torch._foreach_add_([s.oracle for s in chosen], value)
        elif kind == "copy" and len(chosen) > 1:
            chosen[0].tensor.copy_(chosen[1].tensor)
            chosen[0].oracle.copy_(chosen[1].oracle)
        else:
            for t in (t for s in chosen for t in (s.tensor, s.oracle)):
                if kind == "fill":
                    t.fill_(value)
                elif kind == "slice":
                    t[value % 1000 : 5000 + value].mul_(3)
                else:
                    t.add_(value)
        self.leave(stream, *chosen)

    def read(self, stream: torch.cuda.Stream) -> None:
        slot = self.random.choice(self.slots)
        self.enter(stream, slot)
        self.reads.append((slot.tensor[::17] + 1, slot.oracle[::17] + 1))
        self.leave(stream, slot)

    def drop(self, stream: torch.cuda.Stream) -> None:
        slot = self.slots.pop(self.random.randrange(len(self.slots)))
        for used in slot.streams:
            slot.tensor.record_stream(used)

    def check(self) -> None:
        torch.cuda.synchronize()
        for got, expected in self.reads:
            assert torch.equal(got.cpu(), expected)
        for slot in self.slots:
            assert torch.equal(slot.tensor.cpu(), slot.oracle)
        testing.verify()


@pytest.mark.parametrize("seed", range(12))
def test_random_walk_on_several_streams(seed: int) -> None:
    """Catches: waits that are missing in combinations nobody thought of."""
    walk = Walk(seed)
    for index in range(300):
        walk.step()
        if index % 100 == 99:
            walk.check()
    walk.check()
