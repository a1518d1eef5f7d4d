# SPDX-License-Identifier: Apache-2.0
"""A plan to restore an object: what does not fit, what to do if everything does; tensors, arrays and generators."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable
from typing import Any

import torch

from torchcow.persist.state.capture import Node
from torchcow.persist.state.messages import describe, kind_of, label, shape_of

Read = Callable[[str], "torch.Tensor | None"]


class Plan:
    """What does not fit, and what to do if everything does. No tensor is read before the actions run."""

    def __init__(self, read: Read):
        self.problems: list[str] = []
        self.actions: collections.deque[Callable[[], object]] = collections.deque()
        self._read = read

    def problem(self, path: str, text: str) -> None:
        """Note what does not fit at a path."""
        self.problems.append(f"{label(path)} {text}")

    def tensor(self, path: str, node: Node, current: Any) -> Any:
        """Plan to give a tensor of the structure the saved content."""
        expected = f"a tensor ({node['dtype']}, {shape_of(node['shape'])})"
        if not isinstance(current, torch.Tensor):
            self.problem(path, f"expected {expected}, got {kind_of(current)}")
        elif current.is_meta or torch.nn.parameter.is_lazy(current):
            self.problem(path, f"has no memory in the structure: {kind_of(current)}")
        elif (str(current.dtype).removeprefix("torch."), list(current.shape)) != (node["dtype"], node["shape"]):
            self.problem(path, f"expected {expected}, got {describe(current)}")
        else:
            self.actions.append(lambda: self._fill(path, node, current))
        return current

    def _fill(self, path: str, node: Node, current: torch.Tensor) -> None:
        value = self.read(path, node, current).to(current.device)
        if value is not current:
            # The same tensor object, so that ties, optimizers and hooks keep it; nothing is written to old memory.
            current.data = value
        current.requires_grad_(node["grad"])

    def read(self, path: str, node: Node, current: Any) -> Any:
        """Return the saved tensor in its saved memory layout, or ``current`` if the file leaves it as it is."""
        value = self._read(path)
        if value is None:
            return current
        if "stride" not in node:
            return value.contiguous()
        if list(value.stride()) != node["stride"]:
            empty = torch.empty_strided(node["shape"], node["stride"], dtype=value.dtype, device=value.device)
            value = empty.copy_(value)
        return value

    def generator(self, path: str, _node: Node, current: Any) -> Any:
        """Plan to set the state of a generator."""
        if not isinstance(current, torch.Generator):
            self.problem(path, f"expected a torch.Generator, got {kind_of(current)}")
        else:

            def fill() -> None:
                value = self._read(path)
                if value is not None:
                    current.set_state(value)

            self.actions.append(fill)
        return current

    def array(self, path: str, node: Node, current: Any) -> Any:
        """Plan to give an array of NumPy the saved content."""
        expected = f"an array ({node['numpy dtype']}, {shape_of(node['shape'])})"
        numpy = sys.modules.get("numpy")
        if numpy is None or not isinstance(current, numpy.ndarray):
            self.problem(path, f"expected {expected}, got {kind_of(current)}")
        elif (current.dtype.str, list(current.shape)) != (node["numpy dtype"], node["shape"]):
            self.problem(path, f"expected {expected}, got an array ({current.dtype.str}, {current.shape})")
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
