# SPDX-License-Identifier: Apache-2.0
"""Every further way of writing that Python has, on each of four relatives in several orders, against a deep copy.

Catches: a write path that neither barrier sees (take away the storage hook: numpy, ctypes, storage writes and running
statistics fail; take away the dispatcher barrier: writes that `skip` or go through const pointers fail), a sharer that
does not travel with its views, `resize_`/`set_`/`storage.resize_` that act on the block instead of the sharer, and a
'last sharer' decision that comes too early (make `steal` unconditional: the third relative of each family fails).
"""

from __future__ import annotations

import pytest
import torch

from support import writes
from support.oracle import SIDE, build, check_isolation

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("write", writes.TABLE, ids=lambda write: write.name)
def test_write_I1(write):
    check_isolation(write.make, write.write, writes=write.changes)


METHODS = sorted(name for name in writes.METHODS if hasattr(torch.Tensor, name))


@pytest.mark.parametrize("name", METHODS)
def test_method(name):
    """Each method of Tensor that ends in an underscore."""
    arguments = writes.METHODS[name]
    changes = name not in writes.CHANGES_NOTHING
    make = writes.MAKES.get(name, writes.matrix)
    check_isolation(make, lambda t: getattr(t, name)(*arguments(t)), writes=changes)


def test_every_method_is_in_the_table():
    methods = {name for name in dir(torch.Tensor) if name.endswith("_") and not name.startswith("_")}
    assert not methods - set(writes.METHODS) - writes.LEFT_OUT


@pytest.mark.parametrize("name", METHODS)
def test_method_really_runs(name):
    """An argument list that merely raises would prove nothing."""
    tensor = build(writes.MAKES.get(name, writes.matrix))
    getattr(tensor, name)(*writes.METHODS[name](tensor))


@pytest.mark.parametrize("dtype", writes.DTYPES, ids=str)
@pytest.mark.parametrize("write", ["copy_", "zero_", "index", "slice", "fill_"])
def test_dtype(dtype, write):
    make = writes.of_dtype(dtype)
    actions = {
        "copy_": lambda t: t.copy_(t.flip(0)) if dtype not in writes.NARROW else t.copy_(t.float().flip(0)),
        "zero_": lambda t: t.zero_(),
        "index": lambda t: t.__setitem__((3, 5), 0),
        "slice": lambda t: t[::3].zero_(),
        "fill_": lambda t: t.fill_(0),
    }
    check_isolation(make, actions[write])


VIEW_WRITES = {
    "mul_": lambda v: v.mul_(2) if v.dtype.is_floating_point or v.dtype.is_complex else v.bitwise_not_(),
    "zero_": lambda v: v.zero_(),
    "copy_": lambda v: v.copy_(torch.ones(v.shape, dtype=v.dtype)),
    "first element": lambda v: v.reshape(-1)[:1].fill_(1) if v.is_contiguous() else v[..., :1].fill_(1),
    "data": lambda v: v.data.fill_(1),
}


@pytest.mark.parametrize("write", VIEW_WRITES)
@pytest.mark.parametrize("view", writes.VIEWS)
def test_through_a_view_I1(view, write):
    """Views taken from the source before the clones are made, from the clones afterwards."""
    make = writes.complex_matrix if view in writes.COMPLEX_VIEWS else writes.matrix
    check_isolation(make, VIEW_WRITES[write], target=writes.VIEWS[view])


@pytest.mark.parametrize("view", [view for view in writes.VIEWS if view != "subclass"])  # deepcopy refuses it
def test_base_and_view_in_one_graph(view):
    """The view is cloned together with its base: they stay two tensors over one storage."""
    base = writes.complex_matrix if view in writes.COMPLEX_VIEWS else writes.matrix

    def make():
        tensor = base()
        return [tensor, writes.VIEWS[view](tensor)]

    check_isolation(make, lambda pair: pair[0].zero_())
    check_isolation(make, lambda pair: VIEW_WRITES["mul_"](pair[1]))


def test_a_view_kept_from_before_follows_its_own_base():
    """After both have moved away from the block, base and view still are one storage."""
    import torchcow

    base = torch.randn(SIDE, SIDE)
    view = base[5:9]
    clone = torchcow.clone(base)
    want = clone + 0
    base.add_(1)
    assert torch.equal(view, base[5:9])
    view.zero_()
    assert torch.equal(base[5:9], torch.zeros(4, SIDE))
    assert torch.equal(clone, want)


def test_expanded_tensors_refuse_in_place_writes():
    check_isolation(lambda: torch.randn(SIDE, 1).expand(SIDE, SIDE), lambda t: t.add_(1), writes=False)
