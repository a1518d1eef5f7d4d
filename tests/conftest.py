# SPDX-License-Identifier: Apache-2.0
"""The checks that follow every test: nothing leaks, the bytes add up, no shared block was written.

Catches, after whatever test provoked it: a block or sharer that is never given back, memory that stays retired, any
write that reached a shared block (the checksums of ``torchcow.testing.verify``), and a thread that is left behind,
beside which no later test would see a write skipped or a block stolen.
"""

from __future__ import annotations

import contextlib
import gc
import time

import pytest
import torch

import torchcow
import torchcow.testing
from support import oracle


def pytest_configure(config):
    torch.set_num_threads(1)
    # A progress bar would leave a thread behind, and with other threads about no write is skipped.
    with contextlib.suppress(ImportError):
        import tqdm

        tqdm.tqdm.monitor_interval = 0


def pytest_collection_finish(session):
    # The test database of torch is a large heap; frozen, it costs the collections below nothing.
    gc.collect()
    gc.freeze()


def settled(expected, alone, seconds=5.0):
    """The ledger, once at most `expected` blocks and no threads (if `alone`) are left, or the time is up."""
    deadline = time.monotonic() + seconds
    now = torchcow.ledger()
    while (
        now.blocks > expected or now.retired_blocks or (alone and not torchcow._C.alone())
    ) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
        now = torchcow.ledger()
    return now


@pytest.fixture(autouse=True)
def small_tensors_are_shared(request):
    """Test tensors and the samples of torch's databases are small: share them all the same."""
    if request.node.get_closest_marker("tiny"):
        yield
        return
    old = torchcow._C.set_tiny_bytes(0)
    yield
    torchcow._C.set_tiny_bytes(old)


@pytest.fixture(autouse=True)
def accounting(request, small_tensors_are_shared):
    """Blocks, sharers and retired memory return to what they were before the test; no shared block was written."""
    oracle.seed()
    before = torchcow.ledger()
    alone = torchcow._C.alone() and not request.node.get_closest_marker("threads")
    torchcow.events(clear=True)
    yield
    torchcow.testing.verify()
    failed = getattr(request.node, "failed", False)
    if failed:  # the traceback keeps the test's objects alive
        return
    after = settled(before.blocks, alone)
    # Not '==': objects of an earlier test that failed may have gone in the meantime.
    assert after.blocks <= before.blocks, f"{after.blocks - before.blocks} blocks outlive the test"
    assert after.sharers <= before.sharers, f"{after.sharers - before.sharers} sharers outlive the test"
    assert after.unique_bytes <= before.unique_bytes
    assert after.retired_blocks == 0, f"{after.retired_blocks} blocks stay retired"
    assert after.retired_bytes == 0
    assert torchcow._C.alone() or not alone, "the test leaves a thread, beside which no write is skipped"
    torchcow.events(clear=True)


@pytest.fixture(params=["memory", "folder"])
def registry(request, tmp_path):
    """One in memory, and one in a folder; nothing of it outlives the test."""
    registry = torchcow.Registry(None if request.param == "memory" else tmp_path / "registry")
    yield registry
    registry.close()
    vars(registry).clear()  # pytest keeps what a fixture yields


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call" and outcome.get_result().failed:
        item.failed = True
