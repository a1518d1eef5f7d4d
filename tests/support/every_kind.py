# SPDX-License-Identifier: Apache-2.0
"""One object with every kind of node that a saved state can have. No value is random: files that old versions wrote are
compared with it."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import torch
from torch import nn


@dataclasses.dataclass
class Settings:
    threshold: torch.Tensor
    label: str


class Counter:
    """Has ``state_dict``, so it saves and loads its own state."""

    def __init__(self, counts):
        self.counts = counts

    def state_dict(self):
        return {
            "counts": dict(self.counts),
            "steps": [torch.tensor(3), 4],
            "history": collections.OrderedDict(loss=np.arange(2.0)),
            "dtype": torch.float32,
        }

    def load_state_dict(self, state):
        self.counts = state["counts"]

    def count(self):
        return len(self.counts)


def filled(start, *shape):
    count = int(np.prod(shape))
    return torch.arange(start, start + count, dtype=torch.float32).view(shape)


class Net(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2), nn.Dropout(0.125 * number))
        self.head = nn.Linear(2, 2, bias=False)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.head.weight
        self.register_buffer("mask", torch.tensor([True, False]), persistent=False)
        self.register_buffer("nothing", None)
        self.activation = torch.relu
        self.scale = {"eps": 1e-5 * number, 3: (1, [2.5, float("inf")])}
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.copy_(filled(100 * index + (number if index == 0 else 0), *parameter.shape))
        if number > 1:
            self.eval()
            self.body[0].bias.requires_grad_(False)
            self.body[0].to(memory_format=torch.channels_last)


def every_kind(number):
    """The object whose values depend on ``number``; objects of all numbers have the same structure."""
    net = Net(number)
    counter = Counter({"a": filled(number, 2)})
    shared = filled(7, 3)
    return {
        "net": net,
        "counter": counter,
        "method": counter.count,
        "settings": Settings(filled(number, 2, 2).t(), f"number {number}"),
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.5 / number, momentum=0.5),
        "generator": torch.Generator().manual_seed(number),
        "array": np.arange(6.0).reshape(2, 3) * number,
        "queue": collections.deque([filled(number, 2), number]),
        "ties": [shared, shared],
        "device": torch.device("cpu"),
        "epoch": number,
        "values": [2**70, -0.0, float("nan"), b"\0", {1, 2}, 1j, range(3), "\ud800"],
    }


def observable(obj):
    """What can be compared: the optimizer's own state instead of the optimizer."""
    return obj | {"optimizer": obj["optimizer"].state_dict(), "method": obj["method"].__qualname__}
