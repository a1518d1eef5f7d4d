# SPDX-License-Identifier: Apache-2.0
"""The checks of ``doctor``. Each yields findings: a fact, its state, and if it is not ok the reason and the remedy."""

from __future__ import annotations

import copy
import os
import platform
import resource
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import torch

import torchcow
import torchcow_startup
from torchcow._native import _C, REBUILD
from torchcow.engine import patch
from torchcow.objects.adapters import names_missing
from torchcow.report.table import size

PAGES = Path("/sys/kernel/mm/transparent_hugepage")
LITTLE_MEMORY = 10**9  # bytes
USES = {
    "rich": "the command line and tables",
    "typer": "the command line",
    "matplotlib": "pictures of memory",
    "sklearn": "scikit-learn estimators",
    "keras": "Keras models",
}
NEEDED = ("rich", "typer")
PACKAGE = {"sklearn": "scikit-learn"}  # packages that are not named like their module


@dataclass(frozen=True)
class Finding:
    """One entry of the report; ``state`` is "ok", "degraded" or "broken", and the latter two come with a remedy."""

    topic: str
    state: str
    found: str
    why: str = ""
    remedy: str = ""


def python() -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform(terse=True)}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        why = "this Python is free-threaded, but torchcow turns the interpreter lock on, so threads take turns"
        yield Finding("python", "degraded", found, why, "use the ordinary build of Python if that matters")
    else:
        yield Finding("python", "ok", found)


def versions() -> Iterator[Finding]:
    """torch, torchcow, and the torch that the engine was built for."""
    built = _C.build_info()
    yield Finding("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")
    found = f"{torchcow.__version__}, built against torch {built.torch}, in {Path(torchcow.__file__).parent}"
    installed = _version("torchcow")
    if installed not in (None, torchcow.__version__):
        why = f"version {installed} is installed, but another copy comes first on the path"
        yield Finding(
            "torchcow", "degraded", found, why, "remove one of the two (see PYTHONPATH), or install torchcow again"
        )
    else:
        yield Finding("torchcow", "ok", found)


def engine() -> Iterator[Finding]:
    """The two layers that detect writes."""
    built = _C.build_info()
    if built.write_hook == "materializer":
        yield Finding("write hook", "ok", "materializer: that of torch 2.13 and newer")
    else:
        why = "torch 2.11 and 2.12 have no write hook: a few operators un-share tensors that they only read"
        remedy = f"install torch 2.13 or newer, then {REBUILD}"
        yield Finding("write hook", "degraded", f"{built.write_hook}: torch's own copy-on-write", why, remedy)
    if built.covered_operators:
        yield Finding("barrier", "ok", f"{built.covered_operators} operators that write are covered")
    else:
        why = "no operator is covered, so the dispatcher does not announce writes"
        yield Finding("barrier", "broken", "0 operators", why, f"report this as a bug, and {REBUILD}")


def devices() -> Iterator[Finding]:
    """GPUs, and how torchcow copies on them."""
    if not torch.cuda.is_available():
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        yield Finding("GPU", "ok", f"none: {reason}")
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found = f"{index}: {about.name}, compute capability {about.major}.{about.minor}"
        free, total = torch.cuda.mem_get_info(index)
        yield Finding("GPU", "ok", f"{found}, {size(free)} of {size(total)} free")
    status = _C.build_info().cuda_kernels
    if status == "CUDA kernels":
        yield Finding("GPU copies", "ok", status)
    else:
        why = "first writes to many tensors on a GPU copy them one by one, which is slower; results are the same"
        remedy = "build torchcow with nvcc on the PATH, and check that the driver supports the CUDA version of torch"
        yield Finding("GPU copies", "degraded", status, why, remedy)


def huge_pages(folder: Path = PAGES) -> Iterator[Finding]:
    """First writes spend their time in page faults, and huge pages make them fewer."""
    chosen = _chosen(folder / "enabled")
    if chosen in ("madvise", "always"):
        yield Finding("huge pages", "ok", chosen)
    elif chosen is None:
        why = f"{folder / 'enabled'} does not exist; without huge pages first writes take several times as long"
        yield Finding("huge pages", "degraded", "unknown", why, "use a kernel with transparent huge pages")
    else:
        why = "first writes to large tensors use small pages, and take several times as long"
        remedy = f"as root: echo madvise > {folder / 'enabled'}"
        yield Finding("huge pages", "degraded", chosen, why, remedy)
    shared = _chosen(folder / "shmem_enabled")
    # For information only: the engine maps private memory, and a clone copies tensors in shared memory eagerly.
    yield Finding("huge pages, shared memory", "ok", f"{shared or 'unknown'} (torchcow does not depend on it)")


