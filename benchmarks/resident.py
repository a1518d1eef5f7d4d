# SPDX-License-Identifier: Apache-2.0
"""The memory of this process, as the system counts it."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

import torchcow


def resident() -> int:
    """Resident bytes of this process, without the memory that torchcow and the allocator keep for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") - torchcow.ledger().kept_bytes
