# SPDX-License-Identifier: Apache-2.0
"""Where and with what something was measured. A machine is described by its hardware, not by its name."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
#: A change of these files does not change what was measured.
NOT_CODE = ("benchmarks/results", "docs", "README.md")
PACKAGES = ("torch", "torchcow", "copium", "transformers", "numpy")


def machine() -> dict[str, object]:
    cpu = _line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads of torch": torch.get_num_threads(),
        "memory_gb": round(memory() / 1e9, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "huge pages": huge.read_text().split("[")[1].split("]")[0] if huge.exists() else "unknown",
    }


def memory() -> int:
    """Bytes of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions() -> dict[str, str]:
    versions_by_name = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions_by_name[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions_by_name | {"torch": torch.__version__}


def device() -> dict[str, object]:
    """The first CUDA device; its name is that of its model."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda or "none",
    }


def commit() -> str | None:
    """The commit that is checked out, or $TORCHCOW_COMMIT where there is no repository."""
    return _git("rev-parse", "HEAD") or os.environ.get("TORCHCOW_COMMIT")


def changed() -> list[str]:
    """Files whose content differs from the commit, without those that hold results."""
    outside = [f":(exclude){path}" for path in NOT_CODE]
    lines = (_git("status", "--porcelain", "--", ".", *outside) or "").splitlines()
    return [line[2:].strip() for line in lines]


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip("\n")
    except (OSError, subprocess.SubprocessError):
        return None


def _line(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
