# SPDX-License-Identifier: Apache-2.0
"""``torchcow.reading`` and torch.compile, in a process of its own.

The compiler leaves threads behind, beside which no first write is skipped, and does not start in a process where tests
have replaced parts of torch.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.oracle import STARTS_PROCESSES

TESTS = Path(__file__).parent / "compiled" / "reading.py"


@STARTS_PROCESSES
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
def test_compiled_code_in_a_process_of_its_own():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and re.search(r"\b5 passed", done.stdout), done.stdout + done.stderr
