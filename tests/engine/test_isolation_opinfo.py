# SPDX-License-Identifier: Apache-2.0
"""Every operator of torch's database, writing or only reading, on shared tensors, bit by bit against a deep copy.

Each operator runs in place, into `out=` and as a plain function, each time with *all* its arguments shared, once by the
clone and once by the source; the writer must get what a deep copy gets, its relatives must not change.

Catches: a written argument that the barrier overlooks (drop one operator's kernel from the barrier, or the storage
hook); a write taken for a full overwrite that is none, or whose other argument reads the same storage (make `skip`
unconditional: `out=` inside a larger storage and `out=` on the input fail); statistics written without saying so in the
schema (drop the exception table: batch_norm fails); reading that un-shares (wake the hook from `const_data_ptr`).
"""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from torch.testing._internal import common_methods_invocations as database

import torchcow
from support.oracle import TORCH, assert_same, attempt, difference, freeze, tensors_of

SAMPLES = 3
OUT_SAMPLES = 2
SCAN = 24  # samples to choose from
DTYPES = (
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.bfloat16,
)
FOREACH = [
    *database.foreach_unary_op_db,
    *database.foreach_binary_op_db,
    *database.foreach_pointwise_op_db,
    *database.foreach_other_op_db,
]
# Their results, or a part of them, are memory nobody wrote: there is nothing to compare.
UNINITIALIZED = {
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "svd_lowrank",
}
# Called with `out=` on their own input they overwrite what they still have to read: the result is anybody's guess.
UNDEFINED_IN_PLACE = {"histc", "mm", "kron", "linalg.det", "linalg.vecdot"}
# Read through a writable pointer in ATen or oneDNN: they may un-share what they read. Everything else must not.
UNSHARING_READS = {"channel_shuffle", "nn.functional.channel_shuffle", "nn.functional.scaled_dot_product_attention"}

pytestmark = pytest.mark.filterwarnings("ignore")


def dtype_of(op):
    supported = op.supported_dtypes("cpu")
    return next((dtype for dtype in DTYPES if dtype in supported), None)


def empty(sample):
    """Samples without elements prove little: they come last."""
    return any(t.layout == torch.strided and not t.numel() for t in tensors_of([sample.input, list(sample.args)]))


def samples_of(op, count, **kwargs):
    dtype = dtype_of(op)
    if dtype is None:
        pytest.skip("no dtype to test on CPU")
    try:
        samples = list(itertools.islice(op.sample_inputs("cpu", dtype, **kwargs), SCAN))
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        pytest.skip(f"torch makes no samples: {error}")
    trees = []
    samples.sort(key=empty)
    for sample in samples:
        if len(trees) == count:
            break
        tree = [sample.input, list(sample.args), dict(sample.kwargs)]
        try:
            copy.deepcopy(tree)
        except (RuntimeError, NotImplementedError, TypeError):
            continue  # what cannot be deep-copied cannot be cloned
        trees.append(tree)
    return trees


def repeatable(call, tree, times=4):
    """Whether the oracle agrees with itself. Only asked after a mismatch: some results depend on where memory lies."""
    runs = []
    for pad in range(times):
        ballast = [torch.full((64 + 16 * pad,), 1e9) for _ in range(8)]
        again = copy.deepcopy(tree)
        runs.append(freeze([again, attempt(call, again)]))
        del ballast
    return not any(difference(runs[0], run) for run in runs[1:])


