# SPDX-License-Identifier: Apache-2.0
"""``patch``: deep copies of code that was never changed share memory; everything is put back exactly.

Catches: an importer by name that is not reached, a patch that outlives its end or ends too early, excluded classes that
share, a result that differs from ``copy.deepcopy``'s.
"""

from __future__ import annotations

import collections
import copy
import inspect
import os
import re
import site
import subprocess
import sys
import textwrap
import threading
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import torchcow
import torchcow_startup
from support.oracle import STARTS_PROCESSES, assert_same, eager_reasons

ORIGINAL = copy.deepcopy.__code__


def model():
    return nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16))


def shared(obj):
    return [torchcow.is_shared(x) for x in (*obj.parameters(), *obj.buffers())]


@pytest.fixture(autouse=True)
def restored():
    names, defaults = dict(vars(copy)), copy.deepcopy.__defaults__
    yield
    assert copy.deepcopy.__code__ is ORIGINAL
    assert copy.deepcopy.__defaults__ is defaults
    assert vars(copy) == names


@pytest.mark.sharing
def test_all_that_copies_modules_shares():
    source = model()
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    source(torch.rand(4, 16)).sum().backward()
    optimizer.step()
    with torchcow.patch():
        copies = {
            "copy.deepcopy": copy.deepcopy(source),
            "imported by name": deepcopy(source),
            "with a memo": copy.deepcopy(source, {}),
            "within a list": copy.deepcopy([source])[0],
            "AveragedModel": AveragedModel(source).module,
            "fx": copy.deepcopy(torch.fx.symbolic_trace(source)),
            "optimizer": copy.deepcopy((source, optimizer))[0],
        }
        moved = copy.deepcopy((source, optimizer))[1]
    for name, one in copies.items():
        assert all(shared(one)), name
        for key, value in source.state_dict().items():
            assert torch.equal(one.state_dict()[key], value), name
    assert all(torchcow.is_shared(x["momentum_buffer"]) for x in moved.state.values())
    assert not any(shared(copy.deepcopy(source)))
    with torch.no_grad():
        source[0].weight.zero_()
    assert all(one.state_dict()["0.weight"].any() for one in copies.values())


def test_the_function_looks_as_before():
    signature = inspect.signature(copy.deepcopy)
    function = copy.deepcopy
    with torchcow.patch():
        assert copy.deepcopy is function
        assert inspect.signature(copy.deepcopy) == signature
        assert copy.deepcopy([1], None, []) == [1]
        assert copy.deepcopy(x=[1], memo={}) == [1]
        with pytest.raises(TypeError, match=r"deepcopy\(\) missing 1 required positional argument: 'x'"):
            copy.deepcopy()


@pytest.mark.sharing
def test_as_a_call_and_in_any_order():
    source = model()
    first = torchcow.patch()
    second = torchcow.patch(exclude=nn.Linear)
    assert shared(copy.deepcopy(source))[0] is False
    first.remove()
    assert any(shared(copy.deepcopy(source)))
    third = torchcow.patch()
    second.remove()
    second.remove()
    assert all(shared(copy.deepcopy(source)))
    third.remove()
    assert not any(shared(copy.deepcopy(source)))


@pytest.mark.sharing
def test_the_patch_ends_when_the_block_raises():
    with pytest.raises(ZeroDivisionError), torchcow.patch():
        1 / 0  # noqa: B018
    assert not any(shared(copy.deepcopy(model())))


@pytest.mark.sharing
def test_excluded_classes_are_copied_at_once_with_all_they_hold():
    source = nn.ModuleDict({"a": model(), "b": nn.Sequential(nn.Linear(4, 4))})
    source["tied"] = source["b"][0]
    oracle = copy.deepcopy(source)
    with torchcow.patch(exclude=[nn.BatchNorm1d]):
        got = copy.deepcopy(source)
    assert_same(oracle, got, "with an excluded class")
    assert shared(got["a"]) == [True, True, False, False, True, True, False, False, False]
    assert set(eager_reasons()) == {"excluded"}
    assert got["tied"] is got["b"][0]

    class Own(nn.Sequential):
        pass

    with torchcow.patch(exclude=(nn.Sequential,)):
        whole = copy.deepcopy([source, Own(nn.Linear(3, 3))])
        assert all(shared(copy.deepcopy(nn.Linear(3, 3))))
    # What was met before the excluded object, or outside of it, shares.
    assert not any(shared(whole[0]["a"]))
    assert not any(shared(whole[1])), "subclasses are excluded too"
    assert_same([oracle], whole[:1], "with an excluded root")


@pytest.mark.sharing
def test_one_ordinary_copy():
    source = model()
    with torchcow.patch():
        one = torchcow.deepcopy(source)
        assert not any(shared(one))
        memo = {}
        torchcow.deepcopy(source, memo)
        assert memo[id(source[0].weight)] is not source[0].weight
    assert_same(source, one, "an ordinary copy")
    assert not any(shared(torchcow.deepcopy(source)))
    assert not eager_reasons()


def test_bad_arguments():
    with pytest.raises(TypeError, match="expected classes, got 'Linear' of type str"):
        torchcow.patch(exclude=["Linear"])
    with torchcow.patch():
        with pytest.raises(AttributeError):
            copy.deepcopy([1], "bad")
        user = collections.UserDict()
        source = model()
        assert_same(source, copy.deepcopy(source, user), "with a UserDict")
        assert id(source) in user


