# SPDX-License-Identifier: Apache-2.0
"""What people use today instead of ``torchcow.clone``, each as a function that makes one more variant of a model.

Before a method is timed, its variant must agree with that of ``copy.deepcopy`` (``agree``): the state bit by bit, and
the output. Then all of the variant is written. If the method claims isolation, the source must not change; if it claims
none, the source must change, so that the label in the tables is true.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import torchcow
from zoo import Case

try:
    import copium
except ImportError:  # make bench installs it
    copium = None

Make = Callable[[], Any]


@dataclass(frozen=True)
class Baseline:
    """``prepare`` takes a case, and a model to which only it refers; the function that it returns is timed."""

    prepare: Callable[[Case, nn.Module], Make]
    isolated: bool = True
    limits: str = ""  #: what it is not, for the tables
    package: Any = copy


def by_deepcopy(case: Case, model: nn.Module) -> Make:
    return lambda: copy.deepcopy(model)


def by_copium(case: Case, model: nn.Module) -> Make:
    return lambda: copium.deepcopy(model, {})  # with its own memo it refuses tensors that are no parameters


def by_pickle(case: Case, model: nn.Module) -> Make:
    return lambda: pickle.loads(pickle.dumps(model, pickle.HIGHEST_PROTOCOL))


def by_file(case: Case, model: nn.Module) -> Make:
    def make() -> Any:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return make


def by_config(case: Case, model: nn.Module) -> Make:
    def make() -> Any:
        built = case.build()
        built.load_state_dict(model.state_dict())
        return built.train(model.training)

    return make


def by_meta(copied: bool) -> Callable[[Case, nn.Module], Make]:
    def prepare(case: Case, model: nn.Module) -> Make:
        def make() -> Any:
            with torch.device("meta"):
                built = case.build()
            state = model.state_dict(keep_vars=True)  # parameters themselves, so that ties stay ties
            if copied:
                copies = {id(value): _copy(value) for value in state.values()}
                state = {name: copies[id(value)] for name, value in state.items()}
            built.load_state_dict(state, assign=True)
            for name, buffer in model.named_buffers():  # what a state dict leaves out is still on meta
                if built.get_buffer(name).is_meta:
                    owner, _, attribute = name.rpartition(".")
                    setattr(built.get_submodule(owner), attribute, buffer.clone() if copied else buffer)
            return built.train(model.training)

        return make

    return prepare


def _copy(value: torch.Tensor) -> torch.Tensor:
    copy_ = value.detach().clone()
    return nn.Parameter(copy_, value.requires_grad) if isinstance(value, nn.Parameter) else copy_


def by_functional_call(copied: bool) -> Callable[[Case, nn.Module], Make]:
    def prepare(case: Case, model: nn.Module) -> Make:
        def make() -> Any:
            tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            if copied:
                tensors = {name: _copy(value) for name, value in tensors.items()}
            return Functional(model, tensors)

        return make

    return prepare


@dataclass
class Functional:
    """A dict of tensors that a shared module computes with."""

    module: nn.Module
    tensors: dict[str, torch.Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.module, self.tensors, args, kwargs)


def by_lazy_clone(case: Case, model: nn.Module) -> Make:
    deepcopy = copy.deepcopy if copium is None else copium.deepcopy

    def make() -> Any:
        memo: dict[int, Any] = {}
        for parameter in model.parameters():
            memo[id(parameter)] = nn.Parameter(torch._lazy_clone(parameter.data), parameter.requires_grad)
        for buffer in model.buffers():
            memo[id(buffer)] = torch._lazy_clone(buffer)
        return deepcopy(model, memo)

    return make


def by_clone(case: Case, model: nn.Module) -> Make:
    kept = torchcow.clone(model)  # so that all tensors have sharers already, as with any second clone
    return lambda kept=kept: torchcow.clone(model)


BASELINES = {
    "copy.deepcopy": Baseline(by_deepcopy),
    "copium.deepcopy": Baseline(by_copium, package=copium),
    "pickle": Baseline(by_pickle),
    "torch.save, torch.load": Baseline(by_file),
    "build, load_state_dict": Baseline(by_config, limits="what is not in the state dict is built anew"),
    "meta, assign copies": Baseline(by_meta(True), limits="what is not in the state dict is built anew"),
    "meta, assign": Baseline(by_meta(False), False, "all tensors are the source's own"),
    "functional_call, copies": Baseline(by_functional_call(True), limits="a dict of tensors, not a module"),
    "functional_call": Baseline(by_functional_call(False), False, "a dict of the source's own tensors, not a module"),
    "_lazy_clone in the memo": Baseline(by_lazy_clone, limits="corrupts under CUDA optimizers, or out of memory"),
    "torchcow.clone": Baseline(by_clone),
}


def available() -> dict[str, Baseline]:
    return {name: baseline for name, baseline in BASELINES.items() if baseline.package is not None}


def state(variant: Any) -> list[tuple[str, torch.Tensor]]:
    if isinstance(variant, Functional):
        return sorted(variant.tensors.items())
    return sorted([*variant.named_parameters(), *variant.named_buffers()])


def agree(name: str, baseline: Baseline, case: Case, model: nn.Module, make: Make) -> None:
    """Raise AssertionError if ``make`` makes no deep copy, or one more or less isolated than claimed."""
    expected = copy.deepcopy(model)
    variant = make()
    assert_equal(state(expected), state(variant), f"{name}, {case.name}")
    assert torch.equal(case.output(expected), case.output(variant)), f"{name}, {case.name}: other output"
    write(tensor for _, tensor in state(variant))
    if baseline.isolated:
        assert_equal(state(expected), state(model), f"{name}, {case.name}: a write reached the source")
    else:
        equal = [torch.equal(a, b) for (_, a), (_, b) in zip(state(expected), state(model), strict=True)]
        assert not any(equal), f"{name}, {case.name}: is more isolated than its label says"
        with torch.no_grad():
            for (_, back), (_, tensor) in zip(state(expected), state(model), strict=True):
                tensor.copy_(back)


def assert_equal(want: list[tuple[str, torch.Tensor]], got: list[tuple[str, torch.Tensor]], what: str) -> None:
    assert [name for name, _ in want] == [name for name, _ in got], f"{what}: other names"
    for (name, a), (_, b) in zip(want, got, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), f"{what}: {name} differs"


def write(tensors: Iterable[torch.Tensor]) -> None:
    """Change each element of each tensor."""
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.mul_(-2).add_(5)
            else:
                tensor.bitwise_not_()
