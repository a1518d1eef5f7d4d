# SPDX-License-Identifier: Apache-2.0
"""Collectives of torch.distributed (gloo, two processes) write what most of their schemas do not mark.

Break: a stand-in for `clone` that shares and never copies; the first collective fails.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from support import TESTS
from support.oracle import STARTS_PROCESSES


@STARTS_PROCESSES
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_collectives_and_data_parallel(tmp_path):
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", "-m", "support.collectives"]
    members = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True, cwd=TESTS)
        for rank in range(2)
    ]
    try:
        errors = [member.communicate(timeout=120)[1] for member in members]
    finally:
        for member in members:
            member.kill()
    for rank, (member, error) in enumerate(zip(members, errors, strict=True)):
        assert member.returncode == 0, f"member {rank}: status {member.returncode}\n{error}"
