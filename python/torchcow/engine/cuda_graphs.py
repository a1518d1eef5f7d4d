# SPDX-License-Identifier: Apache-2.0
"""Reports captured CUDA graphs to the engine, because a graph keeps the addresses of the memory that it uses."""

from __future__ import annotations

import functools
from typing import Any

from torchcow._native import _C


def watch(graph: type) -> None:
    """Let ``graph.capture_end`` notify the engine; every capture of torch calls it, also those of ``torch.compile``."""
    end = graph.capture_end  # type: ignore[attr-defined]
    if hasattr(end, "notifies"):
        return

    @functools.wraps(end)
    def capture_end(self: Any) -> None:
        try:
            end(self)
        finally:
            _C.graph_was_captured()

    capture_end.notifies = __name__  # type: ignore[attr-defined]
    graph.capture_end = capture_end  # type: ignore[attr-defined]
