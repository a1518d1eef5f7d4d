# SPDX-License-Identifier: Apache-2.0
"""clone against copy.deepcopy, case by case: structure, identity, strides, flags, hooks, ties, memo, errors.

Catches: any short cut of the walk that gives another object graph than deep copy does: a tie cut or made, a view
compacted or not, `.grad` kept or dropped, a memo entry overlooked, an error swallowed.
"""

from __future__ import annotations

import abc
import collections
import copy
import dataclasses
import enum
import functools
import io
import logging
import operator
import pathlib
import re
import threading
import types
import typing
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torchcow
from support.oracle import SIDE, assert_same, attempt, build, difference, eager_reasons, freeze, saved_and_loaded

pytestmark = pytest.mark.filterwarnings("ignore")


def matrix():
    return torch.rand(SIDE, SIDE)


def complexes():
    return torch.randn(SIDE, SIDE, dtype=torch.complex64)


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Record:
    weight: torch.Tensor
    name: str = "x"
    more: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    weight: torch.Tensor


class Slots:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = matrix(), [1]


class SlotsAndDict(Slots):
    def __init__(self):
        super().__init__()
        self.extra = self.a


class Point(collections.namedtuple("Point", "x y")):
    pass


class OwnDeepcopy:
    def __init__(self, tensor):
        self.tensor, self.calls = tensor, 0

    def __deepcopy__(self, memo):
        new = type(self)(copy.deepcopy(self.tensor, memo))
        new.calls = self.calls + 1
        memo[id(self)] = new
        return new


class OwnReduce:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return (type(self), (self.tensor,), {"state": [self.tensor, self]})


class OwnState(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(matrix())
        self.cache = torch.ones(SIDE)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "cache"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.cache = "rebuilt"


class SubParameter(nn.Parameter):
    def __new__(cls, data, requires_grad=True):
        return super().__new__(cls, data, requires_grad)


class DeepParameter(nn.Parameter):
    def __deepcopy__(self, memo):
        memo[id(self)] = result = type(self)(self.data.clone() + 1, self.requires_grad)
        return result


class ManyArguments(nn.Parameter):
    def __new__(cls, data, extra, more):
        return super().__new__(cls, data, extra)


class TensorWithAttributes(torch.Tensor):
    def new_empty(self, *args, **kwargs):
        return torch.Tensor.new_empty(self, *args, **kwargs).as_subclass(type(self))


class TorchFunction(torch.Tensor):
    calls: typing.ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def closure_over(tensor):
    return lambda: tensor


def with_attributes(tensor, **attributes):
    for name, value in attributes.items():
        setattr(tensor, name, value)
    return tensor


def cycle():
    a = [matrix()]
    a.append({"back": a})
    return a


def tied():
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE))
    model[1].weight = model[0].weight
    model.again = model[0]
    model.also = [model[1].bias]
    return model


def trained(cls=torch.optim.AdamW, **kwargs):
    model = nn.Linear(SIDE, SIDE)
    optimizer = cls(model.parameters(), lr=0.1, **kwargs)
    model(torch.ones(2, SIDE)).sum().backward()
    optimizer.step()
    return model, optimizer


def scheduled():
    model, optimizer = trained()
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3)


def buffers_that_are_views():
    module = nn.Module()
    base = matrix()
    module.register_buffer("base", base)
    module.register_buffer("rows", base[3:9])
    module.register_buffer("t", base.t(), persistent=False)
    module.register_buffer("diagonal", base.diagonal())
    return module


def parameter_views():
    base = matrix()
    module = nn.Module()
    module.a, module.b = nn.Parameter(base[:32]), nn.Parameter(base[32:])
    module.register_buffer("base", base)
    module.plain = base[5]
    return module


def with_hooks():
    module = nn.Linear(SIDE, SIDE)
    module.register_forward_hook(module_hook)
    module.register_forward_pre_hook(functools.partial(module_hook, tag=matrix()))
    module.register_full_backward_hook(module_hook)
    module.register_state_dict_pre_hook(module_hook)
    module.weight.register_hook(module_hook)
    module.weight.register_post_accumulate_grad_hook(module_hook)
    return module


def module_hook(*args, **kwargs):
    return None


def rebound():
    module = nn.Linear(SIDE, SIDE)
    module.forward = module.forward
    module.method = module.extra_repr
    module.partial = functools.partial(module.forward)
    return module


def with_grad(tensor):
    tensor.requires_grad_()
    tensor.grad = torch.ones_like(tensor)
    return tensor


def inference_tensor():
    with torch.inference_mode():
        return matrix()


def lazily_initialized():
    module = nn.LazyLinear(SIDE)
    module(torch.ones(2, SIDE))
    return module


def two_storages():
    tensor = matrix()
    return [tensor, tensor.untyped_storage(), tensor.storage(), tensor[3:]]


def overlapping():
    base = matrix()
    return [base.as_strided((SIDE, 8), (3, 1)), base.view(-1)[7:90], base]


