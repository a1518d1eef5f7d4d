# SPDX-License-Identifier: Apache-2.0
"""A fixed set of workloads, and everything that the engine records while they run.

A change of structure must leave the recording as it is. ``python -m support.replay`` (in ``tests``) prints it;
``python -m support.replay --record`` stores it in ``replay.json`` beside this file. ``test_replay.py`` compares.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import sys
from pathlib import Path

import torch
from torch import nn

import torchcow

RECORDING = Path(__file__).with_name("replay.json")


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64))


def step(model, optimizer):
    model(torch.ones(8, 64)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def adamw_of_a_clone_and_of_its_source():
    source = mlp()
    clone = torchcow.clone(source)
    for model in (clone, source):
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        step(model, optimizer)
        step(model, optimizer)
    return source, clone


def foreach_sgd_with_momentum():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
    step(model, optimizer)
    pair = torchcow.clone((model, optimizer))
    step(*pair)
    step(model, optimizer)
    return model, pair


def the_last_sharer_steals():
    source = mlp()
    clone = torchcow.clone(source)
    del source
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.mul_(2)
    return clone


def overwriting_skips_the_copy():
    source = mlp()
    clone = torchcow.clone(source)
    with torch.no_grad():
        clone[0].weight.zero_()
        clone[3].weight.copy_(torch.ones(64, 64))
        torch._foreach_zero_([clone[0].bias, clone[3].bias])
    return source, clone


def load_state_dict():
    source = mlp()
    clone, other = torchcow.clone(source), torchcow.clone(source)
    clone.load_state_dict(other.state_dict())
    return source, clone, other


def ties_views_and_buffers():
    base = torch.arange(4096.0)
    source = {"base": base, "half": base[:2048], "tied": [base, base], "transposed": base.view(64, 64).t()}
    clone = torchcow.clone(source)
    clone["half"].add_(1)
    source["transposed"].mul_(2)
    return source, clone


def raw_pointers():
    source = mlp()
    clone = torchcow.clone(source)
    clone[0].weight.data_ptr()
    source[3].weight.detach().numpy()
    return source, clone


def copied_eagerly():
    torch.manual_seed(0)
    array = torch.rand(64, 64)
    array.numpy()
    exported = torch.rand(64, 64)
    consumer = torch.from_dlpack(exported)
    foreign = torch.frombuffer(bytearray(16384), dtype=torch.float32)
    tiny = torch.rand(4)
    source = [array, exported, foreign, tiny, torch.rand(64, 64).to_sparse()]
    return source, torchcow.clone(source), torchcow.clone(torch.rand(64, 64)), consumer


def a_scope_of_reading():
    source = mlp()
    clone = torchcow.clone(source)
    with torchcow.reading(source):
        source[0].weight.data_ptr()
        with torch.no_grad():
            clone[3].weight.add_(1)
    return source, clone


def equal_again():
    source = mlp()
    clone = torchcow.clone(source)
    with torch.no_grad():
        clone[0].weight.add_(1)
        clone[0].weight.sub_(1)
        source[3].weight.mul_(1)
    torchcow.reshare(source, clone)
    return source, clone


def reserved_and_materialized():
    source = mlp()
    clone = torchcow.clone(source)
    reservation = torchcow.reserve(clone, names=["0", "1"])
    with torch.no_grad():
        clone[0].weight.add_(1)
    torchcow.materialize(clone, ["3"])
    return source, clone, reservation


def clones_of_a_prototype():
    prototype = torchcow.Prototype({"model": mlp(), "rate": 0.1})
    first, second = prototype.clone(), prototype.clone(**{"model.2": nn.GELU()})
    with torch.no_grad():
        first["model"][0].weight.add_(1)
    return prototype, first, second


def patched_deepcopy():
    source = mlp()
    with torchcow.patch():
        copies = [copy.deepcopy(source), copy.deepcopy(source.state_dict())]
    with torch.no_grad():
        source[0].weight.add_(1)
    return source, copies


def recurrent_and_convolutional():
    torch.manual_seed(0)
    source = nn.ModuleDict({"lstm": nn.LSTM(32, 32, 2), "conv": nn.Conv2d(16, 16, 3)})
    clone = torchcow.clone(source)
    with torch.no_grad():
        clone["lstm"](torch.ones(4, 2, 32))
        clone["conv"](torch.ones(1, 16, 8, 8))
        nn.init.trunc_normal_(clone["conv"].weight)
    return source, clone


def averaged_weights():
    model = mlp()
    average = torch.optim.swa_utils.AveragedModel(torchcow.clone(model), multi_avg_fn=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    for _ in range(2):
        step(model, optimizer)
        average.update_parameters(model)
    return model, average


def versions_in_a_registry():
    registry = torchcow.Registry()
    model = mlp()
    registry.add("m", model)
    with torch.no_grad():
        model[0].weight.add_(1)
    registry.add("m", model)
    return model, registry.get("m@1").clone(), registry.get("m@2").clone()


WORKLOADS = [value for value in list(globals().values()) if callable(value) and value.__module__ == __name__]
WORKLOADS = [work for work in WORKLOADS if work not in (mlp, step)]


def record(work):
    """What the engine recorded under ``work``, and its sums while the results are alive, as plain data."""
    torchcow.events(clear=True)
    torch.manual_seed(0)
    results = work()
    sums = vars(torchcow.ledger()).copy()
    for name in ("kept_bytes", "forgotten_events"):  # what came before says how much
        del sums[name]
    memory = torchcow.memory(results)
    report = {name: getattr(memory, name) for name in ("logical", "unique")}
    events = [[getattr(event, name) for name in FIELDS] for event in torchcow.events(clear=True)]
    del results
    # A batch is materialized in the order of addresses, which differs from run to run.
    batches = [sorted(batch, key=str) for _, batch in itertools.groupby(events, key=lambda event: event[:3:2])]
    return {"events": list(itertools.chain(*batches)), "ledger": sums, "memory": report}


FIELDS = ("kind", "way", "operator", "bytes", "reason", "device", "name")


def main():
    """Print the recording, or store it."""
    torch.set_num_threads(1)
    recording = {work.__name__: record(work) for work in WORKLOADS}
    text = json.dumps(recording, indent=1)
    # One line per event, so that a difference is read as one.
    text = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda match: f"[{re.sub(chr(92) + 's+', ' ', match[1])}]", text)
    if "--record" in sys.argv:
        RECORDING.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
