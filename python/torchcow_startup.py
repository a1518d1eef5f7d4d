# SPDX-License-Identifier: Apache-2.0
"""``TORCHCOW_PATCH=1``: turns :func:`torchcow.patch` on when a program has imported torch.

``torchcow_startup.pth`` calls :func:`start` when an interpreter starts and the variable is set. Programs that never
import torch pay nothing else.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

ON = ("1", "true", "yes", "on")
OFF = ("", "0", "false", "no", "off")

_started = False


def start() -> None:
    """Prepare the patch if ``TORCHCOW_PATCH`` asks for it; report a value that makes no sense, and ignore it.

    A second call does nothing: Python may read the ``.pth`` file twice, by two paths of one folder.
    """
    global _started
    if _started:
        return
    _started = True
    if is_requested():
        sys.meta_path.insert(0, _AfterTorch())
        return
    value = os.environ.get("TORCHCOW_PATCH", "")
    if value.strip().lower() not in OFF and sys.stderr is not None:
        expected = f"expected one of {', '.join(ON)} to turn the patch on, or {', '.join(OFF[1:])} to leave it off"
        print(f"torchcow: error: TORCHCOW_PATCH={value!r} is ignored: {expected}", file=sys.stderr)


def is_requested() -> bool:
    """Return whether ``TORCHCOW_PATCH`` asks for the patch."""
    return os.environ.get("TORCHCOW_PATCH", "").strip().lower() in ON


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Finds torch with the other finders, and patches when torch has been loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            import torchcow

            torchcow.patch()

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec
