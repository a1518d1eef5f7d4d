"""How tensors, arrays and generators of a state are put into those of a structure."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable
from typing import Any

import torch

from torchcow.persist.state.capture import Node
from torchcow.persist.state.words import describe, kind_of, label

Read = Callable[[str], "torch.Tensor | None"]


class Leaves:
    """A plan under way: what does not fit, and what is to be done if everything does."""

    def __init__(self, read: Read):
        self.problems: list[str] = []
        self.actions: collections.deque[Callable[[], object]] = collections.deque()
        self._read = read

    def _problem(self, path: str, text: str) -> None:
        self.problems.append(f"{label(path)} {text}")

    def _tensor(self, path: str, node: Node, current: Any) -> Any:
        wanted = f"a tensor ({node['tensor'][0]}, {'x'.join(map(str, node['tensor'][1])) or 'scalar'})"
        if not isinstance(current, torch.Tensor):
            self._problem(path, f"expected {wanted}, got {kind_of(current)}")
        elif current.is_meta or torch.nn.parameter.is_lazy(current):
            self._problem(path, f"has no memory in the structure: {kind_of(current)}")
        elif [str(current.dtype).removeprefix("torch."), list(current.shape)] != node["tensor"]:
            self._problem(path, f"expected {wanted}, got {describe(current)}")
        else:
            self.actions.append(lambda: self._fill(path, node, current))
        return current

    def _fill(self, path: str, node: Node, current: torch.Tensor) -> None:
        value = self._laid_out(path, node, current).to(current.device)
        if value is not current:
            # The same tensor object, so that ties, optimizers and hooks keep it; nothing is written to old memory.
            current.data = value
        current.requires_grad_(node["grad"])

    def _laid_out(self, path: str, node: Node, current: Any) -> Any:
        value = self._read(path)
        if value is None:
            return current
        if "stride" not in node:
            return value.contiguous()
        if list(value.stride()) != node["stride"]:
            empty = torch.empty_strided(node["tensor"][1], node["stride"], dtype=value.dtype, device=value.device)
            value = empty.copy_(value)
        return value

    def _generator(self, path: str, node: Node, current: Any) -> Any:
        if not isinstance(current, torch.Generator):
            self._problem(path, f"expected a torch.Generator, got {kind_of(current)}")
        else:

            def fill() -> None:
                value = self._read(path)
                if value is not None:
                    current.set_state(value)

            self.actions.append(fill)
        return current

    def _array(self, path: str, node: Node, current: Any) -> Any:
        wanted = f"an array ({node['dtype']}, {'x'.join(map(str, node['array'][1])) or 'scalar'})"
        numpy = sys.modules.get("numpy")
        if numpy is None or not isinstance(current, numpy.ndarray):
            self._problem(path, f"expected {wanted}, got {kind_of(current)}")
        elif (current.dtype.str, list(current.shape)) != (node["dtype"], node["array"][1]):
            self._problem(path, f"expected {wanted}, got an array ({current.dtype.str}, {current.shape})")
        else:

            def fill() -> None:
                value = self._read(path)
                if value is not None:
                    writable = current.flags.writeable
                    current.flags.writeable = True
                    current[...] = value.numpy()
                    current.flags.writeable = writable

            self.actions.append(fill)
        return current
