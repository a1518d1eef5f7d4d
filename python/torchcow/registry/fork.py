# SPDX-License-Identifier: Apache-2.0
"""What a registry does when the process forks.

A forked child inherits two things that it must not use: open connections of SQLite, and locks that threads of the
parent hold. SQLite remembers for its process which file locks it has. The child inherits this memory but not the locks,
so it would write without any. Therefore each :class:`Guest` becomes idle before a fork, and each :class:`Lock` is new
and free in the child.

Threads: one lock is held from before a fork until after it. No guest joins and no second fork begins meanwhile.

These hooks run in ``os.fork``, by which ``multiprocessing`` and ``torch.utils.data`` fork, too.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol


class Guest(Protocol):
    """An object that takes part in forks."""

    def before_fork(self) -> None:
        """Become idle: hold every lock, and close every file."""

    def after_fork_in_parent(self) -> None:
        """Release what ``before_fork`` took."""

    def after_fork_in_child(self) -> None:
        """Release what ``before_fork`` took, in the child."""


class Lock:
    """A reentrant lock that is free in a forked child, although the thread that held it does not exist there."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        with _members:
            _locks.add(self)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock. Code that forks while it holds the lock releases the old lock in the child."""
        with self._lock:
            yield

    def renew(self) -> None:
        """Replace the lock by a free one."""
        self._lock = threading.RLock()


_members = threading.RLock()
_guests: weakref.WeakSet[Guest] = weakref.WeakSet()
_locks: weakref.WeakSet[Lock] = weakref.WeakSet()
_forking: list[Guest] = []


def join(guest: Guest) -> None:
    """Let an object take part in all forks from now on, as long as it lives. It has to be idle."""
    with _members:
        _guests.add(guest)


def _before() -> None:
    _members.acquire()
    _forking[:] = list(_guests)
    for guest in _forking:
        guest.before_fork()


def _in_parent() -> None:
    while _forking:
        _forking.pop().after_fork_in_parent()
    _members.release()


def _in_child() -> None:
    for lock in list(_locks):
        lock.renew()
    while _forking:
        _forking.pop().after_fork_in_child()
    _members.release()  # by the thread that forked, which is the only one here


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