def replacement(x, memo=None):
    return x


def test_a_replacement_is_named(monkeypatch):
    line = replacement.__code__.co_firstlineno
    with monkeypatch.context() as patched:
        patched.setattr(copy, "deepcopy", replacement)
        named = re.escape(f"replaced by {__name__}.replacement ({__file__}:{line})")
        with pytest.raises(RuntimeError, match=named):
            torchcow.patch()
        patched.setattr(copy, "deepcopy", print)
        with pytest.raises(RuntimeError, match=r"replaced by builtins.print \(no Python code\)"):
            torchcow.patch()
    with monkeypatch.context() as patched:
        patched.setattr(copy.deepcopy, "__code__", replacement.__code__)
        with pytest.raises(RuntimeError, match=re.escape(f"({__file__}:{line})")):
            torchcow.patch()


@STARTS_PROCESSES
def test_a_replacement_from_before_the_import_is_not_patched():
    code = """
import copy
def replacement(x, memo=None, _nil=()): return x
copy.deepcopy = replacement
import torch, torchcow
try:
    torchcow.patch()
except RuntimeError as error:
    print(error)
"""
    assert "it was replaced by __main__.replacement (<string>:3)" in run("-c", code)[1]


def test_many_threads_patch_and_copy():
    source, problems, stop = model(), [], threading.Event()

    def copies():
        while not stop.is_set():
            one = copy.deepcopy(source)
            if not torch.equal(one[0].weight, source[0].weight) or one[0].weight is source[0].weight:
                problems.append("another weight")

    def patches():
        for _ in range(200):
            with torchcow.patch(), torchcow.patch(exclude=nn.Linear):
                copy.deepcopy([1])

    workers = [threading.Thread(target=copies) for _ in range(2)]
    patching = [threading.Thread(target=patches) for _ in range(2)]
    for thread in workers + patching:
        thread.start()
    for thread in patching:
        thread.join()
    stop.set()
    for thread in workers:
        thread.join()
    assert not problems


SCRIPT = """
import copy, sys
from copy import deepcopy
import torch
model = torch.nn.Linear(64, 64)
import torchcow
print(torchcow.is_shared(deepcopy(model).weight), sys.argv[1:], __name__, sys.path[0] == sys.argv[1])
sys.exit(int(sys.argv[2]))
"""


def run(*command, patch=None):
    environment = {key: value for key, value in os.environ.items() if key != "TORCHCOW_PATCH"}
    if patch is not None:
        environment["TORCHCOW_PATCH"] = patch
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr


@STARTS_PROCESSES
def test_a_script_is_run_unchanged(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    code, out, err = run("-m", "torchcow", "run", str(script), str(tmp_path), "3", "--option")
    assert (code, out) == (3, f"True ['{tmp_path}', '3', '--option'] __main__ True"), err
    assert run(str(script), str(tmp_path), "0")[1].startswith("False")
    code, _, err = run("-m", "torchcow", "run", str(tmp_path / "missing.py"))
    assert code == 2, "as with plain Python"
    assert "missing.py" in err
    assert err.count("\n") == 1


@STARTS_PROCESSES
def test_a_module_is_run_unchanged():
    code, out, err = run("-m", "torchcow", "run", "-m", "timeit", "-n", "1", "-r", "1", "import copy; copy.deepcopy(1)")
    assert code == 0, err
    assert "1 loop" in out


INSTALLED = pytest.mark.skipif(
    not any(Path(torchcow.__file__).is_relative_to(folder) for folder in site.getsitepackages()),
    reason="the package is not installed, so nothing is read when the interpreter starts",
)


@STARTS_PROCESSES
@INSTALLED
@pytest.mark.parametrize("value", ["1", "0", "false"])
def test_the_environment_turns_it_on(value, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    code, out, err = run(str(script), str(tmp_path), "0", patch=value)
    assert (code, err) == (0, "")
    assert out.startswith(str(value == "1"))
    code, out, err = run("-c", "import sys; print('torch' in sys.modules, 'torchcow' in sys.modules)", patch=value)
    assert (code, out, err) == (0, "False False", "")


@STARTS_PROCESSES
@INSTALLED
def test_a_value_that_makes_no_sense_is_reported_and_ignored():
    code, out, err = run("-c", "import sys; print(*map(type, sys.meta_path))", patch="ture")
    assert (code, "_AfterTorch" in out) == (0, False)
    assert err.startswith("torchcow: error: TORCHCOW_PATCH='ture' is ignored: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "requested"),
    [*((v, True) for v in ("1", "true", "Yes", "ON", " on ")), *((v, False) for v in ("", "0", "False", "no", "OFF"))],
)
def test_values_of_the_environment(value, requested, monkeypatch, capsys):
    monkeypatch.setenv("TORCHCOW_PATCH", value)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(torchcow_startup, "_started", False)
    before = len(sys.meta_path)
    torchcow_startup.start()
    torchcow_startup.start()
    assert torchcow_startup.is_requested() is requested is (len(sys.meta_path) == before + 1)
    assert capsys.readouterr().err == ""
