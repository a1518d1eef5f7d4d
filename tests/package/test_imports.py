# SPDX-License-Identifier: Apache-2.0
"""``import torchcow`` loads the engine and nothing else, and each public name means one thing.

Catches: a report, a registry, adapters or a third library that load with the package or with a clone; a public name
that is not found, not listed, or also the name of a submodule; a name that only type checkers know.
"""

from __future__ import annotations

import ast
import importlib
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import torchcow
from support.oracle import STARTS_PROCESSES

#: By wing: all that `import torchcow` may load once torch is there.
ENGINE = {
    "torchcow": {"torchcow", "torchcow._native", "torchcow._C"},
    "torchcow.engine": {
        "torchcow.engine",
        "torchcow.engine.clone",
        "torchcow.engine.cuda_graphs",
        "torchcow.engine.hooks",
        "torchcow.engine.names",
    },
}
ABSENT = ("sqlite3", "rich", "typer", "safetensors", "matplotlib", "keras", "sklearn")

LOADED = """
import sys
import torch
before = set(sys.modules)
def show():  # without the modules that torch itself loads when it is used
    print(*(name for name in set(sys.modules) - before if not name.startswith("torch.")))
import torchcow
show()
model = torch.nn.Linear(64, 64)
variant = torchcow.clone(model)
with torch.no_grad():
    variant.weight.zero_()
    model.weight.data_ptr()
show()
"""


@STARTS_PROCESSES
def test_the_package_and_a_clone_load_the_engine_only():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    allowed = set().union(*ENGINE.values())
    for when, line in zip(("import", "clone"), done.stdout.splitlines(), strict=True):
        assert set(line.split()) == allowed, when
    assert not allowed & {*ABSENT}


@STARTS_PROCESSES
@pytest.mark.parametrize("library", ABSENT)
def test_the_package_needs_no_third_library(library):
    code = f"import sys; sys.modules[{library!r}] = None; from torchcow import *; import torchcow.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", torchcow.__all__)
def test_each_name_means_one_thing(name):
    public = getattr(torchcow, name)
    assert public.__module__.startswith("torchcow.") and public.__name__ == name
    assert getattr(importlib.import_module(public.__module__), name) is public
    assert name not in {module.name for module in pkgutil.iter_modules(torchcow.__path__)}
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"torchcow.{name}")
    assert pickle.loads(pickle.dumps(public)) is public


def test_an_import_of_everything_gives_the_public_names():
    names: dict[str, object] = {}
    exec("from torchcow import *", names)
    assert set(torchcow.__all__) == names.keys() - {"__builtins__"}
    assert set(torchcow.__all__) <= set(dir(torchcow))
    assert torchcow.__all__ == sorted(torchcow.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'torchcow' has no attribute 'clones'"):
        torchcow.clones  # noqa: B018
    with pytest.raises(ImportError):
        from torchcow import clones  # noqa: F401


def test_subpackages_load_when_they_are_used():
    code = """
import sys, torchcow
assert "torchcow.registry" not in sys.modules
assert torchcow.registry.Registry is torchcow.Registry
assert not hasattr(torchcow, "testing"), "it arms checksums, so it must be imported on purpose"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_type_checkers_and_the_interpreter_know_the_same_names():
    (block,) = (
        node
        for node in ast.parse(Path(torchcow.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = {node.module.removeprefix("torchcow."): tuple(alias.name for alias in node.names) for node in block.body}
    assert imports == torchcow._MODULES
    assert {name for names in imports.values() for name in names} | {"clone"} == set(torchcow.__all__)
