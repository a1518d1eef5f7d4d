# SPDX-License-Identifier: Apache-2.0
"""A safetensors file with a fingerprint for each tensor: written atomically, and checked when it is read.

Any safetensors reader opens it. Beside the tensors, its metadata hold one JSON text, which repeats name, dtype, shape
and fingerprint of each tensor, and the SHA-256 of that text; so no flipped bit anywhere in the file goes unnoticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchcow.errors import FileError, StateError
from torchcow.persist.fingerprint import PIECE, begin, fill, pieces

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: Format 1 had nodes without a kind (:mod:`torchcow.persist.state.upgrade`); the file around them was the same.
FORMAT = 2
_KEY, _DIGEST = "torchcow", "torchcow.sha256"
_LONGEST_HEADER = 100_000_000  # what safetensors allows


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the file, from the beginning of the file, and what it must be."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    fingerprint: str
    begin: int
    end: int


def write(
    path: Path, kind: str, tensors: Mapping[str, torch.Tensor], fingerprints: Mapping[str, str], info: Mapping[str, Any]
) -> int:
    """Write a file, or leave what is at ``path`` as it is; return the number of bytes.

    Args:
        path: where the file goes. It is written beside it, synchronized, and renamed.
        kind: what the file is for; :class:`TensorFile` refuses another kind.
        tensors: by name; shared ones stay shared.
        fingerprints: of the tensors, by name.
        info: JSON-able.

    Raises:
        StateError: a tensor's bytes are no longer those of its fingerprint.
    """
    # Bigger items first: then every tensor is aligned without a gap, which the format does not allow.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    table: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        table[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    about = {
        "format": FORMAT,
        "kind": kind,
        "tensors": {name: [table[name]["dtype"], table[name]["shape"], fingerprints[name]] for name in order},
        "info": info,
    }
    text = json.dumps(about, allow_nan=False, separators=(",", ":"))
    metadata = {_KEY: text, _DIGEST: hashlib.sha256(text.encode()).hexdigest()}
    header = json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % 64)
    if len(header) > _LONGEST_HEADER:
        raise StateError(f"{path}: names and metadata take {len(header)} bytes, and {_LONGEST_HEADER} are possible")
    with _replacing(path) as file:
        _write_all(file, len(header).to_bytes(8, "little") + header)
        for name in order:
            digest = begin(tensors[name].dtype, tensors[name].shape)
            for piece in pieces(tensors[name]):
                digest.update(piece)
                _write_all(file, piece)
            if digest.hexdigest() != fingerprints[name]:
                raise StateError(f"tensor {name!r} was written by another thread while it was saved; nothing was saved")
    return 8 + len(header) + end


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[int]:
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield file
            os.fsync(file)
        finally:
            os.close(file)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _write_all(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(file, view) :]


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class TensorFile:
    """A file that is open for reading. Its header has been checked; each tensor is checked when it is read."""

    def __init__(self, path: Path, kind: str):
        self.path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.entries, self.info = self._header(kind)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor in memory of its own.

        Raises:
            FileError: its bytes are not those that were written.
        """
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        digest = begin(entry.dtype, entry.shape)
        buffer = bytearray(min(PIECE * entry.dtype.itemsize, entry.end - entry.begin))
        view = memoryview(buffer)
        at = entry.begin
        while at < entry.end:
            piece = view[: entry.end - at]
            self._read_into(piece, at)
            digest.update(piece)
            fill(tensor, at - entry.begin, piece)
            at += len(piece)
        if digest.hexdigest() != entry.fingerprint:
            raise FileError(f"{self.path}: the bytes of tensor {name!r} are not those that were written")
        return tensor

    def _read_into(self, view: memoryview, at: int) -> None:
        while view.nbytes:
            got = os.preadv(self._file, [view], at)
            if got == 0:
                raise FileError(f"{self.path}: the file ended while it was read, at byte {at}")
            view, at = view[got:], at + got

    def _header(self, kind: str) -> tuple[dict[str, Entry], Any]:
        size = os.fstat(self._file).st_size
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise FileError(f"{self.path}: not a whole safetensors file ({size} bytes)")
        raw = bytearray(length)
        self._read_into(memoryview(raw), 8)
        try:
            return self._entries(_strict(raw.decode()), kind, 8 + length, size)
        except (KeyError, TypeError, AttributeError, IndexError, UnicodeError, RecursionError) as error:
            raise FileError(f"{self.path}: the header is damaged, or not one of torchcow ({error!r})") from error
        except FileError:
            raise
        except ValueError as error:
            raise FileError(f"{self.path}: the header is damaged ({error})") from error

    def _entries(self, table: dict[str, Any], kind: str, start: int, size: int) -> tuple[dict[str, Entry], Any]:
        metadata = table.pop("__metadata__", {})
        if _KEY not in metadata:
            raise FileError(f"{self.path}: a safetensors file, but not one that torchcow wrote")
        text = metadata[_KEY]
        if hashlib.sha256(text.encode()).hexdigest() != metadata.get(_DIGEST):
            raise FileError(f"{self.path}: the header is damaged (its digest does not fit)")
        about = _strict(text)
        if about["format"] not in range(1, FORMAT + 1):
            raise FileError(f"{self.path}: format {about['format']}; this torchcow reads formats 1 to {FORMAT}")
        if about["kind"] != kind:
            raise FileError(f"{self.path}: expected a file of kind {kind!r}, got {about['kind']!r}")
        entries = {}
        end = 0
        if set(table) != set(about["tensors"]):
            raise FileError(f"{self.path}: the header is damaged (two lists of tensors that differ)")
        for name, (dtype, shape, wanted) in about["tensors"].items():
            first, last = table[name]["data_offsets"]
            if [table[name]["dtype"], table[name]["shape"]] != [dtype, shape]:
                raise FileError(f"{self.path}: the header is damaged (tensor {name!r} is described twice, differently)")
            if first != end or last - first != math.prod(shape) * DTYPES[dtype].itemsize:
                raise FileError(f"{self.path}: the header is damaged (tensor {name!r} is said to lie elsewhere)")
            entries[name] = Entry(DTYPES[dtype], tuple(shape), wanted, start + first, start + last)
            end = last
        if start + end != size:
            raise FileError(f"{self.path}: expected {start + end} bytes, got {size}")
        return entries, about["info"]


def _strict(text: str) -> dict[str, Any]:
    """Parse JSON in which no name occurs twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    parsed: dict[str, Any] = json.loads(text, object_pairs_hook=once)
    return parsed
