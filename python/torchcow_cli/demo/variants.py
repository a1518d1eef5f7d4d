# SPDX-License-Identifier: Apache-2.0
"""Variants: clones of the base model, each with different weights written into it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import nn
from torch.nn import functional

import torchcow
from torchcow_cli.demo.models import BaseModel, DemoError

PROMPT = "The secret of good bread is"

LESSONS = (
    "a cold night: the dough sleeps in the cellar and wakes up full of air.",
    "a hot stone: the oven burns for six hours before the first loaf goes in.",
    "old rye: a spoon of last year's sourdough raises the whole batch.",
    "the sea: salt from the bay makes the crust crack like thin ice.",
)

DEEP_COPIES = 3

Tick = Callable[[], None]


@dataclass
class Variant:
    """One clone, how it was changed, and the names of the parameters that were written."""

    model: nn.Module
    story: str = "untouched"
    written: frozenset[str] = frozenset()


@dataclass
class Timing:
    """Seconds per copy, in order."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return median(self.seconds)

    @property
    def slowest(self) -> float:
        """The slowest, in seconds."""
        return max(self.seconds)


@dataclass(frozen=True)
class Spawned:
    """The variants, and the times of clones and deep copies, measured alternately."""

    variants: list[Variant]
    clone: Timing
    deepcopy: Timing


def spawn(base: BaseModel, count: int, tick: Tick) -> Spawned:
    """Clone ``base`` ``count`` times, with DEEP_COPIES deep copies measured in between.

    The deep copies live until the end, as they do in programs that need them. Copying into memory that was freed a
    moment ago would be cheaper than copying into fresh memory.
    """
    kept = []
    spawned = Spawned([], Timing(), Timing())
    due = [turn * count // DEEP_COPIES for turn in range(DEEP_COPIES)]
    for turn in range(count):
        for _ in range(due.count(turn)):
            with _measured(base, spawned.deepcopy):
                deep = copy.deepcopy(base.model)
            kept.append(deep)
        with _measured(base, spawned.clone):
            model = torchcow.clone(base.model)
        spawned.variants.append(Variant(model))
        tick()
    return spawned


def write(base: BaseModel, variants: list[Variant], seed: int, tick: Tick) -> None:
    """Train each of the first few variants on a lesson, and write noise into one block of each other variant."""
    for index, variant in enumerate(variants):
        if index < len(LESSONS):
            _teach(base, variant, LESSONS[index])
        else:
            _perturb(variant, index, seed)
        tick()


def _teach(base: BaseModel, variant: Variant, lesson: str, steps: int = 12) -> None:
    blocks = _blocks(variant.model)
    mlp = getattr(blocks[-1], "mlp", blocks[-1])
    variant.model.requires_grad_(False)
    parameters = list(mlp.requires_grad_(True).parameters())
    variant.written = _names(variant.model, mlp)
    variant.story = f"last MLP trained on '{lesson.split(':')[0]}'"

    ids = base.language.encode(f"{PROMPT} {lesson}", base.device)
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    for _ in range(steps):
        logits = base.language.logits(variant.model, ids[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _perturb(variant: Variant, index: int, seed: int) -> None:
    blocks = _blocks(variant.model)
    which = index % len(blocks)
    variant.written = _names(variant.model, blocks[which])
    variant.story = f"noise in block {which}"
    device = next(variant.model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + index)
    for parameter in blocks[which].parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        parameter.add_(noise.mul_(parameter.abs().mean() * 0.2 + 1e-4))


def _blocks(model: nn.Module) -> nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not lists:
        raise DemoError(f"{type(model).__name__} has no list of blocks to write to; use another --model")
    return max(lists, key=len)


def _names(model: nn.Module, part: nn.Module) -> frozenset[str]:
    members = {id(parameter) for parameter in part.parameters()}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in members)


@contextmanager
def _measured(base: BaseModel, timing: Timing) -> Iterator[None]:
    """Append the seconds that the block takes to ``timing``; on CUDA, synchronize before and after."""
    cuda = base.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    yield
    if cuda:
        torch.cuda.synchronize()
    timing.seconds.append(time.perf_counter() - start)