def sweep(call, tree, what, compare=True, reading=False):
    """Run `call(tree)` on the clone, then on the source; three relatives and an oracle look on."""
    for writer in ("clone", "source"):
        source = copy.deepcopy(tree)
        family = {"source": source, "clone": torchcow.clone(source), "other": torchcow.clone(source)}
        shared = [torchcow.is_shared(t) for t in tensors_of(family[writer])]
        oracle, before = copy.deepcopy(tree), freeze(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            want = attempt(call, oracle)
            got = attempt(call, family[writer])
        assert got[0] == want[0], f"{what}, by the {writer}: expected {want}, got {got}"
        wanted, gotten = freeze([oracle, want]), freeze([family[writer], got])
        if compare and difference(wanted, gotten) and repeatable(call, tree):
            assert_same(wanted, gotten, f"{what}, by the {writer}")
        for relative in family:
            if relative != writer:
                assert_same(before, freeze(family[relative]), f"{what}, by the {writer}: the {relative} changed")
        if reading and all(shared) and before == freeze(family[writer]):
            still = [torchcow.is_shared(t) for t in tensors_of(family[writer])]
            assert all(still), f"{what}, by the {writer}: reading un-shared {still.count(False)} tensors"
        torchcow.testing.verify()


def name(op):
    return op.formatted_name


IN_PLACE = [op for op in database.op_db if op.get_inplace() is not None]
OUT = [op for op in database.op_db if op.supports_out]


@pytest.mark.parametrize("op", IN_PLACE, ids=name)
def test_in_place(op):
    write = op.get_inplace()
    for index, tree in enumerate(samples_of(op, SAMPLES)):
        sweep(lambda t: write(t[0], *t[1], **t[2]), tree, f"{op.name} in place, sample {index}")


@pytest.mark.parametrize("op", IN_PLACE, ids=name)
def test_in_place_inside_a_larger_storage(op):
    """The written tensor is the middle of a storage whose other bytes must survive."""
    write = op.get_inplace()
    for index, tree in enumerate(samples_of(op, 1)):
        if not isinstance(tree[0], torch.Tensor) or tree[0].layout != torch.strided:
            continue
        around = torch.full((tree[0].numel() + 14,), 3).to(tree[0].dtype)
        middle = around[7:-7].view(tree[0].shape)
        middle.copy_(tree[0])
        sweep(lambda t: write(t[0], *t[1], **t[2]), [middle, *tree[1:], around], f"{op.name}, sample {index}")


def pattern(like):
    if like.is_floating_point() or like.is_complex():
        return torch.full(like.shape, float("nan"), dtype=like.dtype)
    if like.dtype == torch.bool:
        return (torch.arange(like.numel()) % 3 == 0).view(like.shape)
    return (torch.arange(like.numel()) * 37 % 101 - 20).to(like.dtype).view(like.shape)


def transposed(like):
    return pattern(like.transpose(0, -1)).transpose(0, -1) if like.dim() > 1 else pattern(like)


def inside(like):
    around = torch.full((like.numel() + 14,), 3).to(like.dtype)
    return around[7:-7].view(like.shape)


def wrong_size(like):
    return torch.full((like.numel() + 3,), 5).to(like.dtype)


LAYOUTS = {"exact": pattern, "transposed": transposed, "inside": inside, "wrong size": wrong_size}


@pytest.mark.parametrize("op", OUT, ids=name)
def test_out(op):
    used = 0
    for index, tree in enumerate(samples_of(op, SCAN)):
        kind, result = attempt(lambda t: op(t[0], *t[1], **t[2]), copy.deepcopy(tree))
        if kind == "raised":
            continue
        single = not isinstance(result, (tuple, list))
        results = [result] if single else list(result)
        if not all(isinstance(r, torch.Tensor) and r.layout == torch.strided for r in results):
            continue
        if not all(r.numel() for r in results):
            continue
        used += 1
        for layout, allocate in LAYOUTS.items():
            if layout == "wrong size" and op.name in UNINITIALIZED:
                continue
            outs = [allocate(r.resolve_conj().resolve_neg().detach()) for r in results]
            bases = [o._base for o in outs]

            def call(t, single=single):
                return op(t[0], *t[1], **t[2], out=t[3][0] if single else tuple(t[3]))

            sweep(call, [*tree, outs, bases], f"{op.name} out={layout}, sample {index}", op.name not in UNINITIALIZED)
        if used == OUT_SAMPLES:
            return
    if not used:
        pytest.skip("torch has no sample with dense, non-empty results")


@pytest.mark.parametrize("op", OUT, ids=name)
def test_out_is_the_input(op):
    """`out=` overwrites every byte, but the operator reads the same storage: it must not find fresh memory there."""
    if op.name == "histc" and TORCH < (2, 12):
        pytest.skip("torch 2.11 resizes the input first, and then looks for its range in bytes that nobody has written")
    for index, tree in enumerate(samples_of(op, 1)):
        if isinstance(tree[0], torch.Tensor) and op.name not in UNINITIALIZED:
            what, compare = f"{op.name} out=input, sample {index}", op.name not in UNDEFINED_IN_PLACE
            sweep(lambda t: op(t[0], *t[1], **t[2], out=t[0]), tree, what, compare)


def foreach_samples(op, count=2):
    trees = []
    for noncontiguous in (False, True):
        trees += samples_of(op, count, noncontiguous=noncontiguous)
    return trees


@pytest.mark.parametrize("op", [op for op in FOREACH if op.inplace_variant is not None], ids=name)
def test_foreach_in_place(op):
    for index, tree in enumerate(foreach_samples(op)):
        sweep(lambda t: op.inplace_variant(t[0], *t[1], **t[2]), tree, f"{op.name}_, sample {index}")


@pytest.mark.parametrize("op", [op for op in FOREACH if op.inplace_variant is not None], ids=name)
def test_foreach_in_place_on_aliases(op):
    """The list holds tensors, slices of one storage, and one tensor that is argument and target at once."""
    for index, tree in enumerate(foreach_samples(op, 1)):
        flat = torch.cat([t.reshape(-1) for t in tree[0]])
        pieces = [p.view(t.shape) for p, t in zip(flat.split([t.numel() for t in tree[0]]), tree[0], strict=True)]
        args = [
            list(reversed(pieces)) if isinstance(a, list) and isinstance(a[0], torch.Tensor) else a for a in tree[1]
        ]
        sweep(lambda t: op.inplace_variant(t[0], *t[1], **t[2]), [pieces, args, tree[2], flat], f"{op.name}_, {index}")


@pytest.mark.parametrize("op", [op for op in FOREACH if op.method_variant is not None], ids=name)
def test_foreach_reading(op):
    for index, tree in enumerate(foreach_samples(op, 1)):
        sweep(lambda t: op.method_variant(t[0], *t[1], **t[2]), tree, f"{op.name}, sample {index}", reading=True)


@pytest.mark.parametrize("op", database.op_db, ids=name)
def test_plain_call(op):
    """As a function: what only reads must not write, and must not un-share; hidden writes must not be shared."""
    for index, tree in enumerate(samples_of(op, 2)):
        sweep(
            lambda t: op(t[0], *t[1], **t[2]),
            tree,
            f"{op.name}, sample {index}",
            compare=op.name not in UNINITIALIZED,
            reading=op.name not in UNSHARING_READS,
        )
