# SPDX-License-Identifier: Apache-2.0
"""Writes ``delta_1.safetensors``: a delta from ``every_kind(1)`` to ``every_kind(2)`` in the format of this version.

Files of old formats are kept, so that a test can check that they can still be read. Run this script before a new
format, and never for a file that is there already: ``PYTHONPATH=tests python tests/persist/data/write.py 1``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torchcow
from support.every_kind import every_kind

path = Path(__file__).with_name(f"delta_{int(sys.argv[1])}.safetensors")
if path.exists():
    raise SystemExit(f"{path} exists; it has to stay as the old version wrote it")
torchcow.save_delta(every_kind(2), every_kind(1), path)
