# SPDX-License-Identifier: Apache-2.0
"""The self test of ``doctor``: clones, writes, and checks that all other tensors keep their values."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import torchcow
from torchcow_cli.checks import Finding

REMEDY = "do not use torchcow on this machine; build it again against this torch, and report a bug"


def self_test() -> Iterator[Finding]:
    """Once per kind of device."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        topic = f"self test, {device}"
        try:
            problems = list(_problems(torch.device(device)))
        except Exception as error:  # the report continues after any error
            problems = [f"{type(error).__name__}: {' '.join(str(error).split())}"]
        if problems:
            yield Finding(topic, "broken", "failed", "; ".join(problems), REMEDY)
        else:
            yield Finding(topic, "ok", "clone, first write, isolation and checksums are correct")


def _problems(device: torch.device) -> Iterator[str]:
    from torchcow import testing

    model: Any = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).to(device)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    clone, witness = torchcow.clone(model), torchcow.clone(model)
    if not torchcow.is_shared(clone[0].weight):
        yield "a clone does not share memory"
    with torch.no_grad():
        clone[0].weight.zero_()  # through the dispatcher
        model[2].weight.add_(1)  # a write to the source
    if device.type == "cpu":
        ctypes.memset(witness[0].weight.data_ptr(), 0, witness[0].weight.nbytes)  # through a pointer
        if torchcow.is_shared(witness[0].weight) or witness[0].weight.any():
            yield "a write through a pointer was not detected"
    if torchcow.is_shared(clone[0].weight) or clone[0].weight.any():
        yield "a tensor that was written still shares memory"
    if not torch.equal(model[0].weight, before[0]):
        yield "a write to a clone changed its source"
    if not torch.equal(clone[2].weight, before[2]) or not torch.equal(witness[2].weight, before[2]):
        yield "a write to the source changed its clones"
    memory = torchcow.memory(model, clone, witness)
    if not memory.unique < memory.logical:
        yield "clones save no memory"
    try:
        testing.verify()
    except testing.IsolationError as error:
        yield str(error)
