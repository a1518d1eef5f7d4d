# SPDX-License-Identifier: Apache-2.0
"""Plain values as JSON, and back: exactly, with tuples, sets, non-string keys, NaN and integers of any size."""

from __future__ import annotations

import json
import math
import struct
import sys
from typing import Any

import torch


class NotPlainError(Exception):
    """A value that is not plain data, or contains a value that is not."""


def encode(value: Any) -> Any:
    """Return JSON that stands for ``value``. A type that JSON lacks becomes a dict with one key, the type's name.

    Raises:
        NotPlainError: a part of it is not plain data, or it contains itself.

    Example:
        >>> from torchcow.persist.state.plain import decode, encode
        >>> encode([1, (2.5, float("inf")), {3: "x"}])
        [1, {'tuple': [2.5, {'float': '7ff0000000000000'}]}, {'dict': [[3, 'x']]}]
        >>> decode(encode([1, (2.5, float("inf")), {3: "x"}]))
        [1, (2.5, inf), {3: 'x'}]
    """
    return _encode(value, set())


def _encode(value: Any, above: set[int]) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if abs(value) < 1 << 63 else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    if kind is complex:
        return {"complex": [_encode(value.real, above), _encode(value.imag, above)]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is range or kind is slice:
        return {kind.__name__: [_encode(part, above) for part in (value.start, value.stop, value.step)]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biufc":
        return {"numpy": [value.dtype.str, value.tobytes().hex()]}
    if id(value) in above:
        raise NotPlainError
    above.add(id(value))
    try:
        if kind is list:
            return [_encode(item, above) for item in value]
        if kind is tuple:
            return {"tuple": [_encode(item, above) for item in value]}
        if kind is torch.Size:
            return {"size": list(value)}
        if kind is dict:
            return {"dict": [[_encode(key, above), _encode(item, above)] for key, item in value.items()]}
        if kind is set or kind is frozenset:
            return {kind.__name__: sorted((_encode(item, above) for item in value), key=json.dumps)}
    finally:
        above.discard(id(value))
    raise NotPlainError


def decode(node: Any) -> Any:
    """Return the value that JSON of :func:`encode` stands for.

    Raises:
        ValueError: a type that this version does not know.
    """
    if isinstance(node, list):
        return [decode(item) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    if kind == "complex":
        return complex(*(decode(part) for part in content))
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind in ("range", "slice"):
        return (range if kind == "range" else slice)(*(decode(part) for part in content))
    if kind == "numpy":
        import numpy as np

        return np.frombuffer(bytes.fromhex(content[1]), dtype=content[0])[0]
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    makers = {"tuple": tuple, "size": torch.Size, "set": set, "frozenset": frozenset}
    if kind not in makers:
        raise ValueError(f"unknown kind of value: {kind!r}")
    return makers[kind]([decode(item) for item in content])
