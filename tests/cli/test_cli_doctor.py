# SPDX-License-Identifier: Apache-2.0
"""``doctor``: what it finds, what it calls degraded or broken, and that each such line has a reason and a remedy.

Catches: a broken engine that is not seen, something degraded that fails the command, a complaint without a remedy.
"""

from __future__ import annotations

import copy
import json
import os
import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("typer")

import torchcow
from torchcow_cli import checks, main, selftest

INFO = torchcow._C.build_info()
BUILT = {name: getattr(INFO, name) for name in ("torch", "write_hook", "covered_operators", "cuda_kernels")}


def finding(check, topic=None):
    found = [one for one in check() if topic is None or one.topic == topic]
    assert found
    return found[0]


def complains(one, state, *words):
    assert one.state == state
    assert one.why and one.remedy, "a complaint says why, and what to do"
    for word in words:
        assert word in f"{one.found} {one.why} {one.remedy}"
    return True


def test_this_machine_is_fit(capsys):
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {one["topic"]: one for one in told["findings"]}
    assert told["state"] in ("ok", "degraded")
    assert found["self test, cpu"]["state"] == "ok"
    assert torch.__version__ in found["torch"]["found"]
    assert f"built against torch {BUILT['torch']}" in found["torchcow"]["found"]
    assert int(found["barrier"]["found"].split()[0]) > 1000
    assert all((one["why"] and one["remedy"]) or one["state"] == "ok" for one in told["findings"])
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out
    assert all(one["found"] in lines for one in told["findings"] if one["topic"] != "memory")


@pytest.mark.sharing
def test_a_broken_engine_is_code_1(monkeypatch, capsys):
    monkeypatch.setattr(checks, "CHECKS", ())
    monkeypatch.setattr("torchcow.clone", lambda model: model)
    assert main(["doctor", "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)["findings"]
    assert told["state"] == "broken" and "a clone does not share" in told["why"] and told["remedy"]
    assert "changed its source" in told["why"] and "changed its clones" in told["why"]
    monkeypatch.setattr("torchcow.clone", copy.deepcopy)
    assert complains(finding(selftest.self_test), "broken", "a clone does not share memory; clones save no memory")

    def fails(model):
        raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr("torchcow.clone", fails)
    assert complains(finding(selftest.self_test), "broken", "RuntimeError: no such thing")


def test_what_is_degraded_is_no_failure(monkeypatch, tmp_path, capsys):
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(checks, "CHECKS", (lambda: checks.huge_pages(tmp_path),))
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"^degraded +huge pages +never *\n +why +first writes .*\n +remedy +as root: echo madvise > ", told
    )
    assert told.endswith("2 ok, 1 degraded\n")


@pytest.mark.parametrize(
    ("text", "state", "found"),
    [
        ("always [madvise] never\n", "ok", "madvise"),
        ("[always] madvise never\n", "ok", "always"),
        (None, "degraded", "unknown"),
    ],
)
def test_huge_pages(text, state, found, tmp_path):
    if text is not None:
        (tmp_path / "enabled").write_text(text)
    one = finding(lambda: checks.huge_pages(tmp_path))
    assert (one.state, one.found) == (state, found)


@pytest.mark.parametrize(
    ("change", "topic", "state", "word"),
    [
        ({"write_hook": "cow"}, "write hook", "degraded", "torch 2.13 or newer"),
        ({"write_hook": "materializer"}, "write hook", "ok", "materializer"),
        ({"covered_operators": 0}, "barrier", "broken", "build torchcow again"),
    ],
)
def test_the_engine(change, topic, state, word, monkeypatch):
    monkeypatch.setattr(checks._C, "build_info", lambda: SimpleNamespace(**BUILT | change))
    one = finding(checks.engine, topic)
    assert one.state == state
    assert state == "ok" or complains(one, state, word)


def test_python_with_free_threading(monkeypatch):
    assert finding(checks.python).state == "ok"
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: name == "Py_GIL_DISABLED")
    assert complains(finding(checks.python), "degraded", "interpreter lock")


def test_gpus_are_listed_with_what_copies_on_them(monkeypatch):
    class About:
        name, major, minor = "Some GPU", 9, 0

    for name, value in (("is_available", True), ("device_count", 1), ("mem_get_info", (10**9, 2 * 10**9))):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, value=value: value)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: About)
    monkeypatch.setattr(checks._C, "build_info", lambda: SimpleNamespace(cuda_kernels="CUDA kernels"))
    assert finding(checks.devices, "GPU").found == "0: Some GPU, compute capability 9.0, 1.00 GB of 2.00 GB free"
    assert finding(checks.devices, "GPU copies").state == "ok"
    status = "CUDA driver copies (built without nvcc)"
    monkeypatch.setattr(checks._C, "build_info", lambda: SimpleNamespace(cuda_kernels=status))
    assert complains(finding(checks.devices, "GPU copies"), "degraded", "built without nvcc")


def test_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    assert finding(checks.threads).state == "ok"
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert complains(finding(checks.threads), "degraded", "unset OMP_NUM_THREADS (it is 1)")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert complains(finding(checks.threads), "degraded", "torch.set_num_threads")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert finding(checks.threads).state == "ok"


def test_memory(monkeypatch):
    assert finding(checks.memory).found
    monkeypatch.setattr("torchcow.headroom", lambda: 10**8)
    assert complains(finding(checks.memory), "degraded", "100.00 MB available")


def test_who_has_patched_deepcopy(monkeypatch):
    monkeypatch.delenv("TORCHCOW_PATCH", raising=False)
    one = finding(checks.deepcopy)
    assert one.state == "ok" and "Python's own" in one.found
    with torchcow.patch():
        assert "patched by torchcow.patch()" in finding(checks.deepcopy).found
        monkeypatch.setenv("TORCHCOW_PATCH", "1")
        assert "patched by TORCHCOW_PATCH" in finding(checks.deepcopy).found
    assert complains(finding(checks.deepcopy), "degraded", "TORCHCOW_PATCH is set", "install torchcow")
    monkeypatch.setattr(copy, "deepcopy", lambda x, memo=None: x)
    assert complains(finding(checks.deepcopy), "degraded", "test_cli_doctor", "torchcow.clone works")
    monkeypatch.setattr(copy, "deepcopy", print)
    assert complains(finding(checks.deepcopy), "degraded", "no Python code")


def test_missing_libraries(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert complains(finding(checks.libraries, "rich"), "degraded", "pip install rich")
    assert finding(checks.libraries, "scikit-learn").state == "ok", "only needed by those who use it"


def test_two_copies_of_the_package(monkeypatch):
    monkeypatch.setattr(checks, "_version", lambda package: "0.0.9")
    assert complains(finding(checks.versions, "torchcow"), "degraded", "0.0.9", "PYTHONPATH")