CASES = {
    # tensors
    "tensor": matrix,
    "requires_grad": lambda: matrix().requires_grad_(),
    "grad": lambda: with_grad(matrix()),
    "grad of a buffer-like tensor tied to it": lambda: (lambda t: [t, t.grad])(with_grad(matrix())),
    "transposed": lambda: matrix().t(),
    "slice": lambda: matrix()[3:9, 2:],
    "every second": lambda: matrix()[::2, ::3],
    "expanded": lambda: torch.rand(SIDE, 1).expand(SIDE, SIDE),
    "scalar": lambda: torch.tensor(3.5),
    "empty": lambda: torch.empty(0, 5),
    "channels last": lambda: torch.rand(2, 3, 16, 16).to(memory_format=torch.channels_last),
    "bool": lambda: matrix() > 0.5,
    "bfloat16": lambda: matrix().bfloat16(),
    "complex": complexes,
    "conj": lambda: complexes().conj(),
    "neg": lambda: complexes().conj().imag,
    "real": lambda: complexes().real,
    "conj with its base": lambda: (lambda t: [t, t.conj()])(complexes()),
    "complex and real views": lambda: (lambda t: [t, torch.view_as_real(t), t.imag])(complexes()),
    "dtype views": lambda: (lambda t: [t, t.view(torch.int32), t.view(torch.uint8)[3:]])(matrix()),
    "overlapping views": overlapping,
    "view before base": lambda: (lambda t: [t[5:], t])(matrix()),
    "the same tensor twice": lambda: (lambda t: [t, (t,), {"t": t}])(matrix()),
    "storages as objects": two_storages,
    "untyped storage": lambda: matrix().untyped_storage(),
    "typed storage": lambda: matrix().storage(),
    "inference tensor": inference_tensor,
    "meta": lambda: torch.empty(SIDE, SIDE, device="meta"),
    "sparse": lambda: matrix().relu_().to_sparse(),
    "uncoalesced sparse": lambda: torch.sparse_coo_tensor([[1, 1]], [2.0, 3.0], (5,)),
    "quantized": lambda: torch.quantize_per_tensor(matrix(), 0.1, 3, torch.quint8),
    "quantized per channel": lambda: torch.quantize_per_channel(
        matrix(), torch.ones(SIDE), torch.zeros(SIDE), 0, torch.qint8
    ),
    "jagged nested": lambda: torch.nested.nested_tensor([torch.rand(3, 5), torch.rand(4, 5)], layout=torch.jagged),
    "attributes": lambda: with_attributes(matrix(), note=[1, 2], other=matrix()),
    "attribute that is itself": lambda: (lambda t: with_attributes(t, me=t))(matrix()),
    "tensor hooks": lambda: (lambda t: (t.register_hook(module_hook), t)[1])(matrix().requires_grad_()),
    "subclass with new_empty": lambda: with_attributes(matrix().as_subclass(TensorWithAttributes), note=[matrix()]),
    "numpy view exists": lambda: (lambda t: [t, t.numpy()])(matrix()),
    "numpy array": lambda: np.arange(10.0),
    "from_numpy": lambda: torch.from_numpy(np.ones(5)),
    "shared memory": lambda: matrix().share_memory_(),
    "loaded": lambda: saved_and_loaded(matrix()),
    "read-only storage": lambda: torch.frombuffer(b"x" * 4096, dtype=torch.uint8),
    "version bumped": lambda: matrix().add_(1),
    "named by rebinding data": lambda: (lambda t: (setattr(t, "data", torch.ones(3)), t)[1])(matrix()),
    "generator": lambda: torch.Generator().manual_seed(3),
    "size": lambda: torch.Size([3, 4]),
    "dtype, device, layout": lambda: [torch.float16, torch.device("cpu"), torch.strided, torch.channels_last],
    "finfo": lambda: torch.finfo(torch.float32).bits,
    # parameters
    "parameter": lambda: nn.Parameter(matrix()),
    "parameter with grad": lambda: with_grad(nn.Parameter(matrix())),
    "parameter with attributes": lambda: with_attributes(nn.Parameter(matrix()), note=1),
    "frozen parameter": lambda: nn.Parameter(matrix(), requires_grad=False),
    "integer parameter": lambda: nn.Parameter(torch.ones(5, dtype=torch.long), requires_grad=False),
    "parameter, slice": lambda: nn.Parameter(matrix()[3:9]),
    "parameter, column": lambda: nn.Parameter(matrix()[:, 3]),
    "parameter, every second": lambda: nn.Parameter(matrix()[::2]),
    "parameter, expanded": lambda: nn.Parameter(torch.rand(SIDE, 1).expand(SIDE, SIDE)),
    "parameter, transposed": lambda: nn.Parameter(matrix().t()),
    "parameter, transposed slice": lambda: nn.Parameter(matrix()[3:9].t()),
    "parameter, channels last": lambda: nn.Parameter(torch.rand(2, 3, 16, 16).to(memory_format=torch.channels_last)),
    "parameter, permuted": lambda: nn.Parameter(torch.rand(4, 5, 64).permute(2, 0, 1)),
    "parameter, conj": lambda: nn.Parameter(complexes().conj()),
    "parameter, shared memory": lambda: nn.Parameter(matrix().share_memory_()),
    "parameter, empty": lambda: nn.Parameter(torch.empty(0)),
    "parameter, scalar": lambda: nn.Parameter(torch.tensor(1.0)),
    "parameter, meta": lambda: nn.Parameter(torch.empty(5, device="meta")),
    "parameter subclass": lambda: SubParameter(matrix()),
    "parameter subclass with __deepcopy__": lambda: DeepParameter(matrix()),
    "parameter over a subclass": lambda: nn.Parameter(matrix().as_subclass(TensorWithAttributes)),
    "parameter and its data": lambda: (lambda p: [p, p.data, p.detach()])(nn.Parameter(matrix())),
    "parameters over one storage": lambda: (lambda t: [nn.Parameter(t), nn.Parameter(t), t])(matrix()),
    "parameters that are slices": parameter_views,
    "uninitialized parameter": lambda: nn.parameter.UninitializedParameter(),
    "buffer": lambda: nn.Buffer(matrix(), persistent=False),
    # modules
    "linear": lambda: nn.Linear(SIDE, SIDE),
    "evaluating": lambda: nn.Sequential(nn.Dropout(), nn.BatchNorm1d(SIDE)).eval(),
    "ties": tied,
    "buffers that are views": buffers_that_are_views,
    "hooks": with_hooks,
    "rebound forward": rebound,
    "LSTM": lambda: nn.LSTM(8, 16, 2),
    "LSTM with projection": lambda: nn.LSTM(8, 16, proj_size=4),
    "transformer": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2), 2),
    "lists and dicts": lambda: nn.ModuleDict(
        {"a": nn.ModuleList([nn.ReLU()]), "b": nn.ParameterDict({"p": nn.Parameter(matrix())})}
    ),
    "None parameters": lambda: nn.Linear(3, 3, bias=False),
    "non-persistent": lambda: buffers_that_are_views(),
    "own state": OwnState,
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(SIDE, SIDE)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(SIDE, SIDE)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(SIDE, SIDE)),
    "old spectral_norm before a forward": lambda: nn.utils.spectral_norm(nn.Linear(SIDE, SIDE)),
    "LazyLinear": lambda: nn.LazyLinear(SIDE),
    "LazyConv2d": lambda: nn.LazyConv2d(5, 3),
    "LazyLinear after a forward": lazily_initialized,
    "fx module": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(SIDE, SIDE), nn.ReLU())),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(SIDE, SIDE)),
    "gradients": lambda: trained()[0],
    "half": lambda: nn.Linear(SIDE, SIDE).half(),
    "DataParallel-like wrapper": lambda: _wrapper(),
    # optimizers
    "model and optimizer": trained,
    "optimizer first": lambda: trained()[::-1],
    "optimizer alone": lambda: trained()[1],
    "with scheduler": scheduled,
    "scheduler alone": lambda: scheduled()[2],
    "SGD momentum": lambda: trained(torch.optim.SGD, momentum=0.9),
    "adam amsgrad fused": lambda: trained(torch.optim.Adam, amsgrad=True, fused=True),
    "LBFGS": lambda: (lambda m: (m, torch.optim.LBFGS(m.parameters())))(nn.Linear(3, 3)),
    "grad scaler": lambda: torch.amp.GradScaler("cpu", enabled=False),
    # Python
    "containers": lambda: {"l": [matrix()], "t": (1, matrix()), "s": {1, 2}, "f": frozenset([3]), "n": None, 3: "x"},
    "tensor keys": lambda: (lambda t: {t: [t]})(matrix()),
    "tuple of atomics": lambda: (1, "a", (2.5, None)),
    "namedtuple": lambda: Point(matrix(), 2),
    "ordered, default, counter, deque": lambda: [
        collections.OrderedDict(a=matrix()), collections.defaultdict(list, a=[matrix()]),
        collections.Counter("aab"), collections.deque([matrix()], maxlen=3),
    ],
    "user dict": lambda: collections.UserDict(a=matrix()),
    "chain map": lambda: collections.ChainMap({"a": matrix()}, {}),
    "dataclass": lambda: Record(matrix(), more=[matrix()]),
    "frozen dataclass": lambda: Frozen(matrix()),
    "slots": Slots,
    "slots and dict": SlotsAndDict,
    "simple namespace": lambda: types.SimpleNamespace(a=matrix()),
    "cycle": cycle,
    "own __deepcopy__": lambda: (lambda t: [OwnDeepcopy(t), t])(matrix()),
    "own __reduce__": lambda: (lambda t: [t, OwnReduce(t)])(matrix()),
    "bound method": lambda: nn.Linear(3, 3).forward,
    "partial": lambda: functools.partial(torch.add, matrix(), alpha=2),
    "functions and classes": lambda: [len, module_hook, nn.Linear, abc.ABC, operator.add],
    "enum": lambda: [Color.RED, re.compile("a+"), path_with_parts(), range(3), slice(1, 2), 1j, b"x", ...],
    "logger": lambda: [logging.getLogger("torchcow.tests")],
    "bytes and arrays": lambda: [bytearray(b"abc"), np.float32(2), np.array(["a", None], dtype=object)],
    "string io": lambda: io.StringIO("abc").getvalue(),
    "exception": lambda: ValueError("x", [1]),
    "compiled in place": lambda: (lambda m: (m.compile(backend="eager"), m)[1])(nn.Linear(SIDE, SIDE)),
    "property and staticmethod users": lambda: [Record.__init__],
}  # fmt: skip


