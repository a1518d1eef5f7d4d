# SPDX-License-Identifier: Apache-2.0
"""A program that test_collectives.py runs twice, as both members of a group: `-m support.collectives RANK FOLDER`.

Every collective writes the source, a clone, or a clone's clone, and deep copies in the same way; then all are compared.
"""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist

import torchcow
import torchcow.testing
from support.oracle import assert_same, attempt, raised_alike

RANK = int(sys.argv[1])
SHAPE = (64, 64)


def half():
    return torch.full((32, 64), float(RANK + 5))


def list_at_root(a, b):
    return [a, b] if RANK == 0 else None


def exchange(a, b):
    operations = [dist.P2POp(dist.isend, a, 1 - RANK), dist.P2POp(dist.irecv, b, 1 - RANK)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


# What a collective is called with: how many tensors it writes or reads, and the call.
COLLECTIVES = {
    "all_reduce": (1, dist.all_reduce),
    "all_reduce, later": (1, lambda a: dist.all_reduce(a, async_op=True).wait()),
    "all_reduce of two": (2, lambda a, b: dist.all_reduce_coalesced([a, b])),
    "broadcast": (1, lambda a: dist.broadcast(a, 0)),
    "broadcast, later": (1, lambda a: dist.broadcast(a, 1, async_op=True).wait()),
    "reduce": (1, lambda a: dist.reduce(a, 0)),
    "all_gather": (3, lambda a, b, c: dist.all_gather([a, b], c)),
    "all_gather of a result": (2, lambda a, b: dist.all_gather([a, b], (a, b)[RANK])),
    "all_gather into views": (1, lambda a: dist.all_gather(list(a.view(2, 32, 64).unbind()), half())),
    "all_gather into one": (1, lambda a: dist.all_gather_into_tensor(a, half())),
    "all_gather, coalesced": (3, lambda a, b, c: dist.all_gather_coalesced([[a], [b]], [c])),
    "gather": (3, lambda a, b, c: dist.gather(c, list_at_root(a, b), dst=0)),
    "scatter": (3, lambda a, b, c: dist.scatter(c, list_at_root(a, b), src=0)),
    "reduce_scatter": (2, lambda a, b: dist.reduce_scatter_tensor(a[:32], b)),
    "all_to_all": (2, dist.all_to_all_single),
    "send and receive": (1, lambda a: dist.send(a, 1) if RANK == 0 else dist.recv(a, 0)),
    "send and receive, later": (1, lambda a: (dist.isend(a, 1) if RANK == 0 else dist.irecv(a, 0)).wait()),
    "exchange": (2, exchange),
}


def run(collective, tensors):
    result = attempt(collective, *tensors)
    dist.barrier()
    return result


def check(name, count, collective, written):
    def make():
        return [torch.full(SHAPE, float(10 * RANK + i)) for i in range(count)]

    source = make()
    clone = torchcow.clone(source)
    family = [source, clone, torchcow.clone(clone)]
    oracle = [copy.deepcopy(make()) for _ in family]
    raised_alike(run(collective, oracle[written]), run(collective, family[written]), name)
    for relative, (expected, tensors) in enumerate(zip(oracle, family, strict=True)):
        assert_same(expected, tensors, f"{name}: wrote relative {written}, looking at {relative}")
    torchcow.testing.verify()


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 8))


def train(model):
    torch.manual_seed(RANK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.rand(16, 64)).sum().backward()
        optimizer.step()


def assert_same_state(a, b, what):
    assert_same(a.state_dict(), b.state_dict(), what)


def check_data_parallel():
    """A clone is wrapped and trained; then the wrapped one is cloned and trained."""
    model, untouched = network(), network()
    clone, sibling, oracle = torchcow.clone(model), torchcow.clone(model), network()
    wrapped = torch.nn.parallel.DistributedDataParallel(clone)
    wrapped_oracle = torch.nn.parallel.DistributedDataParallel(oracle)
    train(wrapped)
    train(wrapped_oracle)
    assert_same_state(oracle, clone, "a wrapped clone was trained")
    assert_same_state(untouched, model, "a wrapped clone was trained, looking at its source")
    assert_same_state(untouched, sibling, "a wrapped clone was trained, looking at its sibling")
    second, second_oracle = torchcow.clone(wrapped), copy.deepcopy(wrapped_oracle)
    train(second)
    train(second_oracle)
    assert_same_state(second_oracle, second, "the clone of a wrapped model was trained")
    assert_same_state(wrapped_oracle, wrapped, "the clone of a wrapped model was trained, looking at that model")
    torchcow.testing.verify()


if __name__ == "__main__":
    torchcow._C.set_tiny_bytes(0)
    torchcow._C.poison_skipped(True)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/store", rank=RANK, world_size=2)
    for name, (count, collective) in COLLECTIVES.items():
        for written in range(3):
            check(name, count, collective, written)
    check_data_parallel()
    dist.destroy_process_group()
