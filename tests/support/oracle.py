# SPDX-License-Identifier: Apache-2.0
"""What all suites share: bit-exact comparison of object graphs, and 'write to each relative, look at all the others'.

The oracle is always ``copy.deepcopy``. Tensors are compared by the bytes of their elements, so that NaN equals itself
and -0.0 differs from 0.0, and are only read through operators that hand out no writable pointer: looking must not
un-share.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import enum
import functools
import io
import os
import random
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from torch.utils.hooks import RemovableHandle

import torchcow
import torchcow.testing

TORCH = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
SIDE = 64  # 64 x 64 float32 = 16 KB


def not_under(sanitizer, reason):
    """A mark for tests that the named sanitizer's runtime (it is preloaded) cannot run."""
    return pytest.mark.skipif(f"lib{sanitizer}" in os.environ.get("LD_PRELOAD", ""), reason=reason)


STARTS_PROCESSES = not_under("tsan", "no process starts under that sanitizer")


def seed(value=0):
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def address(tensor):
    """Where the elements are, without waking the storage hook."""
    if hasattr(tensor, "const_data_ptr"):
        return tensor.const_data_ptr()
    # torch 2.11 and 2.12 tell where the storage begins.
    return torch._C._data_address(tensor) + tensor.storage_offset() * tensor.element_size()


# ---------------------------------------------------------------------------------------------------------------- bits


class Bits:
    """One tensor or storage as plain data: what describes it, and its bytes in private memory."""

    __slots__ = ("data", "meta")

    def __init__(self, meta, data):
        self.meta, self.data = meta, data

    def __eq__(self, other):
        if not isinstance(other, Bits) or self.meta != other.meta or len(self.data) != len(other.data):
            return False
        return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(self.data, other.data, strict=True))

    def __repr__(self):
        head = [part.reshape(-1)[:16].tolist() for part in self.data]
        return f"Bits({self.meta}, first bytes {head})"


def element_bytes(tensor):
    """The elements of a dense tensor as private uint8 memory, in logical order."""
    private = tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return private.reshape(-1).view(torch.uint8)


def tensor_bits(tensor, layout=False):
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        if torch.nn.parameter.is_lazy(tensor):
            return Bits(("uninitialized", tensor.requires_grad), [])
        plain = tensor.detach()
        shape = "nested" if plain.is_nested else tuple(tensor.shape)  # a ragged size is another symbol each time
        meta = [str(tensor.dtype), shape, str(tensor.device), tensor.requires_grad, str(tensor.layout)]
        if plain.device.type == "meta":
            return Bits(tuple(meta), [])
        if plain.is_quantized:
            meta.append(str(plain.qscheme()))
            per_channel = "channel" in str(plain.qscheme())
            scale = plain.q_per_channel_scales() if per_channel else torch.tensor(plain.q_scale())
            return Bits(tuple(meta), [element_bytes(plain.int_repr()), element_bytes(scale)])
        if plain.layout == torch.sparse_coo:
            return Bits(
                (*meta, plain.is_coalesced()), [element_bytes(plain._indices()), element_bytes(plain._values())]
            )
        if plain.layout in (torch.sparse_csr, torch.sparse_bsr):
            parts = (plain.crow_indices(), plain.col_indices(), plain.values())
            return Bits(tuple(meta), [element_bytes(part) for part in parts])
        if plain.layout != torch.strided or plain.is_nested:
            return Bits(tuple(meta), [element_bytes(part) for part in plain.unbind()] if plain.is_nested else [])
        meta.append(tuple(tensor.stride()))
        if layout:
            meta += [tensor.storage_offset(), tensor.untyped_storage().nbytes(), tensor.is_inference()]
        return Bits(tuple(meta), [element_bytes(plain)])


def storage_bits(storage):
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return Bits(("storage", storage.nbytes()), [whole.clone()])


# -------------------------------------------------------------------------------------------------------------- freeze

ATOMIC = (type(None), bool, int, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum)
SAME_OBJECT = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)


