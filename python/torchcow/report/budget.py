# SPDX-License-Identifier: Apache-2.0
"""Budgets: whether first writes to clones will find enough memory, and memory reserved for them."""

from __future__ import annotations

import difflib
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from torchcow._native import _C
from torchcow.objects.tensors import is_within, named_tensors, subject, unwrap
from torchcow.report.table import size


def worst_case(obj: Any) -> int:
    """Return how many bytes first writes would allocate if everything in ``obj`` were written.

    A private tensor costs nothing. If ``obj`` has all sharers of a block, the last one to be written takes it.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(1024, 1024, bias=False)
        >>> variants = [torchcow.clone(model) for _ in range(3)]
        >>> torchcow.worst_case(variants[0]), torchcow.worst_case(variants), torchcow.worst_case([model, *variants])
        (4194304, 12582912, 12582912)
    """
    return _worst_case(_shared(subject("torchcow.worst_case", obj)))


def _worst_case(shared: Iterable[tuple[str, torch.Tensor, _C.Usage]]) -> int:
    usages_by_block: dict[int, list[_C.Usage]] = {}
    for _, _, usage in shared:
        usages_by_block.setdefault(usage.block, []).append(usage)
    total = 0
    for usages in usages_by_block.values():
        block_bytes = usages[0].block_bytes
        steals = len(usages) == usages[0].sharers and all(usage.bytes == block_bytes for usage in usages)
        total += sum(usage.bytes for usage in usages) - (block_bytes if steals else 0)
    return total


def headroom(device: torch.device | str = "cpu") -> int:
    """Return how many bytes can be allocated on ``device`` now, according to the system.

    On the CPU this is the memory that Linux calls available, within the limits of the control group and the process. On
    CUDA it is the free memory of the driver, and the unused memory of torch's allocator. Other processes may take it at
    any time.

    Raises:
        ValueError: the device is neither CPU nor CUDA.

    Example:
        >>> import torchcow
        >>> torchcow.headroom("cpu") > 0
        True
    """
    device = torch.device(device)
    if device.type == "cpu":
        return max(0, min(_host_limits()))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    raise ValueError(f"headroom: expected a device of type cpu or cuda, got {device}")


class Reservation:
    """Memory that :func:`reserve` holds for first writes. The tensors keep it alive, so this object can be dropped."""

    def __init__(self, handle: _C.ReserveHandle) -> None:
        self._handle = handle

    @property
    def bytes(self) -> int:
        """The bytes that are still reserved."""
        return self._handle.bytes()

    def release(self) -> None:
        """Free the bytes that are still reserved."""
        self._handle.release()

    def __repr__(self) -> str:
        return f"<Reservation of {size(self.bytes)}>"


def reserve(
    obj: Any, *, fraction: float | None = None, bytes: int | None = None, names: Iterable[str] | None = None
) -> Reservation:
    """Reserve memory for first writes to ``obj``, so that a lack of memory fails now and not at a write.

    A first write to a tensor of ``obj`` takes its memory from the reservation. Unused memory is freed when the tensors
    are gone or written, or by :meth:`Reservation.release`. A second call replaces the reservation of the first one.

    Args:
        obj: a clone, or a container or an iterator of clones.
        fraction: a fraction of :func:`worst_case`, from 0 to 1, spread over the tensors. The default is all of it.
        bytes: the least number of bytes, spread over the tensors.
        names: dotted names of the tensors, or modules, to reserve memory for.

    Raises:
        torch.OutOfMemoryError: there is not enough memory; nothing was reserved.
        TypeError: ``obj`` is a plain value or code, which holds no tensor.
        ValueError: several of ``fraction``, ``bytes`` and ``names`` were given, or a value out of range.
        LookupError: ``obj`` has no tensor of that name.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 512))
        >>> variant = torchcow.clone(model)
        >>> torchcow.reserve(variant, names=["1"]).bytes
        1050624
        >>> with torch.no_grad():
        ...     _ = variant[1].weight.mul_(2)  # takes reserved memory
        >>> torchcow.ledger().reserved_bytes
        2048
    """
    if sum(way is not None for way in (fraction, bytes, names)) > 1:
        raise ValueError("reserve: expected one of fraction, bytes and names, got several")
    kind, obj = _kind(obj), subject("torchcow.reserve", obj)
    shared = selected = list(_shared(obj))
    if names is not None:
        selected = _named(kind, obj, shared, [names] if isinstance(names, str) else list(names))
    if bytes is not None:
        worst = _worst_case(shared)
        if bytes < 0 or bytes > worst:
            raise ValueError(f"reserve: expected 0 to {worst} bytes, all that {kind} can need, got {bytes}")
        fraction = bytes / worst if worst else 0.0
    elif fraction is None:
        fraction = 1.0
    elif not 0 <= fraction <= 1:
        raise ValueError(f"reserve: expected a fraction from 0 to 1, got {fraction}")
    pieces = _spread([usage.bytes for _, _, usage in selected], fraction)
    tensors = [tensor for _, tensor, _ in selected]
    _check_headroom(kind, [entry for entry, piece in zip(selected, pieces, strict=True) if piece])
    try:
        return Reservation(_C.reserve(tensors, pieces))
    except RuntimeError as error:
        raise torch.OutOfMemoryError(f"reserve: no memory for {kind}; nothing was reserved. {error}") from error


