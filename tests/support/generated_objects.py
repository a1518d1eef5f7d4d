# SPDX-License-Identifier: Apache-2.0
"""Object graphs from lists of numbers, and their canonical form: for comparing deep copies.

A recipe is a list of ``(kind, references)``. Each entry makes one node; references are taken modulo the nodes there
are, so that every list of numbers is a graph, and hypothesis can shrink it. Containers are filled after all nodes
exist, with nodes made later too, so there are cycles.
"""

from __future__ import annotations

import collections
import copy
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import types
import weakref

import torch
from torch import nn

from support.oracle import storage_bits, tensor_bits

LOG: list[str] = []  # what the protocol was asked, in order


def log(obj, what):
    LOG.append(f"{type(obj).__name__}.{what}")


class Color(enum.Enum):
    RED = 1


class Plain:
    pass


class Slots:
    __slots__ = ("a", "b")


class SlotsAndDict(Slots):
    pass


@dataclasses.dataclass
class Data:
    a: object = None
    b: object = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: object = 1


class WithState:
    def __getstate__(self):
        log(self, "getstate")
        return {"inner": dict(self.__dict__)}

    def __setstate__(self, state):
        log(self, f"setstate {sorted(state)}")
        self.__dict__.update(state["inner"])


class WithSetstate:
    def __setstate__(self, state):
        log(self, f"setstate {list(state)}")
        self.__dict__.update(state)


class WithDeepcopy:
    def __deepcopy__(self, memo):
        log(self, "deepcopy")
        new = type(self)()
        memo[id(self)] = new
        for name, value in self.__dict__.items():
            new.__dict__[name] = copy.deepcopy(value, memo)
        return new


class Proxy:
    """Copies what it points to, as a weak proxy does."""

    def __deepcopy__(self, memo):
        log(self, "deepcopy")
        return copy.deepcopy(self.__dict__.get("a"), memo)


class Itself:
    def __deepcopy__(self, memo):
        log(self, "deepcopy")
        return self


class WithReduce:
    def __reduce__(self):
        log(self, "reduce")
        return type(self), (), dict(self.__dict__)


class WithReduceEx:
    def __reduce_ex__(self, protocol):
        log(self, f"reduce_ex {protocol}")
        return make_reduced, ([1, self.__dict__.get("a")],), None, None, iter({"k": self.__dict__.get("b")}.items())

    def __setitem__(self, key, value):
        self.__dict__[key] = value


def make_reduced(values):
    new = WithReduceEx()
    new.made_from = values
    return new


class Global:
    """Reduces to a name: its own copy."""

    def __reduce__(self):
        log(self, "reduce")
        return "Global"


class FromTable:
    pass


def reduce_from_table(obj):
    log(obj, "table")
    return FromTable, (), obj.__dict__


copyreg.pickle(FromTable, reduce_from_table)


class Getattr:
    def __getattr__(self, name):
        log(self, name)
        raise AttributeError(name)


class Getattribute:
    def __getattribute__(self, name):
        if name != "__dict__":
            log(self, name)
        return super().__getattribute__(name)


class NewArguments:
    def __new__(cls, a=None):
        log(cls, "new")
        return super().__new__(cls)

    def __getnewargs__(self):
        log(self, "getnewargs")
        return (self.__dict__.get("a"),)


class NewKeywords:
    def __new__(cls, *, a=None):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        log(self, "getnewargs_ex")
        return (), {"a": self.__dict__.get("a")}


class Setattr:
    def __setattr__(self, name, value):
        log(self, f"setattr {name}")
        super().__setattr__(name, value)


class ByValue:
    """Equal and hashed by value: two sources may be one key in the copy."""

    def __init__(self):
        self.value = 1

    def __hash__(self):
        log(self, "hash")
        return self.__dict__.get("value", 0)

    def __eq__(self, other):
        return isinstance(other, ByValue)


class Raising:
    def __reduce_ex__(self, protocol):
        raise ZeroDivisionError("not me")


class RaisingHash(Plain):
    hashed = 0

    def __hash__(self):
        self.__dict__["hashed"] = self.__dict__.get("hashed", 0) + 1
        if self.__dict__.get("copied"):
            raise ArithmeticError("no hash")
        return 7

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.__dict__["copied"] = True


class Meta(type):
    def __hash__(cls):
        return hash(cls.__name__)

    def __eq__(cls, other):
        return cls is other


class WithMeta(metaclass=Meta):
    pass


class BadReduce:
    def __init__(self):
        self.answer = 3

    def __reduce_ex__(self, protocol):
        return self.__dict__.get("answer")


class MyList(list):
    pass


class MyDict(dict):
    pass


class MyTuple(tuple):
    pass


class MyStr(str):
    pass