def threads() -> Iterator[Finding]:
    """First writes of 2 MB or more use several threads of OpenMP."""
    usable = len(os.sched_getaffinity(0))
    used = torch.get_num_threads()
    openmp = torch.backends.openmp.is_available()  # type: ignore[no-untyped-call]
    found = f"{used} for {usable} usable processors, OpenMP {'present' if openmp else 'absent'}"
    if openmp and (used > 1 or usable == 1):
        yield Finding("threads", "ok", found)
    else:
        why = "first writes copy with one thread, while several are faster from 2 MB on"
        limit = os.environ.get("OMP_NUM_THREADS")
        where = "a build of torch with OpenMP" if not openmp else "torch.set_num_threads"
        remedy = f"unset OMP_NUM_THREADS (it is {limit})" if openmp and limit else f"use {where}"
        yield Finding("threads", "degraded", found, why, remedy)


def memory() -> Iterator[Finding]:
    """Memory for first writes, which allocate."""
    free, limits = torchcow.headroom(), []
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(f"address space limited to {size(soft)}")
    found = ", ".join([f"{size(free)} available", *limits])
    if free >= LITTLE_MEMORY:
        yield Finding("memory", "ok", found)
    else:
        why = "a first write allocates memory and may fail (nothing is lost then, and it can be retried)"
        yield Finding("memory", "degraded", found, why, "free memory, or raise the memory limit of this container")


def deepcopy() -> Iterator[Finding]:
    """Whether ``copy.deepcopy`` is that of Python, patched by torchcow, or replaced by another library."""
    requested = torchcow_startup.is_requested()
    code = getattr(copy.deepcopy, "__code__", None)
    if patch.is_on():
        by = "TORCHCOW_PATCH" if requested else "torchcow.patch()"
        yield Finding("copy.deepcopy", "ok", f"patched by {by}: deep copies share memory")
    elif code is not None and Path(code.co_filename).name == "copy.py" and copy.deepcopy.__module__ == "copy":
        found = "Python's own: it makes clones only under torchcow.patch()"
        if requested:
            why = "TORCHCOW_PATCH is set, but nothing read it when the interpreter started"
            remedy = "install torchcow (a folder on PYTHONPATH is not enough), or use torchcow run"
            yield Finding("copy.deepcopy", "degraded", found, why, remedy)
        else:
            yield Finding("copy.deepcopy", "ok", found)
    else:
        where = code.co_filename if code is not None else "no Python code"
        found = f"replaced by {copy.deepcopy.__module__}.{copy.deepcopy.__qualname__} ({where})"
        why = "torchcow.patch() refuses to replace it; torchcow.clone works"
        yield Finding("copy.deepcopy", "degraded", found, why, "undo the replacement, or call torchcow.clone")


def libraries() -> Iterator[Finding]:
    """Optional libraries, which torchcow imports when it uses them."""
    for module, use in USES.items():
        package = PACKAGE.get(module, module)
        lacking = names_missing(module) if module in ("keras", "sklearn") else []
        if lacking:
            why = f"it has no {', '.join(lacking)}: prototypes copy its objects by its own protocol, and may lose state"
            remedy = f"install a version of {package} that torchcow supports"
            yield Finding(package, "degraded", _version(package) or "present", why, remedy)
        elif util.find_spec(module) is not None:
            yield Finding(package, "ok", f"{_version(package) or 'present'}, for {use}")
        elif module in NEEDED:
            yield Finding(package, "degraded", "missing", f"needed for {use}", f"pip install {package}")
        else:
            yield Finding(package, "ok", f"not installed; needed only for {use}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python,
    versions,
    engine,
    devices,
    huge_pages,
    threads,
    memory,
    deepcopy,
    libraries,
)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _chosen(file: Path) -> str | None:
    """Return the word in brackets: ``always [madvise] never``."""
    try:
        text = file.read_text()
    except OSError:
        return None
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else text.strip() or None
