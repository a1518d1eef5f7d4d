# SPDX-License-Identifier: Apache-2.0
"""What writes files asks for pointers: within ``torchcow.reading`` a saved clone still shares, the file is right."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import torchcow


def variant():
    """A clone of a model with a tie, one layer of which was written, and a deep copy of it."""
    model = nn.ModuleDict({"embedding": nn.Embedding(50, 64), "layer": nn.Linear(64, 64), "head": nn.Linear(64, 50)})
    model["head"].weight = model["embedding"].weight
    clone = torchcow.clone(model)
    with torch.no_grad():
        clone["layer"].bias.add_(1)
    return model, clone, copy.deepcopy(clone)


def torch_save(model, path):
    torch.save(model.state_dict(), path)
    return torch.load(path)


def torch_save_of_the_module(model, path):
    torch.save(model, path)
    return torch.load(path, weights_only=False).state_dict()


def pickled(model, path):
    path.write_bytes(pickle.dumps(model))
    return pickle.loads(path.read_bytes()).state_dict()


def safetensors_file(model, path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_model(model, path)
    loaded = {**safetensors.load_file(path)}
    other = copy.deepcopy(model)
    safetensors.load_model(other, path)
    assert loaded.keys() < other.state_dict().keys(), "a tie is stored once"
    return other.state_dict()


WRITERS = [torch_save, torch_save_of_the_module, pickled, safetensors_file]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_saved_clone_still_shares_and_the_file_is_right(write, tmp_path):
    """Seen to fail without the scope: each way of saving un-shares all that it saves."""
    model, clone, expected = variant()
    with torchcow.reading(clone, checksum=True):
        loaded = write(clone, tmp_path / "file")
    assert torchcow.is_shared(clone["layer"].weight) and torchcow.is_shared(clone["embedding"].weight)
    assert loaded.keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in expected.state_dict().items())
    write(clone, tmp_path / "again")
    assert not torchcow.is_shared(clone["layer"].weight)
    del model


def test_a_clone_within_the_model_is_saved_as_a_tensor_of_its_own(tmp_path):
    """Equal addresses would be taken for a tie, and one of the two left out."""
    safetensors = pytest.importorskip("safetensors.torch")
    layer = nn.Linear(64, 64)
    model = nn.ModuleDict({"online": layer, "target": torchcow.clone(layer)})
    with torchcow.reading(model):
        safetensors.save_model(model, tmp_path / "file")
        safetensors.save_file(model.state_dict(), tmp_path / "strict")
    assert len(safetensors.load_file(tmp_path / "file")) == 4


def test_models_of_transformers_are_saved(tmp_path):
    """GPT-2 has tied embeddings; nothing is shared less after ``save_pretrained``, and the file loads to equal bits."""
    transformers = pytest.importorskip("transformers", reason="make test-models installs it")
    config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=211)
    model = torchcow.clone(transformers.GPT2LMHeadModel(config))
    clone = torchcow.clone(model)
    with torch.no_grad():
        clone.transformer.h[0].mlp.c_fc.bias.add_(1)
    before = torchcow.memory(model, clone).unique
    with torchcow.reading(clone, checksum=True):
        clone.save_pretrained(tmp_path)
    assert torchcow.memory(model, clone).unique == before
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(clone.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    clone.save_pretrained(tmp_path / "again")
    assert torchcow.memory(model, clone).unique > before


def test_another_process_can_be_sent_a_clone():
    """ForkingPickler moves memory to where others can see it, which gives the sender other memory, too."""
    from multiprocessing import resource_sharer
    from multiprocessing.reduction import ForkingPickler

    torch.multiprocessing.init_reductions()

    _, clone, expected = variant()
    with torchcow.reading(clone):
        data = ForkingPickler.dumps(clone["layer"].weight.detach())
    assert torch.equal(pickle.loads(data), expected["layer"].weight)
    resource_sharer.stop()
    assert torch.equal(clone["layer"].weight, expected["layer"].weight)


def test_bytes_of_a_file_do_not_depend_on_the_scope():
    _, clone, expected = variant()
    inside, outside = io.BytesIO(), io.BytesIO()
    with torchcow.reading(clone):
        torch.save(clone.state_dict(), inside)
    torch.save(expected.state_dict(), outside)
    assert inside.getvalue() == outside.getvalue()
