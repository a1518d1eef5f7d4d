# SPDX-License-Identifier: Apache-2.0
"""Deltas: only what differs is written, everything is checked when it is read, and saving un-shares nothing.

Catches: a tensor that differs and is not written, a base that is not the right one, a file that is damaged or half
written, memory that is un-shared or written by saving.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import torchcow
import torchcow.persist.tensor_file
from support.oracle import assert_same, freeze
from support.states import CASES, Net, seen, through_json
from torchcow import FileError, Prototype, StateError, load_delta, save_delta


def changed(base):
    clone = torchcow.clone(base)
    with torch.no_grad():
        clone.body[1].bias.add_(1)
        clone.steps.add_(1)
        clone.scratch[0][1] = float("nan")
    clone.train()
    clone.body[2].p = 0.75
    clone.body[0].weight.requires_grad_(False)
    return clone


NAMES = ["steps", "body.1.bias", "scratch.0"]


def test_what_differs_is_written_and_comes_back(tmp_path):
    base = Net()
    clone = changed(base)
    want, before = freeze(clone), freeze(base)
    assert save_delta(clone, base, tmp_path / "delta") == NAMES
    again = load_delta(base, tmp_path / "delta")
    assert_same(want, again, "loaded")
    assert_same(want, clone, "saved")
    assert_same(before, base, "base")
    assert_same(want, load_delta(Prototype(base), str(tmp_path / "delta")), "loaded with a prototype")
    with safe_open(tmp_path / "delta", "pt") as file:
        assert sorted(file.keys()) == sorted(NAMES)
        assert torch.equal(file.get_tensor("steps"), clone.steps)


@pytest.mark.sharing
def test_saving_and_loading_unshare_nothing(tmp_path):
    base = Net()
    clone = changed(base)
    torchcow.events(clear=True)
    save_delta(clone, base, tmp_path / "delta")
    again = load_delta(base, tmp_path / "delta")
    # Loading clones the base, in which an empty tensor is copied.
    assert not [event for event in torchcow.events() if event.kind == "materialize" or event.bytes]
    assert torchcow.is_shared(clone.head.weight)
    assert torchcow.is_shared(again.head.weight)
    assert not torchcow.is_shared(again.steps)
    with torch.no_grad():
        again.head.weight.zero_()
    assert base.head.weight.any()
    assert clone.head.weight.any()


@pytest.mark.parametrize("name", CASES)
def test_every_case_comes_back_from_its_own_structure(name, tmp_path):
    # A structure in another state as the base: nearly all tensors differ, optimizer state is made late.
    base, clone = CASES[name](False), CASES[name](True)
    if name == "plain":
        clone.pop("function"), base.pop("function")
    want = freeze(seen(through_json(clone, base)))
    save_delta(clone, base, tmp_path / "delta")
    assert_same(want, seen(load_delta(base, tmp_path / "delta")), name)


def test_bits_count_not_values(tmp_path):
    base = {"x": torch.tensor([0.0, float("nan")]), "y": torch.tensor([float("nan")])}
    clone = {"x": torch.tensor([-0.0, float("nan")]), "y": torch.tensor([float("nan")])}
    assert save_delta(clone, base, tmp_path / "delta") == ["x"]
    assert torch.signbit(load_delta(base, tmp_path / "delta")["x"][0])


def test_tensors_that_changed_places_are_written(tmp_path):
    # Same block, other bytes: parameters of a clone have spans of one buffer.
    flat = torch.arange(2048.0)
    base = nn.Module()
    base.a, base.b = nn.Parameter(flat[:1024]), nn.Parameter(flat[1024:])
    clone = torchcow.clone(base)
    clone.a, clone.b = clone.b, clone.a
    assert save_delta(clone, base, tmp_path / "delta") == ["a", "b"]
    assert torch.equal(load_delta(base, tmp_path / "delta").a, base.b)


def test_an_empty_delta_and_one_of_strides_only(tmp_path):
    base = {"w": torch.rand(2, 3)}
    assert save_delta(torchcow.clone(base), base, tmp_path / "delta") == []
    assert_same(copy.deepcopy(base), load_delta(base, tmp_path / "delta"), "nothing changed")
    turned = {"w": base["w"].t().contiguous().t()}
    assert save_delta(turned, base, tmp_path / "delta") == ["w"]
    assert load_delta(base, tmp_path / "delta")["w"].stride() == (1, 2)


def refused(text, base, path):
    with pytest.raises(StateError, match=text) as error:
        load_delta(base, path)
    return error


def test_another_base_is_refused_by_name(tmp_path):
    base = Net()
    save_delta(changed(base), base, tmp_path / "delta")
    other = Net()
    with torch.no_grad():
        other.body[0].weight.add_(1)
    refused(r"another base; different: 'body\.0\.weight'", other, tmp_path / "delta")
    other = Net()
    other.extra = nn.Linear(1, 1, bias=False)
    del other._buffers["mask"]
    refused(r"missing in this base: 'mask'; not in that base: 'extra\.weight'", other, tmp_path / "delta")
    untied = Net()
    untied.tied.weight = nn.Parameter(untied.head.weight.detach().clone())
    refused("another base; not in that base: 'tied.weight'", untied, tmp_path / "delta")
    other = Net()
    other.body[2] = nn.Identity()
    before = freeze(other)
    refused(r"'body\.2' expected a Dropout, got a Identity", other, tmp_path / "delta")
    assert_same(before, other, "the base that was refused")


def test_a_clone_that_could_not_be_loaded_is_not_saved(tmp_path):
    base = Net()
    clone = torchcow.clone(base)
    clone.body.append(nn.Linear(1, 1))
    with pytest.raises(StateError, match=r"(?s)another way than the base.*'body\.3' is missing in the structure"):
        save_delta(clone, base, tmp_path / "delta")
    assert not list(tmp_path.iterdir())


def test_files_of_others(tmp_path):
    base = Net()
    path = tmp_path / "delta"
    path.write_bytes(b"")
    assert refused("not a whole safetensors file", base, path).type is FileError
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)
    refused("not one that torchcow wrote", base, path)
    save_file({"x": torch.zeros(2)}, path, {"torchcow": "{}"})
    refused("digest does not fit", base, path)
    torchcow.persist.tensor_file.write(path, "registry", {}, {}, {})
    refused("expected a file of kind 'delta', got 'registry'", base, path)
    torch.save(base.state_dict(), path)
    refused("not a whole safetensors file|damaged", base, path)
    with pytest.raises(FileNotFoundError):
        load_delta(base, tmp_path / "nothing")


def test_a_good_file_is_replaced_at_the_very_end(tmp_path, monkeypatch):
    base = Net()
    path = tmp_path / "delta"
    save_delta(changed(base), base, path)
    good = path.read_bytes()
    calls = []
    for name in ("write", "fsync", "close", "replace", "open"):
        real = getattr(os, name)

        def call(*args, name=name, real=real, **options):
            calls.append(name)
            assert name == "close" or path.read_bytes() == good or "replace" in calls
            return real(*args, **options)

        monkeypatch.setattr(os, name, call)
    save_delta(torchcow.clone(base), base, path)
    order = [name for name in calls if name != "write"]
    monkeypatch.undo()
    assert order[-6:] == ["fsync", "close", "replace", "open", "fsync", "close"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_good_file_and_nothing_else(name, tmp_path, monkeypatch):
    base = Net()
    path = tmp_path / "delta"
    clone = changed(base)
    save_delta(clone, base, path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, name, fail)
        save_delta(torchcow.clone(base), base, path)
    assert list(Path(tmp_path).iterdir()) == [path]
    assert_same(freeze(clone), load_delta(base, path), "the good file")


def test_a_tensor_that_is_written_meanwhile_is_not_saved(tmp_path, monkeypatch):
    base = Net()
    clone = changed(base)
    real = torchcow.persist.delta.write

    def write(path, kind, tensors, *rest):
        tensors["steps"].add_(1)
        return real(path, kind, tensors, *rest)

    monkeypatch.setattr("torchcow.persist.delta.write", write)
    with pytest.raises(StateError, match="'steps' was written by another thread"):
        save_delta(clone, base, tmp_path / "delta")
    assert not list(tmp_path.iterdir())