class _Freezer:
    def __init__(self, layout):
        self.layout, self.leaves, self.seen, self.storages, self.alive = layout, {}, {}, {}, []

    def put(self, path, value):
        self.leaves[path] = value

    def walk(self, obj, path):
        if isinstance(obj, ATOMIC):
            return self.put(path, obj)
        if isinstance(obj, torch.SymInt):
            return self.put(path, ("type", "SymInt"))
        if isinstance(obj, (float, complex)):
            return self.put(path, repr(obj))
        if isinstance(obj, SAME_OBJECT):
            name = getattr(obj, "__qualname__", "")
            return self.put(path, ("object", name, None if "<locals>" in name else id(obj)))
        if id(obj) in self.seen:
            return self.put(path, ("tied to", self.seen[id(obj)]))
        self.seen[id(obj)] = path
        self.alive.append(obj)
        self.put(path, ("type", type(obj).__qualname__))
        if isinstance(obj, torch.Tensor):
            return self.tensor(obj, path)
        if isinstance(obj, (torch.UntypedStorage, torch.TypedStorage)):
            untyped = obj if isinstance(obj, torch.UntypedStorage) else obj._untyped_storage
            self.put(path + ".bytes", storage_bits(untyped))
            return self.storage(untyped, path)
        if isinstance(obj, torch.Generator):
            return self.put(path + ".state", tensor_bits(obj.get_state()))
        if isinstance(obj, np.ndarray):
            return self.put(path + ".array", (obj.dtype.str, obj.shape, obj.tobytes()))
        if isinstance(obj, weakref.ref):
            return self.walk(obj(), path + "()")
        if isinstance(obj, types.MethodType):
            self.walk(obj.__self__, path + ".__self__")
            return self.walk(obj.__func__, path + ".__func__")
        if isinstance(obj, RemovableHandle):
            return self.put(path + ".alive", obj.hooks_dict_ref() is not None)
        if isinstance(obj, functools.partial):
            return self.walk([obj.func, obj.args, obj.keywords], path + ".partial")
        return self.plain(obj, path)

    def plain(self, obj, path):
        if isinstance(obj, dict):
            # The keys of hooks come from a global counter.
            named = (str,) if "hooks" in path.rpartition(".")[2] else (str, int)
            labels = [repr(key) if isinstance(key, named) else f"#{index}" for index, key in enumerate(obj)]
            self.put(path + ".order", labels)
            for label, (key, value) in zip(labels, obj.items(), strict=True):
                if not isinstance(key, (str, int)):
                    self.walk(key, f"{path}.key{label}")
                self.walk(value, f"{path}[{label}]")
        elif isinstance(obj, (list, tuple, collections.deque)):
            for index, value in enumerate(obj):
                self.walk(value, f"{path}[{index}]")
        elif isinstance(obj, (set, frozenset)):
            self.put(path + ".set", sorted(map(repr, obj)) if all(isinstance(x, ATOMIC) for x in obj) else len(obj))
        attributes = getattr(obj, "__dict__", {})
        self.put(path + ".attributes", list(attributes))
        for name, value in attributes.items():
            self.walk(value, f"{path}.{name}")
        for base in type(obj).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                    self.walk(getattr(obj, name), f"{path}.{name}")

    def tensor(self, obj, path):
        self.put(path + ".bits", tensor_bits(obj, self.layout))
        if torch.nn.parameter.is_lazy(obj):
            return
        # Sparse, nested and wrapper tensors have no storage of their own.
        with contextlib.suppress(NotImplementedError, RuntimeError):
            self.storage(obj.untyped_storage(), path)
        if obj.is_leaf and obj.grad is not None:
            self.walk(obj.grad, path + ".grad")
        for name, value in obj.__dict__.items():
            self.walk(value, f"{path}.{name}")

    def storage(self, storage, path):
        if storage.device.type == "meta" or storage.nbytes() == 0:
            return
        first = self.storages.setdefault(storage._cdata, path)
        self.alive.append(storage)
        if first != path:
            self.put(path + ".storage", ("storage of", first))


def freeze(obj, layout=False):
    """An object graph as flat plain data, path by path: types, ties, storage aliasing, and every byte."""
    freezer = _Freezer(layout)
    with torch.no_grad():
        freezer.walk(obj, "x")
    return freezer.leaves


def difference(want, got, limit=8):
    """The paths at which two frozen graphs differ, as text; empty when they are the same."""
    lines = []
    for path in dict.fromkeys([*want, *got]):
        missing = object()
        a, b = want.get(path, missing), got.get(path, missing)
        if a is missing or b is missing:
            lines.append(f"{path}: only in {'got' if a is missing else 'want'}")
        elif not (type(a) is type(b) and a == b):
            lines.append(f"{path}: expected {a!r}, got {b!r}")
    return "\n".join(lines[:limit])


