"""What the system says that this process takes."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

import torchcow


def resident() -> int:
    """Bytes of memory that this process has, without what is only kept for later (and given back first)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") - torchcow.ledger().kept_bytes
