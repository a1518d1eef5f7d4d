# SPDX-License-Identifier: Apache-2.0
"""Why a tensor is not shared: the last event of its storage, as long as that lives.

Catches: a cause that is lost, that belongs to another storage which had the address before, or that grows without end.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import torchcow
from support.oracle import SIDE, run_script

pytestmark = pytest.mark.sharing


def causes(obj):
    return {name: (t.cause, t.operator, t.reason) for name, t in torchcow.explain(obj).unshared.items()}


def test_the_writer_is_named():
    model = nn.Linear(SIDE, SIDE)
    variant, other = torchcow.clone(model), torchcow.clone(model)
    with torch.no_grad():
        variant.weight.mul_(2)
        model.bias.zero_()
    assert causes(variant) == {"weight": ("written", "aten::mul_.Tensor", "")}
    assert causes(model) == {"bias": ("written", "aten::zero_", "")}
    found = torchcow.explain(variant)
    assert found.unshared["weight"].why == "written by aten::mul_.Tensor: its bytes were copied first"
    assert (found.shared, found.shared_bytes) == (1, other.bias.nbytes)
    assert "mul_" in str(found) and "1 other tensors are shared" in str(found) and "0 are too small" in str(found)
    assert found.to_dict()["unshared"]["weight"]["cause"] == "written"


@pytest.mark.tiny
def test_copies_at_clone_time_are_explained():
    source = {
        "numpy": torch.from_numpy(np.ones(1000, np.float32)),
        "tiny": torch.ones(2),
        "quantized": torch.quantize_per_tensor(torch.ones(1000), 0.1, 0, torch.qint8),
        "meta": torch.ones(1000, device="meta"),
    }
    assert {name: why[::2] for name, why in causes(torchcow.clone(source)).items()} == {
        "numpy": ("copied", "foreign"),
        "tiny": ("copied", "tiny"),
        "quantized": ("copied", "kind"),
        "meta": ("never", ""),
    }
    text = str(torchcow.explain(torchcow.clone(source)))
    assert "foreign" not in text and "tiny" not in text and "1 are too small to share" in text


def test_what_was_left_alone():
    source = torch.ones(1000)
    assert causes(source) == {"": ("never", "", "")}
    clone = torchcow.clone(source)
    assert causes(clone) == {}
    del source
    assert causes(clone) == {"": ("alone", "", "")}
    clone.add_(1)
    assert causes(clone) == {"": ("written", "aten::add_.Tensor", "")}
    assert torchcow.explain(clone).unshared[""].why.startswith("written by aten::add_.Tensor when no other tensor")


def test_the_last_cause_counts_and_sharing_again_ends_it():
    source = torch.ones(1000)
    clone = torchcow.clone(source)
    clone.add_(1)
    third = torchcow.clone(clone)
    assert causes(clone) == {}
    clone.mul_(2)
    assert causes(clone) == {"": ("written", "aten::mul_.Tensor", "")}
    assert causes(third) == {"": ("alone", "", "")}


def test_an_address_that_comes_again_has_no_past():
    source = torch.ones(1000)
    for _ in range(200):
        clone = torchcow.clone(source)
        clone.add_(1)
        del clone
        fresh = torch.empty(1000)
        assert causes(fresh) == {"": ("never", "", "")}
        del fresh


def test_events_have_names_while_the_tensor_lives():
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE))
    variant = torchcow.clone(model)
    with torch.no_grad():
        variant[0].weight.add_(1)
        variant[1].bias.add_(1)
    assert [event.name for event in torchcow.events()] == ["Sequential.0.weight", "Sequential.1.bias"]
    del variant[1]
    assert [event.name for event in torchcow.events()] == ["Sequential.0.weight", None]


def test_an_event_of_the_past_is_not_given_the_name_of_who_came_to_its_address():
    run_script("""
import torch, torchcow
source = torch.ones(64, 64)
for _ in range(3090):  # the causes of the dead are dropped at each 256th: their addresses are free again
    torchcow.clone(source).add_(1)
models = [torch.nn.Linear(64, 64, bias=False) for _ in range(20)]
variants = [torchcow.clone(model) for model in models]
with torch.no_grad():
    for variant in variants:
        variant.weight.add_(1)
names = [event.name for event in torchcow.events()]
assert names == [None] * 3090 + ["Linear.weight"] * 20, sum(map(bool, names))
""")


def test_causes_do_not_pile_up():
    import gc
    import resource

    source = torch.ones(10)

    def work(count):
        for _ in range(count):
            torchcow.clone(source).add_(1)
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = work(80_000)  # the ring of events is full now
    assert work(150_000) - before < 20_000  # kB; 150,000 storages that are remembered take 60 MB
