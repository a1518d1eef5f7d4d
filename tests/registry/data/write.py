# SPDX-License-Identifier: Apache-2.0
"""Writes the folder ``registry_1``: a registry with three versions of ``every_kind`` in the format of this version.

Folders of old formats are kept, so that a test can check that they can still be read. Run this script before a new
format, and never for a folder that is there already: ``PYTHONPATH=tests python tests/registry/data/write.py 1``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torchcow
from support.every_kind import every_kind

path = Path(__file__).with_name(f"registry_{int(sys.argv[1])}")
if path.exists():
    raise SystemExit(f"{path} exists; it has to stay as the old version wrote it")
registry = torchcow.Registry(path)
for number in (1, 2, 3):
    parent = None if number == 1 else f"kinds@{number - 1}"
    registry.add("kinds", every_kind(number), parent=parent, tags=["production"], metadata={"number": number})
registry.rollback("kinds:production")
registry.close()