class MyError(Exception):
    pass


Point = collections.namedtuple("Point", "x y")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 2.0
        self.note = ["a", {"b": 1}]


class StatefulNet(Net):
    def __setstate__(self, state):
        log(self, "setstate")
        super().__setstate__(state)


class MyParameter(nn.Parameter):
    pass


class OwnParameter(nn.Parameter):
    def __deepcopy__(self, memo):
        log(self, "deepcopy")
        return OwnParameter(self.data.clone() + 1, self.requires_grad)


class MyTensor(torch.Tensor):
    __slots__ = ("note",)


def values(n=6):
    return torch.arange(float(n))


def buffer_with_grad():
    tensor = values().requires_grad_()
    tensor.grad = values() * 2
    return tensor


def hooked():
    module = nn.Linear(2, 2)
    module.handle = module.register_forward_hook(print)
    return module


def with_attribute(obj, name, value):
    obj.__dict__[name] = value
    return obj


def tied():
    module = nn.Linear(3, 3)
    module.again = module.weight
    module.register_buffer("view", module.weight.detach()[1:])
    module.register_buffer("count", torch.zeros((), dtype=torch.long), persistent=False)
    return module


def function():
    pass


# Nodes that are whole when they are made, from nodes that exist already (`old`, the referred ones).
MADE = {
    "int": lambda old: 5,
    "large int": lambda old: 10**30 + len(old),
    "float": lambda old: 1.5 + len(old),
    "str": lambda old: "text" * (1 + len(old)),
    "bytes": lambda old: b"bytes",
    "None": lambda old: None,
    "ellipsis": lambda old: ...,
    "complex": lambda old: 1j,
    "range": lambda old: range(3),
    "slice": lambda old: slice(1, *old[:2]),
    "function": lambda old: function,
    "builtin": lambda old: len,
    "class": lambda old: Plain,
    "class with metaclass": lambda old: WithMeta,
    "enum": lambda old: Color.RED,
    "property": lambda old: property(function),
    "code": lambda old: function.__code__,
    "str subclass": lambda old: MyStr("mine"),
    "bytearray": lambda old: bytearray(b"abc"),
    "dtype": lambda old: torch.float16,
    "device": lambda old: torch.device("cpu"),
    "size": lambda old: torch.Size([1, 2]),
    "decimal": lambda old: decimal.Decimal("1.5"),
    "fraction": lambda old: fractions.Fraction(1, 3),
    "date": lambda old: datetime.date(2020, 1, 2),
    "tuple": lambda old: tuple(old),
    "tuple subclass": lambda old: MyTuple(old),
    "namedtuple": lambda old: Point(*[*old, 1, 2][:2]),
    "frozenset": lambda old: frozenset(x for x in old if hashable(x)),
    "partial": lambda old: functools.partial(function, *old, key=1),
    "method": lambda old: next((x.register_buffer for x in old if isinstance(x, nn.Module)), [].append),
    "weakref": lambda old: next((weakref.ref(x) for x in old if isinstance(x, Plain)), None),
    "frozen dataclass": lambda old: Frozen(old[0] if old else None),
    "exception": lambda old: MyError(*old),
    "own dict": lambda old: next((vars(x) for x in old if type(x) in (Plain, Data, Net)), {}),
    "empty OrderedDict": lambda old: collections.OrderedDict(),
    "empty set": lambda old: set(),
    "Global": lambda old: Global(),
    "Itself": lambda old: Itself(),
    "Raising": lambda old: Raising(),
    "RaisingHash": lambda old: RaisingHash(),
    "BadReduce": lambda old: BadReduce(),
    "generator": lambda old: (x for x in ()),
    "Linear": lambda old: nn.Linear(3, 2),
    "Sequential": lambda old: nn.Sequential(*(x for x in old if isinstance(x, nn.Module)), nn.ReLU()),
    "ModuleList": lambda old: nn.ModuleList(x for x in old if isinstance(x, nn.Module)),
    "BatchNorm": lambda old: nn.BatchNorm1d(4),
    "LSTM": lambda old: nn.LSTM(2, 3),
    "hooked": lambda old: hooked(),
    "tied": lambda old: tied(),
    "module that was not initialised": lambda old: Net.__new__(Net),
    "incomplete module": lambda old: (lambda m: (m.__dict__.pop("_backward_pre_hooks"), m)[1])(Net()),
    "parameter": lambda old: nn.Parameter(values()),
    "parameter without grad": lambda old: nn.Parameter(values(), requires_grad=False),
    "parameter with grad": lambda old: (lambda p: (setattr(p, "grad", values()), p)[1])(nn.Parameter(values())),
    "parameter view": lambda old: nn.Parameter(values(8)[2:6]),
    "parameter transposed": lambda old: nn.Parameter(values().view(2, 3).t()),
    "parameter expanded": lambda old: nn.Parameter(values(1).expand(4)),
    "integer parameter": lambda old: nn.Parameter(torch.ones(3, dtype=torch.int), requires_grad=False),
    "parameter subclass": lambda old: MyParameter(values()),
    "own parameter": lambda old: OwnParameter(values()),
    "uninitialized parameter": lambda old: nn.UninitializedParameter(),
    "tensor": lambda old: values(),
    "empty tensor": lambda old: torch.zeros(0, 3),
    "view": lambda old: next((x.detach()[1:] for x in old if has_rows(x)), values()),
    "tensor with grad": lambda old: buffer_with_grad(),
    "tensor with attributes": lambda old: with_attribute(values(), "note", old),
    "nn.Buffer": lambda old: nn.Buffer(values()),
    "non-leaf": lambda old: values().requires_grad_() * 2,
    "sparse": lambda old: values().to_sparse(),
    "meta": lambda old: torch.zeros(3, device="meta"),
    "conj": lambda old: torch.ones(3, dtype=torch.complex64).conj(),
    "bool tensor": lambda old: torch.ones(3, dtype=torch.bool),
    "quantized": lambda old: torch.quantize_per_tensor(values(), 0.1, 0, torch.quint8),
    "tensor subclass": lambda old: values().as_subclass(MyTensor),
    "storage": lambda old: next((x.untyped_storage() for x in old if type(x) is torch.Tensor and is_dense(x)), None),
    "typed storage": lambda old: torch.storage.TypedStorage(wrap_storage=values().untyped_storage(), dtype=torch.float),
    "generator of torch": lambda old: torch.Generator().manual_seed(3),
    "own __deepcopy__ in the instance": lambda old: with_attribute(Plain(), "__deepcopy__", lambda memo: "instance"),
    "own __reduce_ex__ in the instance": lambda old: with_attribute(
        Plain(), "__reduce_ex__", lambda protocol: (list, ([protocol],))
    ),
    "own __getstate__ in the instance": lambda old: with_attribute(Plain(), "__getstate__", lambda: {"state": 1}),
    "own __setstate__ in the instance": lambda old: with_attribute(Plain(), "__setstate__", function),
    "own __deepcopy__ in a module": lambda old: with_attribute(Net(), "__deepcopy__", lambda memo: "module"),
    "submodule __deepcopy__": lambda old: (lambda m: (m.add_module("__deepcopy__", nn.ReLU()), m)[1])(Net()),
}

