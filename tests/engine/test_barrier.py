# SPDX-License-Identifier: Apache-2.0
"""Kernels that write through const pointers: only the dispatcher barrier can see them, and it must.

CUDA's multi-tensor kernels take every address, outputs included, with ``const_data_ptr()``: no storage hook wakes. The
test operators here do the same on CPU.

Catches: the dispatcher barrier taken away, a barrier that looks at single tensors but not at lists, marks that do not
travel to views or through ``.data``, tensors marked only on the clone's side, operators with `out=` overlooked.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchcow.testing
from support.oracle import SIDE, check_isolation


@pytest.fixture(autouse=True, scope="module")
def operators():
    torchcow.testing.load_test_operators()


def write(tensor, value=7.0):
    torch.ops.torchcow_test.write_const_(tensor, value)


def write_list(tensors, value=7.0):
    torch.ops.torchcow_test.write_const_list_(list(tensors), value)


def matrix():
    return torch.rand(SIDE, SIDE)


# Each picks dense tensors out of a matrix; the operators fill dense memory.
TARGETS = {
    "itself": lambda t: t,
    "rows": lambda t: t[3:7],
    "one row": lambda t: t[5],
    "flat view": lambda t: t.view(-1),
    "view of a view": lambda t: t.view(-1)[64:256].view(3, 64),
    "data": lambda t: t.data,
    "data of a view": lambda t: t[2:9].data,
    "detach": lambda t: t.detach(),
    "alias": lambda t: torch.ops.aten.alias(t),
    "unbind": lambda t: t.unbind()[4],
    "split": lambda t: t.split(10)[2],
    "chunk": lambda t: t.chunk(4)[3],
    "narrow": lambda t: t.narrow(0, 6, 3),
    "as_strided": lambda t: t.as_strided((4, 8), (8, 1), 40),
    "view of bytes and back": lambda t: t.view(torch.uint8).view(torch.float32),
    "expand to the same": lambda t: t.expand(SIDE, SIDE),
    "set_ on the storage": lambda t: torch.empty(0).set_(t.untyped_storage(), 64, (5, SIDE)),
    "parameter": lambda t: nn.Parameter(t, requires_grad=False),
    "data setter": lambda t: _with_data(t),
    "asarray": lambda t: torch.asarray(t),
    "swapped": lambda t: _swapped(t),
}


def _with_data(tensor):
    other = torch.empty(0)
    other.data = tensor
    return other


def _swapped(tensor):
    a, b = tensor[:8], torch.empty(3)
    torch.utils.swap_tensors(a, b)
    return b


@pytest.mark.parametrize("name", TARGETS)
def test_target_taken_before_the_clone(name):
    check_isolation(matrix, write, target=TARGETS[name])


@pytest.mark.parametrize("name", TARGETS)
def test_target_taken_after_the_clone(name):
    check_isolation(matrix, lambda t: write(TARGETS[name](t)))


@pytest.mark.parametrize("name", TARGETS)
def test_list_of_targets(name):
    check_isolation(matrix, lambda t: write_list([TARGETS[name](t), torch.zeros(4)]))


def test_parameters_of_a_module():
    def module():
        return nn.Sequential(nn.Linear(SIDE, SIDE), nn.BatchNorm1d(SIDE), nn.Linear(SIDE, 3))

    check_isolation(module, lambda m: write(m[0].weight.data))
    check_isolation(module, lambda m: torch.no_grad()(write_list)(m.parameters()))
    check_isolation(module, lambda m: write_list([p.detach() for p in m.parameters()]))
    check_isolation(module, lambda m: write_list(b for b in m.buffers() if b.is_floating_point()))
    check_isolation(module, lambda m: write_list(m.state_dict()[k] for k in ("0.weight", "2.bias")))


def test_list_whose_members_were_aliased_before_the_clone():
    """Slices of one flat buffer, as in a flattened optimizer: only the list names them."""

    def flat():
        buffer = torch.rand(8 * SIDE)
        return [buffer, *buffer.split(2 * SIDE)]

    check_isolation(flat, lambda ts: write_list(ts[1:3]))
    check_isolation(flat, lambda ts: write_list(ts))
    check_isolation(flat, lambda ts: write(ts[0]))
    check_isolation(lambda: torch.rand(8 * SIDE), write_list, target=lambda t: t.split(SIDE)[2:5])


def test_list_with_the_same_tensor_twice():
    check_isolation(matrix, lambda t: write_list([t, t, t[3:4]]))


def test_list_of_relatives():
    """Source and clone in one list: each gets memory of its own before the operator runs."""
    source = matrix()
    clone, other = torchcow.clone(source), torchcow.clone(source)
    want = other + 0
    write_list([source[:2], clone[2:4]])
    assert torch.equal(other, want)
    assert torch.equal(source[:2], torch.full((2, SIDE), 7.0)) and torch.equal(source[2:], want[2:])
    assert torch.equal(clone[2:4], torch.full((2, SIDE), 7.0)) and torch.equal(clone[:2], want[:2])


def test_alias_made_before_sharing_and_never_seen_by_the_clone():
    """The engine never met this tensor object: nothing but its storage is shared."""
    source = matrix()
    alias = source.view(-1)[10:50]
    detached = source.detach()
    clone = torchcow.clone(source)
    want = clone + 0
    write_list([alias])
    assert torch.equal(clone, want)
    again = torchcow.clone(source)
    want = again + 0
    write(detached)
    assert torch.equal(again, want)


@pytest.mark.parametrize("where", ["no_grad", "inference_mode", "functional_call", "mode"])
def test_in_a_context(where):
    def act(tensor):
        if where == "no_grad":
            torch.no_grad()(write)(tensor)
        elif where == "inference_mode":
            torch.inference_mode()(write)(tensor)
        elif where == "functional_call":
            torch.func.functional_call(Writer(), {"weight": tensor}, ())
        else:
            with Redispatch():
                write(tensor)

    check_isolation(matrix, act)


class Writer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Buffer(torch.zeros(SIDE, SIDE))

    def forward(self):
        write(self.weight)


class Redispatch(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_inference_tensors():
    def make():
        with torch.inference_mode():
            return matrix()

    check_isolation(make, lambda t: torch.inference_mode()(write)(t))


@pytest.mark.sharing
def test_the_barrier_materializes_before_the_kernel_runs():
    source = matrix()
    clone = torchcow.clone(source)
    assert torchcow.is_shared(source) and torchcow.is_shared(clone)
    torchcow.events(clear=True)
    write(clone[3:5])
    (event,) = [e for e in torchcow.events() if e.kind == "materialize"]
    assert event.way == "copy" and "write_const_" in event.operator and event.bytes == 4 * SIDE * SIDE
    write(source)
    assert torchcow.events()[-1].way == "steal"


def test_an_operator_that_is_defined_again_with_another_schema():
    """A second library's kernel keeps torch's entry of the operator alive; the barrier must not keep the old schema."""
    kernels = torch.library.Library("torchcow_again", "FRAGMENT")
    kernels.impl("write_", lambda *tensors: torch.ops.torchcow_test.write_const_(tensors[-1], 3), "CPU")
    tensors = [torch.rand(SIDE, SIDE) for _ in range(3)]
    for names in ("xyz", "xy", "xyz"):
        schema = torch.library.Library("torchcow_again", "FRAGMENT")
        schema.define(f"write_({', '.join(f'Tensor {n}' for n in names[:-1])}, Tensor(a!) {names[-1]}) -> ()")
        arguments = tensors[: len(names)]
        clones = [torchcow.clone(t) for t in arguments]
        want = [t.clone() for t in arguments]
        torch.ops.torchcow_again.write_.default(*clones)
        assert [torchcow.is_shared(t) for t in clones] == [True] * (len(names) - 1) + [False]
        assert all(torch.equal(a, b) for a, b in zip(want, arguments, strict=True))
        assert torch.equal(clones[-1], torch.full((SIDE, SIDE), 3.0))
        schema._destroy()
    kernels._destroy()
