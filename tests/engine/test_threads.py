# SPDX-License-Identifier: Apache-2.0
"""Threads: relatives in different threads never disturb each other; one object used by several is as safe as before.

Catches: a materialization that does not look again under its lock (two copies, or one freed under a reader), counts of
sharers that are not atomic, a block freed while another thread reads it, a lock held across user code (a hang).
Timing decides how soon: the thread sanitizer sees at once what these runs may miss.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import torchcow
import torchcow.testing
from support.oracle import SIDE, STARTS_PROCESSES, assert_same, freeze, run_script, seed
from support.threads import THREADS, no_hang, together  # noqa: F401 - a fixture

SECONDS = 1.5


def prototype():
    seed(0)
    return nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(6)))


def test_clones_of_one_prototype_in_many_threads():
    model = prototype()
    want = freeze(model)

    def work():
        mine = torchcow.clone(model)
        mark = float(threading.get_ident() % 1000)
        with torch.no_grad():
            for p in mine.parameters():
                p.mul_(0).add_(mark)
        assert all(bool((p == mark).all()) for p in mine.parameters())

    together(*[work] * THREADS, seconds=SECONDS)
    assert_same(want, model, "the prototype")


def test_racing_clone_materialize_and_drop_I6():
    model = prototype()
    want = freeze(model)
    shelf = [torchcow.clone(model) for _ in range(4)]
    lock = threading.Lock()

    def exchange():
        fresh = torchcow.clone(model)
        with lock:
            shelf.append(fresh)
            old = shelf.pop(0)
        del old

    def materialize():
        with lock:
            taken = shelf[-1]
        torchcow.materialize(taken)
        assert_same(want, taken, "a materialized clone")

    def grandchild():
        with lock:
            taken = shelf[0]
        assert_same(want, torchcow.clone(taken), "a clone of a clone")

    def report():
        torchcow.ledger()
        torchcow.events()
        torchcow.memory(model)

    together(exchange, exchange, materialize, grandchild, report, seconds=SECONDS)
    assert_same(want, model, "the prototype")


@pytest.mark.parametrize("write", ["rows", "whole", "pointer"])
def test_many_first_writes_to_one_tensor(write):
    """Disjoint rows from many threads: legal today, and one materialization here."""
    for _ in range(30):
        source = torch.rand(THREADS * 8, 256)
        clone = torchcow.clone(source)
        want = source + 0
        torchcow.events(clear=True)

        def act(row, clone=clone):
            if write == "rows":
                clone[row * 8 : row * 8 + 8].fill_(row)
            elif write == "whole":
                clone.view(-1)[row * 2048 : row * 2048 + 2048].copy_(torch.full((2048,), float(row)))
            else:
                clone.numpy()[row * 8 : row * 8 + 8] = row

        together(*[lambda row=row: act(row) for row in range(THREADS)])
        expected = torch.arange(float(THREADS)).repeat_interleave(8)[:, None].expand(-1, 256)
        assert torch.equal(clone, expected), "a write was lost"
        assert torch.equal(source, want)
        if torchcow.events():
            assert sum(e.kind == "materialize" for e in torchcow.events()) == 1


@pytest.mark.parametrize("both", [False, True], ids=["clone", "source and clone"])
def test_first_writes_of_relatives_at_once(both):
    """Every sharer leaves at the same moment; the last one steals, and nobody reads what another wrote."""
    for _ in range(60):
        source = torch.rand(SIDE, SIDE)
        want = source + 0
        family = [torchcow.clone(source) for _ in range(THREADS - both)] + [source] * both
        together(*[lambda t=t, i=i: t.add_(i) for i, t in enumerate(family)])
        for index, tensor in enumerate(family):
            assert torch.equal(tensor, want + index)


MODELS = {
    "LSTM": (lambda: nn.LSTM(32, 64, 2), lambda: torch.linspace(-1, 1, 5 * 2 * 32).view(5, 2, 32)),
    "GRU": (lambda: nn.GRU(32, 64), lambda: torch.linspace(-1, 1, 5 * 2 * 32).view(5, 2, 32)),
    "Conv2d": (lambda: nn.Conv2d(16, 32, 3), lambda: torch.linspace(-1, 1, 16 * 144).view(1, 16, 12, 12)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(16, 32, 3),
        lambda: torch.linspace(-1, 1, 16 * 36).view(1, 16, 6, 6),
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(64, 4, batch_first=True),
        lambda: torch.linspace(-1, 1, 640).view(1, 10, 64),
    ),
    "ChannelShuffle": (
        lambda: nn.Sequential(nn.Conv2d(16, 16, 1), nn.ChannelShuffle(4)),
        lambda: torch.ones(1, 16, 8, 8),
    ),
}


def forward(model, x):
    with torch.no_grad():
        result = model(x)
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", MODELS)
def test_inference_on_one_clone_in_two_threads(name):
    """Even where reading un-shares (oneDNN asks for writable weights): same numbers, no crash."""
    build, data = MODELS[name]
    seed(0)
    source, x = build().eval(), data()
    want = forward(source, x)

    def infer(model):
        assert torch.allclose(forward(model, x), want, atol=1e-5)

    for _ in range(20):
        clone, other = torchcow.clone(source), torchcow.clone(source)
        together(*[lambda m=m: infer(m) for m in (clone, clone, clone, other, source)])


def test_hogwild_reader_I7():
    """One thread reads the source, without end, while it is cloned, written, and its clones are dropped."""
    source = torch.ones(512, 256)
    torn = []

    def read():
        total = source.sum().item()
        if not 0 <= total <= 3 * source.numel():
            torn.append(total)

    def write():
        clone = torchcow.clone(source)
        source.fill_(2.0)
        source.sub_(1.0)
        del clone

    def churn():
        garbage = [torch.full((512, 256), 1e30) for _ in range(4)]
        del garbage

    together(read, read, write, churn, seconds=2 * SECONDS)
    assert not torn, f"sums that no value ever gave: freed memory was read: {torn[:3]}"


@STARTS_PROCESSES
@pytest.mark.parametrize("ends", ["steal", "drop"])
def test_memory_under_a_reader_is_not_freed_I3(ends):
    """Break: `retire` that always frees at once; a steal although somebody reads. Freed memory is unmapped here, so the
    reader, a method call that holds no reference of its own, would crash in the middle of it."""
    out = run_script(
        """