def assert_same(want, got, what):
    """`want` and `got` are objects or frozen graphs; they must agree bit by bit."""
    want = want if isinstance(want, dict) and "x" in want else freeze(want)
    got = got if isinstance(got, dict) and "x" in got else freeze(got)
    text = difference(want, got)
    assert not text, f"{what}:\n{text}"


# ------------------------------------------------------------------------------------------------------------- writing


def attempt(function, *args, **kwargs):
    """('returned', value), or ('raised', type of the exception)."""
    seed(1)
    try:
        return "returned", function(*args, **kwargs)
    except Exception as error:  # whatever torch raises, the clone must raise as well
        return "raised", type(error)


def raised_alike(want, got, what):
    """Two results of `attempt` must have ended alike; says whether both raised."""
    assert got[0] == want[0], f"{what}: expected {want}, got {got}"
    raised = want[0] == "raised"
    if raised:
        assert got[1] is want[1], f"{what}: expected {want[1]}, got {got[1]}"
    return raised


def tensors_of(obj):
    """All tensors of an object graph, each once."""
    freezer = _Freezer(False)
    with torch.no_grad():
        freezer.walk(obj, "x")
    return [x for x in freezer.alive if isinstance(x, torch.Tensor)]


def assert_adds_up(*objects):
    """Fair shares of all relatives together are the bytes that are really allocated."""
    total = torchcow.memory(*objects)
    assert abs(total.fair_share - total.unique) <= 1e-6 * max(1, total.unique), vars_of(total)
    alone = sum(torchcow.memory(one).fair_share for one in objects)
    assert abs(alone - total.unique) <= 1e-6 * max(1, total.unique), (alone, vars_of(total))
    assert total.private + total.shared == total.unique, vars_of(total)


def vars_of(report):
    return {name: getattr(report, name) for name in ("logical", "unique", "private", "shared", "fair_share")}


ORDERS = (
    ("source", "first", "second", "grandchild"),
    ("grandchild", "second", "first", "source"),
    ("first", "source", "grandchild", "second"),
)


def build(make):
    seed(0)
    return make()


def check_isolation(make, write, *, orders=ORDERS, writes=True, adds_up=True, target=None):
    """Four relatives, written one after the other, in several orders; after each write all four match their oracles.

    `make()` builds an object, always the same one; `write(obj)` writes it. The oracle of the source is another
    ``make()``, that of a clone is a deep copy of one. `target(obj)`, if given, picks what is written: for the source
    before the clones are made (a view taken before the clone), for the clones afterwards.
    `writes=False` says that the write leaves no trace, so that the test does not insist on one.
    """
    pick = target or (lambda obj: obj)
    for order in orders:
        source = build(make)
        early = pick(source)
        first, second = torchcow.clone(source), torchcow.clone(source)
        grandchild = torchcow.clone(first)
        family = {"source": source, "first": first, "second": second, "grandchild": grandchild}
        oracle = {name: build(make) if name == "source" else copy.deepcopy(build(make)) for name in family}
        untouched = freeze(oracle["first"])
        for name in order:
            want = attempt(write, pick(oracle[name]))
            got = attempt(write, early if name == "source" else pick(family[name]))
            raised_alike(want, got, f"writing {name}")
            for relative in family:
                what = f"order {'-'.join(order)}, after writing {name}, looking at {relative}"
                assert_same(oracle[relative], family[relative], what)
            if writes and name != "source":
                assert difference(untouched, freeze(oracle[name])), "this write changes nothing: it proves nothing"
            torchcow.testing.verify()
        if adds_up:
            del early
            assert_adds_up(*family.values())


def regrown(tensor):
    """Frees the tensor's memory and takes new of the same size; returns the storage, whose bytes are not set."""
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    return storage


def saved_and_loaded(obj):
    file = io.BytesIO()
    torch.save(obj, file)
    file.seek(0)
    return torch.load(file)


def run_script(code, *args, options=("-X", "faulthandler"), timeout=120):
    """Run a program in a fresh interpreter; it must end by itself, with status 0. Returns what it printed."""
    command = [sys.executable, *options, "-c", code, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def ways(clear=True):
    """How the writes since the last call were paid for: 'steal', 'copy', 'skip', in order."""
    return [event.way for event in torchcow.events(clear=clear) if event.kind == "materialize"]


def eager_reasons(clear=True):
    return [event.reason for event in torchcow.events(clear=clear) if event.kind == "eager"]
