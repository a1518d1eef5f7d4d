# SPDX-License-Identifier: Apache-2.0
"""What objects take: the figures of parts add up to those of the whole, whatever was cloned, written or tied.

Catches: a storage counted twice or not at all, a tie counted in one part only or fully in both, arrays left out, a
table or picture that fails or says something else than the numbers.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchcow

pytestmark = pytest.mark.sharing
FIGURES = ("logical", "unique", "private", "shared", "fair_share")


def family(count=3):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16, bias=False))
    return [model, *(torchcow.clone(model) for _ in range(count))]


def bytes_of(*models):
    return sum(p.nbytes for model in models for p in model.parameters())


def check_parts(memory):
    for parts in (memory.by_object(), memory.by_device(), memory.by_module(), memory.by_module(2)):
        assert sum(part.fair_share for part in parts.values()) == pytest.approx(memory.fair_share)
        assert max((part.unique for part in parts.values()), default=0) <= memory.unique
        assert all(part.private + part.shared == part.unique <= part.logical for part in parts.values())


def test_parts_of_a_family():
    models = family(3)
    with torch.no_grad():
        models[2][1].weight.zero_()
    memory = torchcow.memory(*models)
    one = bytes_of(models[0])
    written = models[2][1].weight.nbytes
    assert (memory.logical, memory.unique) == (4 * one, one + written)
    assert list(memory.by_object()) == ["0 Sequential", "1 Sequential", "2 Sequential", "3 Sequential"]
    third = memory.by_object()["2 Sequential"]
    assert (third.logical, third.private, third.shared) == (one, written, one - written)
    assert memory.by_module()["1"].unique == 2 * written
    check_parts(memory)


def test_what_lies_in_two_objects_is_divided_between_them():
    first, second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
    second.weight = first.weight
    memory = torchcow.memory(first, second)
    size = first.weight.nbytes
    assert (memory.logical, memory.fair_share) == (size, size)
    assert [part.fair_share for part in memory.by_object().values()] == [size / 2, size / 2]
    assert [part.logical for part in memory.by_object().values()] == [size, size]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("cwdr"), st.integers(0, 7), st.integers(0, 2)), max_size=14))
def test_fair_shares_add_up_after_any_history(steps):
    models = family(0)
    for action, which, part in steps:
        model = models[which % len(models)]
        if action == "c":
            models.append(torchcow.clone(model))
        elif action == "w":
            with torch.no_grad():
                list(model.parameters())[part].add_(1)
        elif action == "d" and len(models) > 1:
            models.remove(model)
        elif action == "r":
            torchcow.reshare(*models)
        del model
    memory = torchcow.memory(*models)
    assert memory.fair_share == pytest.approx(memory.unique)  # nobody else shares with the family
    assert memory.logical == bytes_of(*models)
    check_parts(memory)


def test_arrays_count_as_private():
    array = np.zeros(1000)
    memory = torchcow.memory({"array": array, "view": array[10:], "tensor": torch.zeros(10)})
    assert memory.private == memory.unique == array.nbytes + 40
    clone = torchcow.clone({"array": array})
    assert torchcow.memory({"array": array}, clone).unique == 2 * array.nbytes


def test_slots_are_looked_into_those_with_private_names_too():
    class Slotted:
        __slots__ = ("__hidden", "open")

        def __init__(self):
            self.__hidden, self.open = torch.ones(10), torch.ones(20)

    assert torchcow.memory(Slotted()).logical == 120


def test_plain_numbers():
    memory = torchcow.memory(*family(1))
    plain = json.loads(json.dumps(memory.to_dict()))
    assert all(plain[name] == getattr(memory, name) for name in FIGURES)
    assert set(plain["objects"]) == {"0 Sequential", "1 Sequential"}
    assert plain["devices"]["cpu"]["unique"] == memory.unique


def test_tables_show_what_the_numbers_say():
    from rich.console import Console

    memory = torchcow.memory(*family(30))
    text = str(memory)
    assert text.splitlines()[0].split() == ["deep", "copy", "private", "shared", "fair", "share"]
    assert "12 objects are not shown" in text
    assert f"{memory.unique / 1000:.2f} kB are allocated" in text
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(memory)
    assert "0 Sequential" in console.export_text()
    assert memory._repr_html_().count("<tr>") == 1 + 19 + 1


def test_prototypes_go_by_their_names():
    model = family(0)[0]
    used = torchcow.memory(torchcow.Prototype(model, "policy"), torchcow.Prototype({"model": model}), model)
    assert list(used.by_object()) == ["0 policy", "1 dict", "2 Sequential"]
    assert used.unique == bytes_of(model)


def test_an_empty_report():
    memory = torchcow.memory()
    assert [getattr(memory, name) for name in FIGURES] == [0] * 5
    assert "0 B are allocated" in str(memory)
    assert torchcow.memory(torch.empty(3, device="meta")).logical == 0


@pytest.mark.parametrize("count", [1, 70])
def test_a_picture(tmp_path, count):
    pytest.importorskip("matplotlib")
    figure = torchcow.memory(*family(count)).plot(str(tmp_path / "bars.svg"))
    assert len(figure.axes[0].patches) == 2 * (count + 1)
    assert "<svg" in (tmp_path / "bars.svg").read_text()
