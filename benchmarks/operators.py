# SPDX-License-Identifier: Apache-2.0
"""Times operators on a 32 x 32 tensor in a process that has torchcow, or has not: ``python operators.py [--with]``.

Prints nanoseconds per call as JSON: the median of many loops.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch

torch.set_num_threads(1)

t = torch.rand(32, 32)
out = torch.empty(32, 32)
tensors = [torch.rand(32, 32) for _ in range(10)]
OPERATORS = {
    "add": ("reads", lambda: t + t),
    "matmul": ("reads", lambda: t @ t),
    "view": ("reads", lambda: t.view(-1)),
    "add_": ("writes", lambda: t.add_(0.0)),
    "mul_": ("writes", lambda: t.mul_(1.0)),
    "copy_": ("writes", lambda: t.copy_(out)),
    "zero_": ("writes", lambda: out.zero_()),
    "addcmul_": ("writes", lambda: t.addcmul_(out, out)),
    "add, out=": ("writes, boxed", lambda: torch.add(t, 0.0, out=out)),
    "clamp_": ("writes, boxed", lambda: t.clamp_(-1.0, 1.0)),
    "_foreach_add_ of 10": ("writes, boxed", lambda: torch._foreach_add_(tensors, 0.0)),
}


def nanoseconds(act, calls: int, loops: int) -> float:
    times = []
    for _ in range(loops):
        begin = time.perf_counter_ns()
        for _ in range(calls):
            act()
        times.append((time.perf_counter_ns() - begin) / calls)
    return statistics.median(times)


if __name__ == "__main__":
    if "--with" in sys.argv:
        import torchcow  # noqa: F401 - its kernels stand in front of the operators that write
    calls, loops = (100, 3) if "--tiny" in sys.argv else (2000, 15)
    print(json.dumps({name: nanoseconds(act, calls, loops) for name, (_, act) in OPERATORS.items()}))
