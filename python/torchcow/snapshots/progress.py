# SPDX-License-Identifier: Apache-2.0
"""A progress bar for work that takes more than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DELAY = 1.0  # seconds


@contextmanager
def reporting(
    what: str, total: int, progress: bool | Callable[[int, int], object] | None
) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each of ``total`` parts of the work.

    ``progress`` is None for a bar on stderr, if that is a terminal and the work takes longer than a second; True for a
    bar in any case; False for none; or a function that is called with the number of parts that are done, and the total.
    """
    if progress not in (None, True, False) and not callable(progress):
        raise TypeError(f"progress: expected True, False, None or a function, got {progress!r}")
    done = 0
    bar: Any = None
    begun = time.monotonic()
    if progress is True:
        bar = _bar(what, total)

    def tick() -> None:
        nonlocal done, bar
        done += 1
        if callable(progress):
            progress(done, total)
            return
        if bar is None and progress is None and time.monotonic() - begun > DELAY and sys.stderr.isatty():
            bar = _bar(what, total, optional=True)
        if bar:
            bar.update(bar.task_ids[0], completed=done)

    try:
        yield tick
    finally:
        if bar:
            bar.stop()


def _bar(what: str, total: int, optional: bool = False) -> Any:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError as error:
        if optional:
            return False
        raise ImportError("progress=True needs the package rich: pip install rich") from error
    bar = Progress(console=Console(file=sys.stderr))
    bar.add_task(what, total=total)
    bar.start()
    return bar
