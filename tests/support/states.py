# SPDX-License-Identifier: Apache-2.0
"""Objects that files have to bring back, each in two makes: as a user would save it, and as a structure."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json

import numpy as np
import torch
from torch import nn

from torchcow.persist.state import capture, restore
from torchcow.persist.state.plain import encode

DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)


def through_json(obj, structure):
    """What a file makes of an object: nodes through JSON, tensors copied."""
    state = capture(obj)
    nodes = json.loads(json.dumps(state.nodes, allow_nan=False))
    return restore(structure, nodes, lambda name: state.tensors[name].detach().clone())


def random_bits(dtype, *shape):
    """A tensor of any dtype with random bytes (0 and 1 for bool)."""
    dtype = getattr(torch, dtype)
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return raw.view(dtype).view(shape)


class Net(nn.Module):
    def __init__(self, saved=True):
        super().__init__()
        torch.manual_seed(3 if saved else 4)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.25 if saved else 0.5))
        self.head = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.head.weight
        self.again = self.head
        self.register_buffer("steps", torch.tensor(7 if saved else 0))
        self.register_buffer("mask", torch.rand(2, 3) > 0.5, persistent=False)
        self.register_buffer("nothing", None)
        self.scratch = [torch.rand(3), {"a": torch.rand(0, 2)}]
        self.activation = torch.relu
        self.dtype = torch.float32
        self.config = {"eps": 1e-5 if saved else 1.0, 3: (1, [2.5, float("inf")])}
        if saved:
            self.eval()
            self.body[0].bias.requires_grad_(False)
            self.body[0].to(memory_format=torch.channels_last)
            self.note = "only in the saved one"


class Recurrent(nn.Module):
    def __init__(self, saved=True):
        super().__init__()
        torch.manual_seed(saved)
        self.rnn = nn.LSTM(3, 2, 2, bidirectional=True)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1 * saved)
        self.weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))


def training(name):
    def make(saved):
        torch.manual_seed(saved)
        model = nn.Linear(3, 4)
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1 if saved else 0.2, **options)
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        ]
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, schedules, [2])
        result = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "epoch": 4 * saved}

        def closure():
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).pow(2).sum()
            loss.backward()
            return loss

        for _ in range(3 * saved):
            optimizer.step(closure)
            scheduler.step()
        optimizer.zero_grad()
        return result

    return make


@dataclasses.dataclass(frozen=True)
class Frozen:
    weight: torch.Tensor
    names: tuple
    inner: object = None


class Slots:
    __slots__ = ("__private", "values")

    def __init__(self, saved):
        self.values = torch.full((3,), float(saved))
        self.__private = saved


Pair = collections.namedtuple("Pair", "left right")


class Metric:
    """Answers for itself, with state that is made by use."""

    def __init__(self, saved):
        self.counts = {"a": torch.ones(3)} if saved else {}

    def state_dict(self):
        return {"counts": dict(self.counts), "kind": torch.float32}

    def load_state_dict(self, state):
        self.counts = state["counts"]


def plain(saved):
    torch.manual_seed(saved)
    shared = torch.rand(2)
    both = (torch.rand(1), saved)
    return {
        "frozen": Frozen(torch.rand(2, 2).t(), ("a", saved), Slots(saved)),
        "slots": Slots(saved),
        "pair": Pair(torch.rand(1), saved),
        "queue": collections.deque([torch.rand(2), saved], maxlen=4),
        "ordered": collections.OrderedDict(b=torch.rand(1), a=saved),
        "ties": [shared, shared],
        "one tuple": both,
        "the same": [both],
        (1, None): torch.rand(2, requires_grad=bool(saved)),
        "arrays": [np.arange(6.0).reshape(2, 3).T * saved, np.array(saved), np.zeros((0, 2), "i4")],
        "generator": torch.Generator().manual_seed(int(saved)),
        "values": [2**70 * saved, -0.0, float("nan"), b"\0", {1, 2}, frozenset({3}), 1j, range(3), "\ud800"],
        "scalar": np.float32(0.1),
        "device": torch.device("cpu"),
        "function": np.tanh,
    }


def dtypes(saved):
    torch.manual_seed(saved)
    return {name: [random_bits(name, 3, 5), random_bits(name, 0, 2), random_bits(name)] for name in DTYPES}


OPTIMIZERS = (
    *("SGD", "Adam", "AdamW", "LBFGS", "RMSprop", "Adagrad", "NAdam"),
    *("RAdam", "Rprop", "ASGD", "Adafactor", "Adadelta", "Adamax"),
)
CASES = {
    "net": Net,
    "recurrent": Recurrent,
    "plain": plain,
    "dtypes": dtypes,
    "metric": lambda saved: {"metric": Metric(saved)},
    **{name: training(name) for name in OPTIMIZERS},
}


def seen(obj):
    """What has to be the same afterwards: for optimizers and schedulers, what their state_dict says."""
    if isinstance(obj, dict) and "optimizer" in obj:
        optimizer = copy.deepcopy(obj["optimizer"].state_dict())
        return obj | {"optimizer": optimizer, "scheduler": json.dumps(encode(obj["scheduler"].state_dict()))}
    return obj
