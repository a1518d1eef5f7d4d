# SPDX-License-Identifier: Apache-2.0
"""The census: each holder of a tensor that it knows is one that torch counts, once, in this version of torch.

Catches: a torch that stops counting a holder, or counts it twice (the terms no longer add up to what torch counts); a
holder that nobody knows (a consumer, a saved tensor) and that something else hides; a tensor that is counted twice.
"""

from __future__ import annotations

import gc

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

import torchcow
from torchcow import _C

SIZE = 1000
TERMS = ("python_object", "grad_accumulator", "views", "census")


def plain():
    """The tensor, whatever else must stay alive, and how often each holder counts."""
    return torch.rand(SIZE), (), {}


def with_grad_accumulator():
    tensor = torch.rand(SIZE, requires_grad=True)
    node = (tensor * 2).grad_fn.next_functions[0][0]
    return tensor, (node,), {"grad_accumulator": 1}


def with_views():
    tensor = torch.rand(SIZE)
    return tensor, (tensor.view(10, -1), tensor[3:]), {"views": 2}


def with_view_of_a_view():
    """Both have the same base."""
    tensor = torch.rand(SIZE)
    return tensor, (tensor.view(10, -1).t(),), {"views": 1}


def with_alias_without_base():
    """What `detach` makes keeps no base."""
    tensor = torch.rand(SIZE, requires_grad=True)
    return tensor, (tensor.detach(),), {}


def of_storage_with_object():
    tensor = torch.rand(SIZE)
    return tensor, (tensor.untyped_storage(),), {}


SETUPS = [
    plain,
    with_grad_accumulator,
    with_views,
    with_view_of_a_view,
    with_alias_without_base,
    of_storage_with_object,
]


def census_of(tensor, others):
    return _C.count_references([tensor, *(other for other in others if isinstance(other, torch.Tensor))])


@pytest.mark.parametrize("make", SETUPS, ids=lambda make: make.__name__)
def test_each_known_holder_is_one_that_torch_counts(make):
    """Fails if torch stops counting one of them, or starts counting one more."""
    tensor, others, expected = make()
    counts = census_of(tensor, others)
    assert counts.counted == sum(getattr(counts, term) for term in TERMS), counts
    assert {term: getattr(counts, term) for term in TERMS} == {
        "python_object": 1,
        "grad_accumulator": 0,
        "views": 0,
        "census": 1,
    } | expected
    assert counts.storage_counted == counts.storage_tensors + counts.storage_python_object, counts
    assert counts.storage_python_object == (make is of_storage_with_object)
    assert counts.accounts_for_all


def test_a_view_holds_the_bases_of_both_kinds_of_differentiation():
    """A view of a dual tensor: the backward base is the primal, the forward base is the dual."""
    primal = torch.rand(SIZE)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(primal, torch.rand(SIZE))
        view = dual.view(10, -1)
        for tensor in (dual, primal):
            others = [one for one in (primal, dual, view) if one is not tensor]
            counts = census_of(tensor, others)
            assert counts.counted == sum(getattr(counts, term) for term in TERMS), (tensor is dual, counts)
        assert census_of(dual, [primal, view]).views > 0


def consumer(tensor):
    return torch.utils.dlpack.to_dlpack(tensor.detach() if tensor.requires_grad else tensor)


def saved(tensor):
    """A graph that needs the tensor's values for its backward pass."""
    return torch.ones(SIZE, requires_grad=True) * tensor.detach()


@pytest.mark.parametrize("make", [plain, with_grad_accumulator, with_views, of_storage_with_object])
@pytest.mark.parametrize("hold", [consumer, saved])
def test_a_holder_that_nobody_knows_shows_whatever_else_holds_the_tensor(make, hold):
    """Fails if a known holder is counted that torch does not count: it would hide this one."""
    tensor, others, _ = make()
    gc.collect()
    assert census_of(tensor, others).accounts_for_all
    holder = hold(tensor)
    assert not census_of(tensor, others).accounts_for_all
    clone = torchcow.clone(
        {"x": tensor, "others": [one for one in others if isinstance(one, torch.Tensor) and one.is_leaf]}
    )
    assert not torchcow.is_shared(clone["x"])
    del holder


def test_a_tensor_is_counted_once():
    """Seen to fail when each time counts: the consumer is hidden by the second one."""
    tensor = torch.rand(SIZE)
    capsule = consumer(tensor)
    assert not _C.count_references([tensor, tensor]).accounts_for_all
    assert _C.count_references([tensor, tensor]).storage_tensors == 1
    clone = torchcow.clone([tensor, [tensor]])
    assert not torchcow.is_shared(clone[0])
    del capsule
