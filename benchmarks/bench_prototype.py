# SPDX-License-Identifier: Apache-2.0
"""What does ``Prototype.clone()`` cost over ``torchcow.clone()``, and what do changes and components add?

Prediction: a clone of a prototype without components is one Python call and a few attributes more: 0.1 us, which shows
only for a single layer. A component that is shared is one call more. A change is looked up and checked in the
snapshot and looked up again in the clone: some 10 us.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import models
import torchcow

TURN = 0.02  # seconds


def with_optimizer(tiny):
    model, _ = models.perceptron(tiny)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, model[0].in_features)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer}


OBJECTS = {
    "number": lambda tiny: 1,
    "one_layer": lambda tiny: nn.Linear(8, 8),
    "perceptron_of_3_layers": lambda tiny: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)),
    "perceptron_with_optimizer": with_optimizer,
    "gpt2": lambda tiny: models.gpt2(tiny)[0],
}


@pytest.mark.parametrize("name", OBJECTS)
def test_over_clone(name, tiny, compare):
    obj = OBJECTS[name](tiny)
    prototype = torchcow.Prototype(obj)
    snapshot = torchcow.clone(obj)
    compare(
        seconds=4.0,
        turn=TURN,
        labels={"object": name.replace("_", " ")},
        clone=(lambda: snapshot, torchcow.clone),
        prototype=(lambda: prototype, lambda one: one.clone()),
    )


def test_changes_components_and_shallow_clones(compare):
    model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.1), nn.Linear(32, 1))
    model.lock = None
    plain = torchcow.Prototype(model)
    model.lock = threading.Lock()
    shared = torchcow.Prototype(model, share={"lock"})
    compare(
        seconds=4.0,
        turn=TURN,
        plain=(lambda: plain, lambda one: one.clone()),
        shared=(lambda: shared, lambda one: one.clone()),
        changed=(lambda: plain, lambda one: one.clone(**{"1.p": 0.3})),
        shallow=(lambda: plain, lambda one: one.clone(deep=False)),
    )
