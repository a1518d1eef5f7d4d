# SPDX-License-Identifier: Apache-2.0
"""What the engine asks of Python and of torch, installed in one place when torchcow is imported."""

from __future__ import annotations

import torch

from torchcow._native import _C
from torchcow.engine import cuda_graphs, names


def install() -> None:
    """Let the engine know of captured CUDA graphs, find dotted names, and remember where to look for these."""
    cuda_graphs.watch(torch.cuda.CUDAGraph)
    _C.set_name_finder(names.find)
    _C.set_remember(names.remember, (torch.nn.Module, torch.optim.Optimizer))
