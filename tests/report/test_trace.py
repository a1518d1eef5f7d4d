# SPDX-License-Identifier: Apache-2.0
"""First writes as they happen: who, what, where; outside of locks, and never in the way of the write.

Catches: news that are lost or told twice, the stack of somebody else, an exception or a write in a callback that
reaches the write, a deadlock with other threads, a callback that stays.
"""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from torch import nn

import torchcow
from support.oracle import SIDE, run_script

pytestmark = pytest.mark.sharing


def edit(tensor):
    with torch.no_grad():
        tensor.add_(1)


def test_a_trace_names_the_culprit():
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE))
    variant = torchcow.clone(model)
    with torchcow.trace() as writes:
        edit(variant[1].weight)
        edit(variant[1].weight)  # not a first write any more
        edit(model[0].bias)
    first, second = writes.materializations
    assert (first.name, first.operator, first.way) == ("Sequential.1.weight", "aten::add_.Tensor", "copy")
    assert (first.bytes, first.device, first.thread) == (4 * SIDE * SIDE, "cpu", threading.current_thread().name)
    assert [frame.name for frame in first.stack][-2:] == ["test_a_trace_names_the_culprit", "edit"]
    assert first.culprit.endswith("in edit") and __file__ in first.culprit
    assert second.name == "Sequential.0.bias"
    assert "Sequential.1.weight" in str(writes) and "2 first writes" in str(writes)
    assert writes.bytes == first.bytes + second.bytes
    edit(variant[0].weight)
    assert len(writes.materializations) == 2


def test_names_within_what_is_cloned_together():
    model = nn.Linear(SIDE, SIDE)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, SIDE)).sum().backward()
    optimizer.step()
    for together in ({"model": model, "optimizer": optimizer}, (model, optimizer)):
        clone = torchcow.clone(together)
        mine, its = clone.values() if isinstance(clone, dict) else clone
        with torchcow.trace() as writes:
            edit(mine.weight)
            edit(its.state[mine.weight]["exp_avg"])
        assert [write.name for write in writes.materializations] == ["Linear.weight", "Adam.state.0.exp_avg"]


def test_writes_through_raw_pointers_are_told():
    source = torch.ones(1000)
    clone = torchcow.clone(source)
    with torchcow.trace() as writes:
        clone.numpy()
    assert [write.operator for write in writes.materializations] == ["a raw pointer"]


def test_each_callback_hears_until_it_is_removed():
    source = torch.ones(1000)
    heard, also = [], []
    first = torchcow.on_materialize(heard.append)
    second = torchcow.on_materialize(also.append)
    torchcow.clone(source).add_(1)
    first.remove()
    first.remove()
    torchcow.clone(source).add_(1)
    second.remove()
    torchcow.clone(source).add_(1)
    assert (len(heard), len(also)) == (1, 2)
    assert heard[0].stack is None and heard[0].culprit == ""
    with pytest.raises(TypeError, match="expected a function, got int"):
        torchcow.on_materialize(3)


def fail(_):
    raise RuntimeError("logger is down")


def test_an_exception_does_not_reach_the_write(capsys, monkeypatch):
    monkeypatch.setattr("sys.unraisablehook", sys.__unraisablehook__)  # instead of pytest's
    source = torch.ones(1000)
    clone = torchcow.clone(source)
    heard = []
    with torchcow.on_materialize(fail), torchcow.on_materialize(heard.append):
        clone.add_(1)
    assert clone[0] == 2 and source[0] == 1
    assert len(heard) == 1
    report = capsys.readouterr().err
    assert report.startswith("Exception ignored in: 'a callback of torchcow.on_materialize'\nTraceback")
    assert ", in fail\n" in report and report.endswith("RuntimeError: logger is down\n")


def test_the_exceptions_of_several_callbacks_are_reported_together(monkeypatch):
    reports = []
    monkeypatch.setattr("sys.unraisablehook", reports.append)

    def fail_differently(_):
        raise KeyError("no such logger")

    with torchcow.on_materialize(fail), torchcow.on_materialize(fail_differently):
        torchcow.clone(torch.ones(1000)).add_(1)
    (report,) = reports
    assert [type(error) for error in report.exc_value.exceptions] == [RuntimeError, KeyError]
    reports.clear()  # the frames of the exceptions


def test_an_error_that_is_under_way_stays():
    source = torch.ones(1000)
    clone = torchcow.clone(source)
    with torchcow.on_materialize(lambda _: None), pytest.raises(ZeroDivisionError):
        try:
            raise ZeroDivisionError
        finally:
            clone.add_(1)


def test_a_callback_may_use_the_engine():
    source = torch.ones(1000)
    log = torchcow.clone(source)
    heard = []

    def note(write):
        heard.append((write.operator, write.name))
        torchcow.clone(source)
        log.add_(1)  # a first write of its own, which is not told
        torchcow.ledger()

    clone = torchcow.clone(source)
    with torchcow.on_materialize(note):
        clone.mul_(3)
    assert heard == [("aten::mul_.Tensor", None)]
    assert (clone[0], log[0], source[0]) == (3, 2, 1)


def test_a_whole_batch_is_told():
    parameters = [nn.Parameter(torch.ones(SIDE)) for _ in range(5)]
    clones = torchcow.clone(parameters)
    with torchcow.trace() as writes, torch.no_grad():
        torch._foreach_add_(clones, 1.0)
    assert len(writes.materializations) == 5


def test_many_threads_are_heard_at_once():
    source = torch.ones(1000)
    heard = []

    def work():
        for _ in range(100):
            torchcow.clone(source).add_(1)

    threads = [threading.Thread(target=work, name=f"writer {i}") for i in range(8)]
    with torchcow.on_materialize(heard.append):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(heard) == 800
    assert {write.thread for write in heard} == {f"writer {i}" for i in range(8)}


def test_backward_passes_are_heard_from():
    # Autograd accumulates in place, on a thread that holds no interpreter lock.
    model = nn.Linear(SIDE, SIDE)
    model(torch.ones(1, SIDE)).sum().backward()
    grads = torchcow.clone([p.grad for p in model.parameters()])
    with torchcow.trace() as writes:
        model(torch.ones(1, SIDE)).sum().backward()
    assert all(write.operator for write in writes.materializations)
    assert all(g.sum() != p.grad.sum() for g, p in zip(grads, model.parameters(), strict=True))


def test_threads_that_run_no_python_are_told_later():
    run_script("""
import time
import torch, torchcow

code = torch.jit.CompilationUnit(
    "def write(x):\\n    return x.add_(1)\\n"
    "def task(x):\\n    future = torch.jit.fork(write, x)\\n    return torch.jit.wait(future)\\n"
)
source = torch.ones(1000)
clone = torchcow.clone(source)
heard = []
with torchcow.on_materialize(heard.append):
    code.task(clone)
    deadline = time.monotonic() + 10
    while not heard and time.monotonic() < deadline:
        time.sleep(0.01)
assert [write.operator for write in heard] == ["aten::add_.Scalar"], heard
assert heard[0].thread == "" and source[0] == 1
time.sleep(0.5)  # a pool thread that still holds a tensor at exit makes torch abort
""")


def test_a_callback_that_is_never_removed():
    run_script("""
import atexit
import torch, torchcow
source = torch.ones(1000)
clone, late = torchcow.clone(source), torchcow.clone(source)
torchcow.on_materialize(print)
clone.add_(1)
atexit.register(lambda: late.add_(1))
""")
