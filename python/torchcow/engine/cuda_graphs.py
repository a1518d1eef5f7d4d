"""CUDA graphs keep the addresses of what they use: the engine is told when one has been captured."""

from __future__ import annotations

import functools
from typing import Any

import torch

from torchcow._native import _C


def watch(graph: type = torch.cuda.CUDAGraph) -> None:
    """Let ``graph.capture_end`` tell the engine; all of torch comes through it, ``torch.compile`` included."""
    end = graph.capture_end  # type: ignore[attr-defined]
    if hasattr(end, "told_by"):
        return

    @functools.wraps(end)
    def capture_end(self: Any) -> None:
        try:
            end(self)
        finally:
            _C.graph_was_captured()

    capture_end.told_by = __name__  # type: ignore[attr-defined]
    graph.capture_end = capture_end  # type: ignore[attr-defined]


watch()