def path_with_parts():
    path = pathlib.Path("a/b")
    hash(path.parts)  # Python 3.12 computes them when first asked, as a copy does
    return path


def _wrapper():
    outer = nn.Module()
    outer.module = nn.Linear(SIDE, SIDE)
    object.__setattr__(outer, "shadow", outer.module)
    outer.parent = [outer]
    return outer


@pytest.mark.parametrize("name", CASES)
def test_same_graph(name):
    want = freeze(copy.deepcopy(build(CASES[name])), layout=True)
    source = build(CASES[name])
    before = freeze(source, layout=True)
    got = freeze(torchcow.clone(source), layout=True)
    text = difference(want, got)
    assert not text, f"clone and deepcopy disagree:\n{text}"
    assert not difference(before, freeze(source, layout=True)), "cloning changed the source"


@pytest.mark.parametrize("name", CASES)
def test_same_graph_in_company(name):
    """Inside of containers, twice, and with the company of a tensor."""

    def make():
        thing = CASES[name]()
        return [thing, {"again": thing}, matrix()]

    want, got = freeze(copy.deepcopy(build(make))), freeze(torchcow.clone(build(make)))
    text = difference(want, got)
    assert not text, text


@pytest.mark.parametrize("name", CASES)
def test_clone_of_a_clone_and_deepcopy_of_a_clone(name):
    want = freeze(copy.deepcopy(copy.deepcopy(build(CASES[name]))), layout=True)
    clone = torchcow.clone(build(CASES[name]))
    assert not difference(want, freeze(torchcow.clone(clone), layout=True))
    assert not difference(want, freeze(copy.deepcopy(clone), layout=True))


