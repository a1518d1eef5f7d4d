# SPDX-License-Identifier: Apache-2.0
"""What the child processes of the store's tests share: a model, a registry, and a hand that kills at the n-th step."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys

import torch
from torch import nn

import torchcow
import torchcow.testing
from support import TESTS


def build():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))


def model(number):
    """A model that can be told by all of its tensors; the first layer is the same for all."""
    made = build()
    with torch.no_grad():
        for index, tensor in enumerate((*made.parameters(), *made.buffers())):
            tensor.fill_(index if index < 2 else number * 100 + index)
    return made


def assert_is(prototype, number):
    for want, got in zip(model(number).state_dict().values(), prototype._snapshot.state_dict().values(), strict=True):
        assert torch.equal(want, got), (number, want, got)


def open_registry(path, **options):
    torchcow._C.set_tiny_bytes(0)
    return torchcow.Registry(path, structures={"m": build, "n": build}, **options)


def kill_at(step):
    """Send this process SIGKILL at its n-th step: before or within a write, around renames, statements and commits."""
    left = [step]

    def tick(half=None):
        left[0] -= 1
        if left[0] == 0:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("open", "fsync", "replace", "unlink", "close"):
        real = getattr(os, name)

        def call(*args, real=real, **options):
            tick()
            result = real(*args, **options)
            tick()
            return result

        setattr(os, name, call)
    write = os.write

    def torn(file, data):
        tick(lambda: write(file, data[: len(data) // 2]))
        return write(file, data)

    os.write = torn

    class Connection(sqlite3.Connection):
        def execute(self, *args):
            tick()
            result = super().execute(*args)
            tick()
            return result

        def executemany(self, *args):
            tick()
            return super().executemany(*args)

    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **options: connect(*args, factory=Connection, **options)
    return left


def start(code, *args):
    """Start a child that runs ``code`` with this module at hand."""
    program = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from support.child import *\n{code}"
    command = [sys.executable, "-X", "faulthandler", "-c", program, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child, status=0, timeout=300):
    """Wait for a child; return what it printed."""
    out, err = child.communicate(timeout=timeout)
    assert child.returncode == status, f"status {child.returncode}\n{out}\n{err}"
    return out