import ctypes, sys, threading, time, torch, torchcow
torch.set_num_threads(1)
ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
source, reads, stop, shared = torch.zeros(1 << 18), [], False, 0

def read():
    while not stop:
        reads.append(source.logcumsumexp(0)[-1].item())

threads = [threading.Thread(target=read, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(60):
    seen = len(reads)
    while len(reads) < seen + 1:
        time.sleep(0.0005)
    clone = torchcow.clone(source)
    shared += torchcow.is_shared(source)  # not always: an operator may hold a reference, as a consumer would
    source.add_(0)
    if sys.argv[1] == "steal":
        clone.resize_(1 << 20)
    del clone
retired = torchcow.ledger().retired_blocks
stop = True
for thread in threads:
    thread.join()
assert max(reads) - min(reads) < 1e-3, (min(reads), max(reads))
print(retired > 0 and shared > 0)
""",
        ends,
    )
    assert out.split() == ["True"], "nothing was retired: no reader was in danger"


def test_server_infers_while_a_trainer_updates():
    model = prototype()
    served = [torchcow.clone(model)]
    x = torch.ones(2, SIDE)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def train():
        optimizer.zero_grad()
        model(x).pow(2).sum().backward()
        optimizer.step()
        served[0] = torchcow.clone(model)

    def serve():
        snapshot = served[0]
        first, second = forward(snapshot, x), forward(snapshot, x)
        assert torch.equal(first, second), "a snapshot changed while it was served"

    together(train, serve, serve, seconds=SECONDS)


def test_clone_dropped_in_another_thread():
    def hand_over():
        source = torch.rand(SIDE, SIDE)
        box = [torchcow.clone(source)]
        want = source + 0
        thread = threading.Thread(target=box.clear)
        thread.start()
        source.add_(1)
        thread.join()
        assert torch.equal(source, want + 1)

    together(*[hand_over] * 4, seconds=SECONDS)


def test_training_of_siblings_in_parallel():
    """Backward runs in threads of its own: each sibling ends where it would end alone."""
    model = prototype()

    def train(sibling, rate):
        optimizer = torch.optim.AdamW(sibling.parameters(), lr=rate)
        for _ in range(3):
            sibling(torch.ones(2, SIDE)).pow(2).sum().backward()
            optimizer.step()

    alone = [torchcow.clone(model) for _ in range(4)]
    for index, sibling in enumerate(alone):
        train(sibling, 0.01 * (index + 1))
    siblings = [torchcow.clone(model) for _ in range(4)]
    together(*[lambda i=i, s=s: train(s, 0.01 * (i + 1)) for i, s in enumerate(siblings)])
    for one, other in zip(alone, siblings, strict=True):
        assert_same(freeze(one), other, "a sibling trained in parallel")
    torchcow.testing.verify()


@STARTS_PROCESSES
@pytest.mark.parametrize("first", ["torchcow", "pool"])
def test_a_reader_that_never_ran_python_I7(first, tmp_path):
    """`torch.jit.fork` reads in threads of torch. Break: nobody watches for their start. Then the reader meets memory
    that was not written yet, after a skip, and memory that was freed (a crash)."""
    program = tmp_path / "program.py"  # torch.jit.script wants to read it
    program.write_text("""
import sys, torch

@torch.jit.script
def read(x: torch.Tensor, times: int):
    wrong = 0
    for _ in range(times):
        least = float(x.min())
        if least != 1.0 and least != 2.0:
            wrong += 1
    return wrong

@torch.jit.script
def start(x: torch.Tensor, times: int) -> torch.jit.Future[int]:
    return torch.jit.fork(read, x, times)

if sys.argv[1] == "pool":
    start(torch.ones(1), 1).wait()
import torchcow
torchcow._C.poison_skipped(True)
wrong = 0
for _ in range(150):
    source = torch.ones(512, 512)
    clone = torchcow.clone(source)
    result = start(source, 60)
    source.fill_(2)
    del clone
    litter = [torch.full((512, 512), 7.0) for _ in range(3)]
    wrong += result.wait()
print(wrong)
""")
    out = run_script("import runpy, sys; runpy.run_path(sys.argv[2])", first, str(program))
    assert int(out) == 0