@pytest.mark.parametrize("name", CASES)
def test_atomic_or_new(name):
    """What deepcopy returns as it is, clone returns as it is; what it copies is another object here, too."""
    first, second = build(CASES[name]), build(CASES[name])
    assert (copy.deepcopy(first) is first) == (torchcow.clone(second) is second)


# ------------------------------------------------------------------------------------------------------------ errors


def non_leaf():
    return matrix().requires_grad_() * 2


def pruned():
    module = nn.Linear(SIDE, SIDE)
    prune.l1_unstructured(module, "weight", 0.5)
    module(torch.ones(2, SIDE))
    return module


def after_forward(module):
    module(torch.ones(2, SIDE))
    return module


def nested_modules(depth):
    module = nn.Linear(2, 2)
    for _ in range(depth):
        module = nn.Sequential(module)
    return module


class Nothing:
    def __deepcopy__(self, memo):
        return None


class WrongReduce:
    def __reduce__(self):
        return 5


class Raises:
    def __deepcopy__(self, memo):
        raise KeyError("mine")


class RaisesInState(nn.Module):
    def __getstate__(self):
        raise ZeroDivisionError("no state")


ERRORS = {
    "non-leaf": non_leaf,
    "non-leaf in a module": lambda: with_attributes(nn.Module(), cache=non_leaf()),
    "sparse CSR": lambda: matrix().to_sparse_csr(),
    "strided nested": lambda: torch.nested.nested_tensor([torch.rand(3), torch.rand(4)]),
    "uninitialized buffer": lambda: nn.parameter.UninitializedBuffer(),
    "LazyBatchNorm1d": lambda: nn.LazyBatchNorm1d(),
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Linear(SIDE, SIDE)),
    "old spectral_norm after a forward": lambda: after_forward(nn.utils.spectral_norm(nn.Linear(SIDE, SIDE))),
    "pruned": pruned,
    "subclass without new_empty": lambda: with_attributes(complexes().conj().as_subclass(TorchFunction), a=1),
    "parameter with more arguments": lambda: ManyArguments(matrix(), True, 3),
    "parameter of 4 bits": lambda: nn.Parameter(torch.zeros(SIDE, SIDE, dtype=torch.uint8).view(torch.uint4), False),
    "parameter, sparse": lambda: nn.Parameter(matrix().to_sparse()),
    "lock": threading.Lock,
    "rlock": threading.RLock,
    "condition": threading.Condition,
    "event": threading.Event,
    "thread": threading.Thread,
    "lock in a module": lambda: with_attributes(nn.Linear(3, 3), lock=threading.Lock()),
    "file": lambda: Path("/dev/null").open(),  # noqa: SIM115 - it is the object that matters
    "generator": lambda: (i for i in range(3)),
    "module": lambda: types,
    "frame": lambda: __import__("sys")._getframe(),
    "mapping proxy": lambda: types.MappingProxyType({}),
    "memoryview": lambda: memoryview(b"abc"),
    "dict view": lambda: {}.keys(),
    "cell": lambda: closure_over(3).__closure__[0],
    "grad_fn": lambda: non_leaf().grad_fn,
    "DataLoader iterator": lambda: iter(torch.utils.data.DataLoader([1, 2])),
    "wrong __reduce__": WrongReduce,
    "own error": Raises,
    "own error, deep": lambda: [matrix(), {"x": [matrix(), Raises()]}],
    "error in __getstate__": RaisesInState,
    "mkldnn": lambda: matrix().to_mkldnn(),
    "no memory for a parameter": lambda: nn.Parameter(torch.zeros(1).expand(10**14)),
    "no memory for a parameter, deep": lambda: nn.ParameterList([matrix(), torch.zeros(1).expand(10**14)]),
    "a method of nothing": lambda: types.MethodType(print, Nothing()),
    "ctypes pointer": lambda: __import__("ctypes").pointer(__import__("ctypes").c_int(3)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_same_error(name):
    source = build(ERRORS[name])
    with pytest.raises(Exception) as want:
        copy.deepcopy(source)
    with pytest.raises(Exception) as got:
        torchcow.clone(source)
    assert got.type is want.type
    assert str(got.value)[:30] == str(want.value)[:30]


@pytest.mark.skipif(
    not hasattr(torch._C, "_set_storage_data_ptr_access_error_msg"), reason="torch is built without CUDA"
)
@pytest.mark.parametrize("make", [matrix, lambda: nn.Parameter(matrix())], ids=["tensor", "parameter"])
def test_memory_that_torch_forbids_to_read(make):
    source = make()
    torch._C._set_storage_data_ptr_access_error_msg(source.untyped_storage()._cdata, "overwritten by a later run")
    with pytest.raises(RuntimeError, match="overwritten by a later run"):
        copy.deepcopy(source)
    with pytest.raises(RuntimeError, match="overwritten by a later run"):
        torchcow.clone(source)


@pytest.mark.parametrize("memo", ["bad", 3, [1]])
def test_bad_memo(memo):
    with pytest.raises(Exception) as want:
        copy.deepcopy([matrix()], memo)
    with pytest.raises(want.type, match=re.escape(str(want.value)[:20])):
        torchcow.clone([matrix()], memo)


def test_deep_nesting_that_works():
    source = nested_modules(100)
    assert_same(freeze(copy.deepcopy(source)), freeze(torchcow.clone(source)), "100 nested modules")


def test_a_failed_clone_leaves_the_source():
    source = [nn.Linear(SIDE, SIDE), matrix(), Raises()]
    before = freeze(source[:2])
    with pytest.raises(KeyError, match="mine"):
        torchcow.clone(source)
    assert_same(before, freeze(source[:2]), "the source")
    source[1].add_(1)
    source[0].weight.data.add_(1)


# -------------------------------------------------------------------------------------------------------------- memo


def test_memo_entries_win():
    tensor, other, module = matrix(), torch.ones(3), nn.Linear(3, 3)
    memo = {id(tensor): other, id(module): "seeded", id(module.weight): 5}
    assert torchcow.clone([tensor, module, tensor], dict(memo)) == [other, "seeded", other]
    parameter = nn.Parameter(matrix())
    assert torchcow.clone(parameter, {id(parameter): other}) is other


def test_memo_is_filled_like_deepcopy_does():
    source = [matrix(), {"a": nn.Linear(3, 3)}]
    want, got = {}, {}
    copy.deepcopy(source, want)
    result = torchcow.clone(source, got)
    assert got[id(source)] is result
    assert got[id(source[0])] is result[0]
    assert got[id(source[1]["a"].weight)] is result[1]["a"].weight
    assert set(map(type, want)) == set(map(type, got))
    assert id(got) in got, "the keep-alive list"


def test_one_memo_over_several_calls_keeps_identity_and_storages():
    base = matrix()
    model, memo = nn.Linear(SIDE, SIDE), {}
    first = torchcow.clone([base, model], memo)
    second = torchcow.clone([base[3:], model.weight, base], memo)
    assert second[1] is first[1].weight and second[2] is first[0]
    assert second[0].untyped_storage()._cdata == first[0].untyped_storage()._cdata
    third = copy.deepcopy(base.t(), memo)
    assert third.untyped_storage()._cdata == first[0].untyped_storage()._cdata


class ZeroedStorage(torch.UntypedStorage):
    def __deepcopy__(self, memo):
        return torch.UntypedStorage(self.nbytes()).fill_(0)


@pytest.mark.parametrize("copier", [copy.deepcopy, torchcow.clone])
def test_a_storage_of_a_class_of_its_own_is_asked(copier):
    storage = ZeroedStorage(4096).fill_(1)
    tensor = torch.empty(0).set_(storage)
    for clone in (copier(tensor), copier([tensor, 1])[0], copier([storage, tensor])[1]):
        assert clone.untyped_storage().tolist() == [0] * 4096


def test_attributes_of_a_storage_are_dropped():
    tensor = matrix()
    tensor.untyped_storage().note = [1]
    clones = [copier([tensor, tensor.untyped_storage()]) for copier in (copy.deepcopy, torchcow.clone)]
    assert [vars(clone[1]) for clone in clones] == [{}, {}]
    assert [clone[0].untyped_storage()._cdata == clone[1]._cdata for clone in clones] == [True, True]


def test_nested_deepcopy_shares_identity_and_storages():
    class Nested:
        def __init__(self, tensor):
            self.tensor = tensor

        def __deepcopy__(self, memo):
            self.memo = memo
            return [copy.deepcopy(self.tensor, memo), copy.deepcopy(self.tensor[3:], memo)]

    tensor, memo = matrix(), {}
    nested = Nested(tensor)
    first, (again, view) = torchcow.clone([tensor, nested], memo)
    assert again is first
    assert view.untyped_storage()._cdata == first.untyped_storage()._cdata
    assert nested.memo is memo
    first.zero_()
    assert torch.equal(view, torch.zeros(SIDE - 3, SIDE)) and not torch.equal(tensor, first)


class CountsItsCopies(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("copies", torch.zeros(SIDE, SIDE))

    def __deepcopy__(self, memo):
        result = memo[id(self)] = type(self).__new__(type(self))
        result.__dict__ = copy.deepcopy(self.__dict__, memo)
        self.copies.add_(1)
        return result


@pytest.mark.sharing
def test_a_source_that_is_written_while_it_is_cloned():
    """Break: probation that ends through the source alone: the clone was refused, and copied, ever after."""
    source = CountsItsCopies()
    clone = torchcow.clone(source)
    assert torch.equal(source.copies, torch.ones(SIDE, SIDE)) and not clone.copies.any()
    grandchild = torchcow.clone(clone.copies)
    assert torchcow.is_shared(grandchild) and not eager_reasons()
    assert_same(freeze(clone.copies), grandchild, "the clone of the clone")


@pytest.mark.parametrize("kind", ["None", "UserDict", "dict subclass"])
def test_kinds_of_memo(kind):
    memo = {"None": None, "UserDict": collections.UserDict(), "dict subclass": collections.OrderedDict()}[kind]
    source = [matrix()] * 2
    result = torchcow.clone(source, memo)
    assert result[0] is result[1]
    assert_same(freeze(source), freeze(result), kind)


def test_temporaries_of_reduce_stay_alive():
    class Temporary:
        def __reduce__(self):
            return (list, ([torch.ones(2000), [object()]],))

    result = torchcow.clone([Temporary() for _ in range(50)])
    assert all(torch.equal(item[0], torch.ones(2000)) for item in result)
    assert len({id(item[0]) for item in result}) == 50


# ---------------------------------------------------------------------------------------------------- particular points


def test_hooks_of_the_copy_are_the_copys_own():
    module = with_hooks()
    clone = torchcow.clone(module)
    assert list(clone._forward_hooks) == list(module._forward_hooks)
    assert clone._forward_hooks is not module._forward_hooks
    clone._forward_hooks.clear()
    assert module._forward_hooks
    assert not clone.weight._backward_hooks and not clone.weight._post_accumulate_grad_hooks


def test_a_removable_handle_in_the_copy_removes_from_the_copy():
    module = nn.Linear(3, 3)
    module.handle = module.register_forward_hook(module_hook)
    clone = torchcow.clone(module)
    clone.handle.remove()
    assert not clone._forward_hooks and module._forward_hooks


def test_bound_methods_rebind_and_closures_do_not():
    module = rebound()
    module.closure = closure_over(module.weight)
    clone = torchcow.clone(module)
    assert clone.forward.__self__ is clone and clone.method.__self__ is clone
    assert clone.partial.func.__self__ is clone
    assert clone.closure is module.closure and clone.closure() is module.weight


def test_lstm_flat_weights_are_the_copys_parameters():
    clone = torchcow.clone(nn.LSTM(8, 16, 2))
    parameters = {id(p) for p in clone.parameters()}
    assert all(id(w) in parameters for w in clone._flat_weights)
    assert all(ref() is None or id(ref()) in parameters for ref in clone._flat_weight_refs)


def test_a_clone_made_inside_inference_mode_is_an_inference_tensor():
    for source in (matrix(), inference_tensor(), nn.Parameter(matrix())):
        assert torchcow.clone(source).is_inference() == copy.deepcopy(source).is_inference()
        with torch.inference_mode():
            assert torchcow.clone(source).is_inference() == copy.deepcopy(source).is_inference()


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_version_of_a_copied_inference_tensor(deterministic):
    with torch.inference_mode():
        source = matrix()
    torch.use_deterministic_algorithms(deterministic)
    try:
        assert torchcow.clone(source)._version == copy.deepcopy(source)._version
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_requires_grad_does_not_depend_on_the_context(context):
    source = [matrix().requires_grad_(), nn.Parameter(matrix()), matrix()]
    with context():
        want, got = copy.deepcopy(source), torchcow.clone(source)
    assert [t.requires_grad for t in want] == [t.requires_grad for t in got]
    assert all(t.is_leaf and t.grad_fn is None and t._base is None for t in got)


def test_the_result_is_no_view_and_can_be_trained():
    base = matrix()
    view = base[3:]
    clone = torchcow.clone(view)
    assert clone._base is None and clone.is_leaf
    clone.requires_grad_()
    (clone * 2).sum().backward()
    assert torch.equal(clone.grad, torch.full((SIDE - 3, SIDE), 2.0))


def test_expanded_parameter_becomes_dense_and_writable():
    clone = torchcow.clone(nn.Parameter(torch.rand(SIDE, 1).expand(SIDE, SIDE)))
    clone.data[0, 0] = 9
    assert clone.data[0, 1] != 9


@pytest.mark.parametrize("left", [0, 64])
def test_the_copy_of_a_tensor_whose_memory_was_freed_has_memory(left):
    source = matrix()
    source.untyped_storage().resize_(left)
    want, got = copy.deepcopy(source), torchcow.clone(source)
    assert got.untyped_storage().nbytes() == want.untyped_storage().nbytes() == SIDE * SIDE * 4
    got.fill_(1)
    assert source.untyped_storage().nbytes() == left
    assert torch.equal(torchcow.clone(got), got)


@pytest.mark.tiny
@pytest.mark.parametrize("size", [10, 1000])
def test_a_zero_tensor_has_no_memory_to_copy(size):
    source = torch._efficientzerotensor(size)
    for x in (source, source.untyped_storage(), [torch.rand(3), source]):
        with pytest.raises(RuntimeError) as want:
            copy.deepcopy(x)
        with pytest.raises(RuntimeError, match=re.escape(str(want.value))):
            torchcow.clone(x)
    assert_same(copy.deepcopy(nn.Parameter(source)), torchcow.clone(nn.Parameter(source)), "parameter")


def test_slice_parameter_is_compact_for_saving():
    parameter = nn.Parameter(torch.rand(1000, 100)[3:5])
    sizes = []
    for copied in (copy.deepcopy(parameter), torchcow.clone(parameter)):
        file = io.BytesIO()
        torch.save(copied, file)
        sizes.append(file.tell())
    assert abs(sizes[0] - sizes[1]) < 512, sizes
    clone = torchcow.clone(parameter)
    assert clone.untyped_storage().nbytes() == 800 and clone.storage_offset() == 0


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 15, 16])
def test_slice_parameter_computes_what_a_deep_copy_computes(offset):
    """A deep copy lies at an aligned address; kernels that look at the alignment round differently elsewhere."""
    flat = torch.randn(offset + SIDE * SIDE)
    parameter = nn.Parameter(flat[offset:].view(SIDE, SIDE))
    vector = torch.randn(SIDE)
    assert torch.equal(torchcow.clone(parameter) @ vector, copy.deepcopy(parameter) @ vector)


