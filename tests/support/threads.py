# SPDX-License-Identifier: Apache-2.0
"""Run functions in several threads at once; a hang ends the process with a traceback."""

from __future__ import annotations

import faulthandler
import threading
import time

import pytest

THREADS = 8


@pytest.fixture(autouse=True)
def no_hang():
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def together(*functions, seconds=None):
    """Run all at once, again and again until the time is up (once without a time); raise what any of them raised."""
    gate, errors = threading.Barrier(len(functions)), []
    stop = threading.Event()

    def body(function):
        try:
            gate.wait()
            while True:
                function()
                if seconds is None or stop.is_set():
                    return
        except BaseException as error:  # handed to the main thread
            errors.append(error)

    threads = [threading.Thread(target=body, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    if seconds is not None:
        time.sleep(seconds)
        stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
