# SPDX-License-Identifier: Apache-2.0
"""The hand-written stub of the extension says what the built module has.

Catches: a function, record or field that was added, renamed or given other arguments, defaults or types in the
bindings, and not in ``_C.pyi``; a result that is a tuple, whose parts have no names.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import torchcow
from torchcow import _C

STUB = Path(torchcow.__file__).with_name("_C.pyi").read_text()
RECORDS = {name: value for name, value in vars(_C).items() if isinstance(value, type)}


def plain(annotation):
    """The same type in one spelling: releases of pybind11 differ, and only the module knows its own name."""
    text = re.sub(r"(typing\.SupportsInt)( \| typing\.SupportsIndex)?", "int", annotation)
    text = re.sub(r"(typing\.)?Optional\[([\w.]+)\]", r"\2 | None", text)
    return re.sub(r"\b(collections\.abc|torchcow\._C|typing)\.", "", text)


def signature(function):
    """What a function definition says: {parameter: (type, default)}, and ``return``."""
    arguments = [argument for argument in function.args.args if argument.arg != "self"]
    defaults = [None] * (len(arguments) - len(function.args.defaults)) + function.args.defaults
    described = {
        argument.arg: (plain(ast.unparse(argument.annotation)), default and ast.unparse(default))
        for argument, default in zip(arguments, defaults, strict=True)
    }
    return described | {"return": (plain(ast.unparse(function.returns)), None)}


def stub_signatures(text):
    signatures = {}
    for node in ast.parse(text).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for member in members:
            if isinstance(member, ast.FunctionDef):
                kind = "field " if member.decorator_list else ""
                signatures[kind + prefix + member.name] = signature(member)
    return signatures


def built_signature(documentation):
    """pybind11 writes the signature into the first line of the documentation; a getter's has no name."""
    line = documentation.strip().splitlines()[0]
    return signature(ast.parse(f"def {line if line[0] != '(' else 'get' + line}: ...").body[0])


def built_signatures():
    signatures = {}
    for name, value in vars(_C).items():
        if isinstance(value, type):
            for key, member in vars(value).items():
                if isinstance(member, property):
                    assert member.fset is None, f"{name}.{key} can be written"
                    getter = built_signature(member.fget.__doc__)
                    signatures[f"field {name}.{key}"] = {"return": getter["return"]}
                elif callable(member) and not key.startswith("_"):
                    signatures[f"{name}.{key}"] = built_signature(member.__doc__)
        elif callable(value) and not name.startswith("__"):
            signatures[name] = built_signature(value.__doc__)
    return signatures


def same_type(stub, built):
    """The stub may know more: what a list holds, and what an ``object`` is."""
    return built in ("object", stub) or ("[" not in built and stub.startswith(f"{built}["))


def differences(text):
    stub, built = stub_signatures(text), built_signatures()
    found = [f"{name} is not in both" for name in stub.keys() ^ built.keys()]
    for name in stub.keys() & built.keys():
        if list(stub[name]) != list(built[name]):
            found.append(f"{name} has the parameters {list(built[name])}, not {list(stub[name])}")
            continue
        for part, (annotation, default) in stub[name].items():
            built_annotation, built_default = built[name][part]
            if not same_type(annotation, built_annotation):
                found.append(f"{name}, {part}: {built_annotation}, not {annotation}")
            if default != built_default:
                found.append(f"{name}, {part}: the default is {built_default}, not {default}")
    return found


def test_the_stub_matches_the_built_module():
    assert differences(STUB) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def totals(", "def sums("),
        ("def graph_was_captured() -> None: ...\n", ""),
        ("def block_bytes(self)", "def size_of_block(self)"),
        ("def block_bytes(self) -> int", "def block_bytes(self) -> str"),
        ("(self) -> list[Damage]", "(self) -> list[Event]"),
        ("def usage(tensor:", "def usage(leaf:"),
        ("events(clear: bool)", "events(clear: int)"),
        ("-> list[Usage | None]", "-> list[Usage]"),
        ("def covered(self) -> list[bool]", "def covered(self, index: int) -> list[bool]"),
        ("events(clear: bool)", "events(clear: bool = False)"),
        ("] | None = None,", "] | None,"),
        ("reducers: tuple", "*, reducers: tuple"),
    ],
)
def test_a_stub_that_drifts_is_found(old, new):
    assert STUB.count(old) == 1
    assert differences(STUB.replace(old, new))


def test_no_result_is_a_tuple_or_a_dict():
    """Parts of a result have names: it cannot be indexed or unpacked. Invariants alone are looked up by number."""
    for name, described in built_signatures().items():
        assert name == "invariants" or not re.search(r"\b(tuple|dict)\b", described["return"][0]), name
    assert {"Usage", "Event", "Totals"} <= RECORDS.keys()
    for name, record in RECORDS.items():
        assert not {"__getitem__", "__iter__", "__len__"} & set(dir(record)), name


def test_records_say_what_they_are():
    for name, record in RECORDS.items():
        fields = [key for key, member in inspect.getmembers(record) if isinstance(member, property)]
        methods = [key for key, member in vars(record).items() if callable(member) and not key.startswith("_")]
        assert bool(fields) != bool(methods), f"{name} is a record or a handle, not both"