# Nodes that are filled afterwards with nodes of any age.
FILLED = {
    "list": (list, "items"),
    "list subclass": (MyList, "items"),
    "deque": (collections.deque, "items"),
    "set": (set, "members"),
    "dict": (dict, "pairs"),
    "dict subclass": (MyDict, "pairs"),
    "OrderedDict": (collections.OrderedDict, "pairs"),
    "OrderedDict with an attribute": (lambda: with_attribute(collections.OrderedDict(b=1), "a", [1]), "pairs"),
    "defaultdict": (lambda: collections.defaultdict(list), "pairs"),
    "UserDict": (collections.UserDict, "pairs"),
    "Slots": (Slots, "attributes"),
    "SlotsAndDict": (SlotsAndDict, "attributes"),
    "ByValue": (ByValue, "attributes"),
    "namespace": (types.SimpleNamespace, "attributes"),
    **{
        cls.__name__: (cls, "attributes")
        for cls in (
            *(Plain, Data, WithState, WithSetstate, WithDeepcopy, Proxy, WithReduce, WithReduceEx, FromTable, Getattr),
            *(Getattribute, NewArguments, NewKeywords, Setattr, WithMeta, Net, StatefulNet, MyError),
        )
    },
}
KINDS = [*MADE, *FILLED]
FATAL = {"Raising", "BadReduce", "generator", "RaisingHash", "non-leaf"}  # most graphs with one of these just raise


def has_rows(obj):
    return type(obj) is torch.Tensor and obj.numel() > 2 and is_dense(obj)


def is_dense(tensor):
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def hashable(obj):
    try:
        hash(obj)
    except Exception:
        return False
    return True


def graph(recipe):
    """The list of all nodes of a recipe."""
    nodes = []
    for kind, references in recipe:
        name = KINDS[kind % len(KINDS)]
        if name in MADE:
            nodes.append(MADE[name]([nodes[i % len(nodes)] for i in references] if nodes else []))
        else:
            nodes.append(FILLED[name][0]())
    for node, (kind, references) in zip(nodes, recipe, strict=True):
        name = KINDS[kind % len(KINDS)]
        if name in FILLED:
            fill(node, FILLED[name][1], [nodes[i % len(nodes)] for i in references])
    LOG.clear()
    return nodes


