# SPDX-License-Identifier: Apache-2.0
"""A fixed set of workloads leaves the same events and sums as when it was recorded.

Catches: any change of who shares, who copies, in which way and for which reason, that was not meant. A change that is
meant records anew (``support.replay``), and the difference of the recording is part of the change.
"""

from __future__ import annotations

import json

import pytest

from support import replay
from support.oracle import TORCH

RECORDED = json.loads(replay.RECORDING.read_text())


@pytest.mark.sharing
@pytest.mark.tiny
@pytest.mark.skipif(TORCH < (2, 13), reason="recorded with torch 2.13; older releases know fewer ways of reading")
@pytest.mark.parametrize("work", replay.WORKLOADS, ids=lambda work: work.__name__)
def test_replay(work):
    assert replay.record(work) == RECORDED[work.__name__]
