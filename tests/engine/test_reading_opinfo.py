# SPDX-License-Identifier: Apache-2.0
"""Every operator of torch's database within ``torchcow.reading``, where the dispatcher barrier is alone.

Whatever an operator writes must reach the clone only, although no write hook is heard. Catches: a written argument that
the barrier's table does not know (drop batch_norm from it), and reads that un-share in spite of the scope.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from test_isolation_opinfo import IN_PLACE, OUT, UNINITIALIZED, UNSHARING_READS, database, name, samples_of

import torchcow
from support.oracle import TORCH, assert_same, attempt, freeze, tensors_of

pytestmark = pytest.mark.filterwarnings("ignore")

#: On torch 2.11 and 2.12 the barrier takes readers for writers that ask for mutable pointers.
TAKEN_FOR_WRITERS = UNSHARING_READS if TORCH < (2, 13) else set()


def run_in_scope(call, tree, what, reads=False):
    source = copy.deepcopy(tree)
    clone, other = torchcow.clone(source), torchcow.clone(source)
    before = freeze(source)
    with warnings.catch_warnings(), torchcow.reading(clone, checksum=True):
        warnings.simplefilter("ignore")
        shared = [tensor for tensor in tensors_of(clone) if torchcow.is_shared(tensor)]
        outcome = attempt(call, clone)
        if reads and freeze(clone) == before:
            still = [torchcow.is_shared(tensor) for tensor in shared]
            assert all(still), f"{what}: un-shared {still.count(False)} tensors in a scope for reading"
        del outcome
    for relative in (source, other):
        assert_same(before, freeze(relative), what)
    torchcow.testing.verify()


@pytest.mark.parametrize("op", IN_PLACE, ids=name)
def test_in_place(op):
    write = op.get_inplace()
    for tree in samples_of(op, 1):
        run_in_scope(lambda t: write(t[0], *t[1], **t[2]), tree, f"{op.name} in place")


def is_plain(result):
    results = result if isinstance(result, tuple) else [result]
    return all(isinstance(one, torch.Tensor) and one.layout == torch.strided for one in results)


@pytest.mark.parametrize("op", OUT, ids=name)
def test_out(op):
    for tree in samples_of(op, 1):
        kind, result = attempt(lambda t: op(t[0], *t[1], **t[2]), copy.deepcopy(tree))
        if kind == "raised" or not is_plain(result):
            continue
        whole = [*tree, tuple(one.detach().clone() for one in result) if isinstance(result, tuple) else result.detach()]
        run_in_scope(lambda t: op(t[0], *t[1], **t[2], out=t[3]), whole, f"{op.name} into out=")


@pytest.mark.parametrize("op", [op for op in database.op_db if op.name not in UNINITIALIZED], ids=name)
def test_plain_call(op):
    for tree in samples_of(op, 1):
        run_in_scope(lambda t: op(t[0], *t[1], **t[2]), tree, op.name, reads=op.name not in TAKEN_FOR_WRITERS)