def fill(node, how, members):
    if how == "items":
        node.extend(members)
    elif how == "members":
        node.update(x for x in members if hashable(x))
    elif how == "pairs":
        for index, value in enumerate(members):
            key = members[index - 1]
            node[key if index % 2 and hashable(key) else f"key{index}"] = value
    else:
        for name, value in zip(("a", "b"), members, strict=False):
            setattr(node, name, value)


class Canon:
    """A graph as plain data: nodes by number in order of discovery, source objects by their own number."""

    def __init__(self, sources=()):
        self.sources = {id(obj): index for index, obj in enumerate(sources)}
        self.numbers, self.alive, self.nodes = {}, [], []
        self.storages, self.sets = {}, []

    def of(self, obj):
        if id(obj) in self.sources:
            return ("source", self.sources[id(obj)])
        if obj is None or type(obj) in (bool, int, float, complex, str, bytes, type(...)):
            return (type(obj).__name__, repr(obj))
        if isinstance(obj, (type, types.FunctionType, types.BuiltinFunctionType, types.CodeType, torch.dtype)):
            return ("object", id(obj) if not isinstance(obj, types.BuiltinFunctionType) else repr(obj)[:20])
        if id(obj) in self.numbers:
            return ("node", self.numbers[id(obj)])
        number = self.numbers[id(obj)] = len(self.nodes)
        self.alive.append(obj)
        self.nodes.append(None)
        self.nodes[number] = (type(obj).__qualname__, self.content(obj), self.attributes(obj))
        return ("node", number)

    def content(self, obj):
        of = self.of
        if isinstance(obj, torch.Tensor):
            return self.tensor(obj)
        if isinstance(obj, torch.UntypedStorage):
            return storage_bits(obj), self.storages.setdefault(obj._cdata, len(self.storages))
        if isinstance(obj, torch.Generator):
            return tensor_bits(obj.get_state())
        if isinstance(obj, dict):
            return [(of(key), of(value)) for key, value in dict.items(obj)], of(getattr(obj, "default_factory", None))
        if isinstance(obj, (list, tuple, collections.deque)):
            return [of(x) for x in obj], getattr(obj, "maxlen", None)
        if isinstance(obj, (set, frozenset)):
            self.sets.append((len(self.nodes) - 1, obj))
            return len(obj), [repr(x) for x in obj if type(x) in (int, str)]  # in their order
        if isinstance(obj, BaseException):
            return [of(x) for x in obj.args]
        if isinstance(obj, functools.partial):
            return of(obj.func), of(obj.args), of(obj.keywords)
        if isinstance(obj, types.MethodType):
            return of(obj.__func__), of(obj.__self__)
        if isinstance(obj, weakref.ref):
            return of(obj())
        if isinstance(obj, slice):
            return of(obj.start), of(obj.stop), of(obj.step)
        if isinstance(obj, (bytearray, str, torch.device, decimal.Decimal, fractions.Fraction, datetime.date)):
            return str(obj)
        return None

    def tensor(self, obj):
        described = [obj.requires_grad, obj.is_leaf]
        if nn.parameter.is_lazy(obj):
            return described
        described += [obj._version, obj.is_inference(), tensor_bits(obj)]
        if is_dense(obj):
            key = obj.untyped_storage()
            self.alive.append(key)
            described += [self.storages.setdefault(key._cdata, len(self.storages)), obj.storage_offset()]
        if obj.is_leaf and obj.grad is not None:
            described.append(self.of(obj.grad))
        return described

    def attributes(self, obj):
        found = []
        if not isinstance(obj, type):
            try:
                found = list(object.__getattribute__(obj, "__dict__").items())
            except AttributeError:
                found = []
        # The keys of hooks come from a counter of torch.
        found = [(self.of(name), self.of(value)) for name, value in found]
        for name in copyreg._slotnames(type(obj)):
            if name not in ("__dict__", "__weakref__"):
                missing = object()
                value = getattr(obj, name, missing)
                found.append((name, None if value is missing else self.of(value)))
        return found

    def form(self, obj):
        root = self.of(obj)
        # Sets have no order: their members are known by the numbers that they have got elsewhere.
        members = [(number, sorted(map(self.member, one))) for number, one in self.sets]
        return root, self.nodes, members

    def member(self, obj):
        known = id(obj) in self.sources or id(obj) in self.numbers
        return repr(self.of(obj)) if known or type(obj) in (int, str) else type(obj).__qualname__


def reachable(nodes):
    """All objects that belong to a graph and that a copy must not contain unless deepcopy's does."""
    canon = Canon()
    canon.of(nodes)
    return canon.alive