@pytest.mark.sharing
@pytest.mark.parametrize(("offset", "shared"), [(1, False), (3, False), (4, True), (400, True)])
def test_slice_parameter_is_shared_where_it_is_aligned(offset, shared):
    parameter = nn.Parameter(torch.randn(offset + SIDE * SIDE)[offset:].view(SIDE, SIDE))
    torchcow.events(clear=True)
    clone = torchcow.clone(parameter)
    assert torchcow.is_shared(clone) == shared
    assert eager_reasons() == ([] if shared else ["layout"])


def test_torch_function_sees_the_copy():
    TorchFunction.calls.clear()
    source = matrix().as_subclass(TorchFunction)
    want = got = None
    try:
        copy.deepcopy(source)
    except RuntimeError as error:
        want = str(error)[:40]
    assert torch.Tensor.__deepcopy__ in TorchFunction.calls
    TorchFunction.calls.clear()
    try:
        torchcow.clone(source)
    except RuntimeError as error:
        got = str(error)[:40]
    assert want == got
    assert torch.Tensor.__deepcopy__ in TorchFunction.calls


def instance_deepcopy(source):
    source.__deepcopy__ = lambda memo: "of its own"
    return source


@pytest.mark.parametrize("make", [lambda: nn.Parameter(matrix()), matrix], ids=["parameter", "tensor"])
def test_a_deepcopy_method_of_the_instance_wins(make):
    assert torchcow.clone(instance_deepcopy(make())) == "of its own" == copy.deepcopy(instance_deepcopy(make()))


