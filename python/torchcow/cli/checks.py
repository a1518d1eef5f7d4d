"""What ``doctor`` looks at. A check returns findings: what there is, whether that is well, why not, and the remedy."""

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
from torchcow._native import _C, REBUILD
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
PACKAGE = {"sklearn": "scikit-learn"}  # where the package has another name than the module


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report; ``state`` is "ok", "degraded" or "broken", and all but "ok" have a remedy."""

    topic: str
    state: str
    found: str
    why: str = ""
    remedy: str = ""


def python() -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform(terse=True)}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        why = "this Python has free threading, and torchcow runs with the interpreter lock on: threads take turns"
        yield Finding("python", "degraded", found, why, "use the ordinary build of Python where that matters")
    else:
        yield Finding("python", "ok", found)


def versions() -> Iterator[Finding]:
    """torch, torchcow, and what the engine was built for."""
    built = _C.build_info()
    yield Finding("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")
    found = f"{torchcow.__version__}, built against torch {built['torch']}, in {Path(torchcow.__file__).parent}"
    installed = _version("torchcow")
    if installed not in (None, torchcow.__version__):
        why = f"the version that is installed is {installed}, and another copy comes first on the path"
        yield Finding("torchcow", "degraded", found, why, "remove one of the two (see PYTHONPATH), or install again")
    else:
        yield Finding("torchcow", "ok", found)


def engine() -> Iterator[Finding]:
    """The two layers that notice writes."""
    built = _C.build_info()
    if built["write_hook"] == "materializer":
        yield Finding("write hook", "ok", "materializer: that of torch 2.13 and newer")
    else:
        why = "torch 2.11 and 2.12 have no hook of their own: a few operators that only read un-share what they read"
        remedy = f"install torch 2.13 or newer, then {REBUILD}"
        yield Finding("write hook", "degraded", f"{built['write_hook']}: torch's own copy-on-write", why, remedy)
    covered = int(built["covered_operators"])
    if covered:
        yield Finding("barrier", "ok", f"{covered} operators that write are covered")
    else:
        why = "no operator is covered: writes would not be noticed by the dispatcher"
        yield Finding("barrier", "broken", "0 operators", why, f"report this as a bug, and {REBUILD}")


def devices() -> Iterator[Finding]:
    """GPUs, and how bytes are copied on them."""
    if not torch.cuda.is_available():
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        yield Finding("GPU", "ok", f"none: {reason}")
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found = f"{index}: {about.name}, compute capability {about.major}.{about.minor}"
        free, total = torch.cuda.mem_get_info(index)
        yield Finding("GPU", "ok", f"{found}, {size(free)} of {size(total)} free")
    status = _C.cuda_kernels_status()
    if status == "CUDA kernels":
        yield Finding("GPU copies", "ok", status)
    else:
        why = "first writes to many tensors on a GPU are copied one by one, which is slower; results are the same"
        remedy = "build torchcow where nvcc is found, and look whether the driver is as new as torch's CUDA"
        yield Finding("GPU copies", "degraded", status, why, remedy)


def huge_pages(folder: Path = PAGES) -> Iterator[Finding]:
    """Fresh memory of first writes is bound by page faults, which are fewer with huge pages."""
    chosen = _chosen(folder / "enabled")
    if chosen in ("madvise", "always"):
        yield Finding("huge pages", "ok", chosen)
    elif chosen is None:
        why = f"the kernel does not tell ({folder / 'enabled'}): first writes may take several times as long"
        yield Finding("huge pages", "degraded", "unknown", why, "use a kernel with transparent huge pages")
    else:
        why = "first writes to large tensors fault in small pages, and take several times as long"
        remedy = f"as root: echo madvise > {folder / 'enabled'}"
        yield Finding("huge pages", "degraded", chosen, why, remedy)
    shared = _chosen(folder / "shmem_enabled")
    # Not judged: the engine maps private memory, and copies what lies in shared memory at clone time.
    yield Finding("huge pages, shared memory", "ok", f"{shared or 'unknown'} (torchcow does not depend on it)")


def threads() -> Iterator[Finding]:
    """From 2 MB on, several threads of OpenMP copy."""
    usable = len(os.sched_getaffinity(0))
    used = torch.get_num_threads()
    openmp = torch.backends.openmp.is_available()  # type: ignore[no-untyped-call]
    found = f"{used} for {usable} usable processors, OpenMP {'present' if openmp else 'absent'}"
    if openmp and (used > 1 or usable == 1):
        yield Finding("threads", "ok", found)
    else:
        why = "one thread copies at a first write, where several would be faster from 2 MB on"
        limit = os.environ.get("OMP_NUM_THREADS")
        where = "a build of torch with OpenMP" if not openmp else "torch.set_num_threads"
        remedy = f"unset OMP_NUM_THREADS (it is {limit})" if openmp and limit else f"use {where}"
        yield Finding("threads", "degraded", found, why, remedy)


def memory() -> Iterator[Finding]:
    """Room for first writes, which allocate."""
    free, limits = torchcow.headroom(), []
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(f"address space limited to {size(soft)}")
    found = ", ".join([f"{size(free)} available", *limits])
    if free >= LITTLE_MEMORY:
        yield Finding("memory", "ok", found)
    else:
        why = "a first write allocates, and may find no memory (nothing is lost then, and it can be tried again)"
        yield Finding("memory", "degraded", found, why, "free memory, or raise the limit of this container")


def deepcopy() -> Iterator[Finding]:
    """Whether ``copy.deepcopy`` is Python's, ours, or somebody else's."""
    wanted = os.environ.get("TORCHCOW_PATCH", "0") not in ("", "0")
    code = getattr(copy.deepcopy, "__code__", None)
    if code is torchcow.patch.__globals__["_code"]:
        by = "TORCHCOW_PATCH" if wanted else "torchcow.patch()"
        yield Finding("copy.deepcopy", "ok", f"patched by {by}: deep copies share memory")
    elif code is not None and Path(code.co_filename).name == "copy.py" and copy.deepcopy.__module__ == "copy":
        found = "Python's own: clones are made by torchcow.clone, or under torchcow.patch()"
        if wanted:
            why = "TORCHCOW_PATCH is set, but nothing has read it when the interpreter started"
            remedy = "install torchcow (a folder on PYTHONPATH is not enough), or use python -m torchcow run"
            yield Finding("copy.deepcopy", "degraded", found, why, remedy)
        else:
            yield Finding("copy.deepcopy", "ok", found)
    else:
        where = code.co_filename if code is not None else "no Python code"
        found = f"replaced by {copy.deepcopy.__module__}.{copy.deepcopy.__qualname__} ({where})"
        why = "torchcow.patch() refuses to work over it; torchcow.clone works"
        yield Finding("copy.deepcopy", "degraded", found, why, "remove what replaced it, or call torchcow.clone")


def libraries() -> Iterator[Finding]:
    """Libraries that parts of the package import when they are used."""
    for module, use in USES.items():
        package = PACKAGE.get(module, module)
        if util.find_spec(module) is not None:
            yield Finding(package, "ok", f"{_version(package) or 'present'}, for {use}")
        elif module in NEEDED:
            yield Finding(package, "degraded", "missing", f"it is needed for {use}", f"pip install {package}")
        else:
            yield Finding(package, "ok", f"not installed; only needed for {use}")


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
    """The word in brackets: ``always [madvise] never``."""
    try:
        text = file.read_text()
    except OSError:
        return None
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else text.strip() or None
