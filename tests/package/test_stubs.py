"""The hand-written stub of the extension says what the built module has.

Catches: a function that was added, renamed or given other arguments in the bindings, and not in ``_C.pyi``.
"""

import ast
import re
from pathlib import Path

import torchcow
from torchcow import _C

STUB = Path(torchcow.__file__).with_name("_C.pyi")


def stub_signatures():
    found = {}
    for node in ast.parse(STUB.read_text()).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for member in members:
            if isinstance(member, ast.FunctionDef):
                found[prefix + member.name] = [a.arg for a in member.args.args]
    return found


def built_signature(function):
    arguments = re.search(r"\((.*)\) ->", function.__doc__.splitlines()[0]).group(1)
    return re.findall(r"(\w+): ", arguments)


def built_signatures():
    found = {}
    for name, value in vars(_C).items():
        if name.startswith("__"):
            continue
        if isinstance(value, type):
            for key, member in vars(value).items():
                if callable(member) and not key.startswith("_"):
                    found[f"{name}.{key}"] = built_signature(member)
        elif callable(value):
            found[name] = built_signature(value)
    return found


def test_the_stub_matches_the_built_module():
    assert stub_signatures() == built_signatures()