def _shared(obj: Any) -> Iterator[tuple[str, torch.Tensor, _C.Usage]]:
    """Yield one tensor of each storage that shares its memory."""
    seen = set()
    for name, tensor in named_tensors(obj):
        usage = _C.usage(tensor)
        if usage is not None and usage.shared and usage.storage not in seen:
            seen.add(usage.storage)
            yield name, tensor, usage


def _named(kind: str, obj: Any, shared: list[Any], names: list[str]) -> list[Any]:
    paths = [path for path, _ in named_tensors(obj)]
    for name in names:
        if not any(is_within(path, name) for path in paths):
            listed = ", ".join(difflib.get_close_matches(name, paths, n=3) or paths[:5])
            raise LookupError(f"reserve: {kind} has no tensor or module '{name}'. Tensors there: {listed}")
    return [entry for entry in shared if any(is_within(entry[0], name) for name in names)]


def _spread(sizes: list[int], fraction: float) -> list[bool]:
    """Select tensors, evenly spread, so that memory for all of them makes up at least the fraction."""
    pieces = []
    wanted = got = 0.0
    for length in sizes:
        wanted += fraction * length
        pieces.append(got < wanted)
        got += length if pieces[-1] else 0
    return pieces


def _check_headroom(kind: str, selected: list[tuple[str, torch.Tensor, _C.Usage]]) -> None:
    needed: dict[torch.device, int] = {}
    for _, tensor, usage in selected:
        needed[tensor.device] = needed.get(tensor.device, 0) + usage.bytes
    for device, total in needed.items():
        free = headroom(device)
        if total > free:
            raise torch.OutOfMemoryError(
                f"reserve: {kind} needs {total} bytes on {device}, and {free} are free; nothing was reserved. "
                "Reserve a fraction or the names that will be written, or free memory first."
            )


def _kind(obj: Any) -> str:
    return type(unwrap(obj)).__name__


def _host_limits() -> Iterator[int]:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    yield int(lines["MemAvailable"].split()[0]) * 1024
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield limit - used
    for group in _control_groups():
        yield from _control_group_limit(group)


def _control_groups() -> Iterator[Path]:
    """Yield the visible folders of the memory control groups of this process, of versions 1 and 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup", controllers)
            # In a container, the path may be the one on the host.
            folder = root / path.lstrip("/")
            yield from (group for group in (folder, *folder.parents) if group.is_relative_to(root))


def _control_group_limit(group: Path) -> Iterator[int]:
    for limit_name, used_name in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            limit = (group / limit_name).read_text().strip()
            used = int((group / used_name).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max":
            # The system drops cached files when programs need memory.
            yield int(limit) - used + int(stat.get("inactive_file", stat.get("total_inactive_file", 0)))