def test_a_patched_parameter_class_wins(monkeypatch):
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: "patched")
    assert torchcow.clone([nn.Parameter(matrix())]) == ["patched"] == copy.deepcopy([nn.Parameter(matrix())])


class Lazy:
    """As proxies of other libraries do: they find out what they are when they are asked for their class."""

    def __deepcopy__(self, memo):
        return Lazy()

    @property
    def __class__(self):
        raise AssertionError("evaluated")


def test_lazy_objects_are_not_evaluated():
    for run in (copy.deepcopy, torchcow.clone):
        assert type(run([Lazy(), matrix()])[0]) is type(run(Lazy())) is Lazy


class Seen(TorchDispatchMode):
    """Collects the operators that run."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    """Collects the functions that are called, but the getters of attributes."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ != "__get__":
            self.operators.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Seen, SeenFunctions])
def test_a_mode_sees_what_a_deep_copy_runs(mode):
    seen = []
    for run in (copy.deepcopy, torchcow.clone):
        source = [nn.Parameter(matrix()), matrix(), nn.Linear(SIDE, SIDE)]
        with mode() as active:
            run(source)
        seen.append(active.operators)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("mode", [Seen, SeenFunctions])
def test_what_a_mode_keeps_from_being_shared_has_a_reason(mode):
    """Break: a parameter that goes deepcopy's way without an event (I10)."""
    source = nn.Parameter(matrix())
    torchcow.events(clear=True)
    with mode():
        torchcow.clone(source)
    assert eager_reasons() == ["kind"]


