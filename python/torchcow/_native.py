"""The one door to the native extension: imports torch first, and explains a failed load."""

from __future__ import annotations

import torch

try:
    from torchcow import _C
except ImportError as error:
    raise ImportError(
        f"torchcow's native extension did not load ({error}). It works only with the torch release that it was built "
        f"against; torch {torch.__version__} is installed. Build it again: pip install --no-build-isolation torchcow"
    ) from error


def _release(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


_built_for = _C.build_info()["torch"]
if _release(_built_for) != _release(torch.__version__):
    raise ImportError(
        f"torchcow was built against torch {_built_for}, but torch {torch.__version__} is installed. Extensions of "
        "torch work with one minor release only. Build it again: pip install --no-build-isolation torchcow"
    )

__all__ = ["_C"]