@pytest.mark.parametrize("allow", [False, True])
def test_under_a_fake_tensor_mode(allow):
    source, results = nn.Linear(SIDE, SIDE), []
    for run in (copy.deepcopy, torchcow.clone):
        with FakeTensorMode(allow_non_fake_inputs=allow):
            kind, result = attempt(run, source)
        results.append((kind, result if kind == "raised" else type(result.weight.data)))
    assert results[0] == results[1]


def test_inside_a_function_transform():
    model, kinds = nn.Linear(SIDE, SIDE), []
    for run in (copy.deepcopy, torchcow.clone):

        def loss(x, run=run):
            inner = run(model)
            kinds.append(torch._C._functorch.is_functorch_wrapped_tensor(inner.weight.data))
            return inner(x).sum()

        attempt(torch.func.grad(loss), matrix())
    assert kinds[0] == kinds[1]


@pytest.mark.sharing
def test_a_default_device_is_no_reason_to_copy():
    source = nn.Linear(SIDE, SIDE)
    with torch.device("cpu"):
        assert torchcow.is_shared(torchcow.clone(source).weight)


def test_weak_things():
    tensor = matrix()
    reference = weakref.ref(tensor)
    assert torchcow.clone(reference) is reference
    keys = weakref.WeakKeyDictionary({tensor: [tensor]})
    assert next(iter(torchcow.clone(keys).keys())) is tensor


def test_optimizer_step_hooks_are_dropped_as_in_a_deep_copy():
    model, optimizer = trained()
    optimizer.register_step_post_hook(module_hook)
    want, got = copy.deepcopy((model, optimizer))[1], torchcow.clone((model, optimizer))[1]
    assert len(want._optimizer_step_post_hooks) == len(got._optimizer_step_post_hooks)


def test_scheduler_and_optimizer_stay_together():
    _, optimizer, scheduler = torchcow.clone(scheduled())
    assert scheduler.optimizer is optimizer


def test_parametrized_clone_survives_what_is_done_to_the_source():
    source = parametrizations.weight_norm(nn.Linear(SIDE, SIDE))
    clone = torchcow.clone(source)
    x = torch.ones(2, SIDE)
    want = clone(x).detach()
    assert parametrize.is_parametrized(clone)
    assert torch.equal(source(x), want)


def test_strict_gives_the_same_graph():
    for name in ("ties", "buffers that are views", "with scheduler", "parameters that are slices"):
        want = freeze(copy.deepcopy(build(CASES[name])), layout=True)
        got = freeze(torchcow.clone(build(CASES[name]), strict=True), layout=True)
        assert not difference(want, got), name


def test_init_is_not_run():
    class Counting(nn.Module):
        runs = 0

        def __init__(self):
            super().__init__()
            Counting.runs += 1
            self.weight = nn.Parameter(matrix())

    source = Counting()
    torchcow.clone(source)
    assert Counting.runs == 1
