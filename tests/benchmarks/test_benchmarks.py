# SPDX-License-Identifier: Apache-2.0
"""Each benchmark works and finds the right answer, and what they are made of flatters no method."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from support import ROOT

BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="not a checkout")
pytest.importorskip("pytest_benchmark", reason="make venv installs it")
sys.path.insert(0, str(BENCHMARKS))

import baselines  # noqa: E402
import device  # noqa: E402
import eight_billion  # noqa: E402
import machine  # noqa: E402
import record  # noqa: E402
import zoo  # noqa: E402

# The modules above must not depend on what the tests switch on; a benchmark runs as its users run it.
CLEAN = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=CLEAN, timeout=600)


@pytest.mark.slow
def test_every_benchmark_runs_once_and_finds_its_answer():
    process = run("-m", "pytest", "benchmarks", "--tiny", "-v", "-p", "no:cacheprovider", "--benchmark-quiet")
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    passed = set(re.findall(r"^benchmarks/(bench_\w+)\.py::.* PASSED", process.stdout, re.MULTILINE))
    assert passed == {path.stem for path in BENCHMARKS.glob("bench_*.py")} - {"bench_cuda"}


@pytest.mark.slow
def test_the_benchmark_of_gpus_can_be_rehearsed_without_one(tmp_path):
    out = tmp_path / "cuda.json"
    process = run(BENCHMARKS / "bench_cuda.py", "--device", "cpu", "--tiny", "--out", out)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    tables = json.loads(out.read_text())["tables"]
    assert {name for name, rows in tables.items() if not rows} == {"streams"}  # a CPU has none
    assert {row["torchcow.clone"] for row in tables["optimizers"]} == {"isolated"}
    from report import cuda

    section = cuda.section(json.loads(out.read_text()))
    assert "CORRUPTED" not in section
    assert len(re.findall("^### ", section, re.MULTILINE)) == len(cuda.PARTS) == len(tables)


def case():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)).eval()
    return zoo.Case("two layers", model, type(model), {"x": torch.arange(16.0).reshape(2, 8)})


def shallow(change):
    """As copy.deepcopy, but the first weight is the source's."""

    def prepare(case, model):
        def make():
            clone = copy.deepcopy(model)
            change(model, clone)
            return clone

        return make

    return prepare


def share_weight(model, clone):
    clone[0].weight = model[0].weight


def change_buffer(model, clone):
    clone[1].running_mean.add_(1e-6)


def forget_mode(model, clone):
    clone.train()


@pytest.mark.parametrize(
    ("change", "isolated", "message"),
    [
        (share_weight, True, "a write reached the source: 0.weight differs"),
        (share_weight, False, "is more isolated than its label says"),
        (change_buffer, True, "1.running_mean differs"),
        (lambda model, clone: None, False, "is more isolated than its label says"),
    ],
)
def test_a_baseline_that_is_not_what_it_claims_is_not_timed(change, isolated, message):
    one = case()
    baseline = baselines.Baseline(shallow(change), isolated)
    with pytest.raises(AssertionError, match=message):
        baselines.agree("it", baseline, one, one.model, baseline.prepare(one, one.model))


def test_a_baseline_that_computes_something_else_is_not_timed():
    one = case()
    baseline = baselines.Baseline(shallow(forget_mode))
    with pytest.raises(AssertionError, match="other output"):
        baselines.agree("it", baseline, one, one.model, baseline.prepare(one, one.model))


@pytest.mark.parametrize("name", baselines.available())
def test_each_baseline_is_what_it_claims(name):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).eval()
    build = lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))  # noqa: E731
    one = zoo.Case("two layers", model, build, {"x": torch.ones(1, 8)})
    baseline = baselines.BASELINES[name]
    baselines.agree(name, baseline, one, model, baseline.prepare(one, model))


def test_candidates_take_turns_and_setups_and_the_first_round_are_not_timed():
    calls = []
    candidates = {name: (lambda name=name: calls.append(f"set up {name}"), lambda _: None) for name in "ab"}
    clock = iter(range(100))
    times = device.interleaved(candidates, lambda work, state: calls.append("time") or float(next(clock)), 1e9, 3)
    assert calls[:6] == ["set up a", "time", "set up b", "time", "set up a", "time"]
    assert times.seconds == {"a": [2.0, 4.0, 6.0], "b": [3.0, 5.0, 7.0]}
    assert times.rounds == 3
    assert times.ratio("b", "a")["median"] == 5 / 4


def test_slow_candidates_get_three_rounds():
    times = device.interleaved({"a": (lambda: None, lambda _: None)}, lambda work, state: 1.0, 0.0, 25)
    assert times.rounds == 3


def test_the_large_model_has_eight_billion_parameters_of_which_one_percent_is_edited():
    shapes = eight_billion.shapes()
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert count == 8_030_261_248
    with torch.device("meta"):
        model = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    for layer in range(eight_billion.LAYERS):
        names = eight_billion.part(model, 0.01, layer)
        edited = sum(model[name].nbytes for name in names)
        assert 0.0099 < edited / (2 * count) <= 0.01
        assert len(set(names)) == len(names)


def test_a_part_without_memory_costs_no_other_part_its_results(monkeypatch):
    import bench_cuda

    def fails(device):
        yield {"good": 1}
        raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr(bench_cuda, "PARTS", {"one": fails, "two": lambda device: iter([{"good": 2}])})
    stored = []
    tables = bench_cuda.measure(device.Device("cpu", tiny=True), 100, stored.append)
    assert tables["one"] == [{"good": 1}, {"error": "OutOfMemoryError: no memory"}]
    assert tables["two"] == [{"good": 2}]
    assert len(stored) == 2
    late = bench_cuda.measure(device.Device("cpu", tiny=True), -1, stored.append)
    assert late["two"] == [{"error": "not started: out of time"}]


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_results_do_not_count_as_changes_of_code(tmp_path, monkeypatch):
    for name in ("README.md", "docs/page.md", "benchmarks/results/clone.json", "csrc/clone.cpp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    for name in ("README.md", "docs/page.md", "benchmarks/results/clone.json", "docs/new.md"):
        (tmp_path / name).write_text("new")
    assert machine.changed() == []
    (tmp_path / "csrc/clone.cpp").write_text("new")
    assert machine.changed() == ["csrc/clone.cpp"]
    assert re.fullmatch("[0-9a-f]{40}", machine.commit())


def test_a_tiny_run_is_not_stored():
    process = run("-m", "pytest", "benchmarks/bench_prototype.py", "--tiny", "--record", "-p", "no:cacheprovider")
    assert process.returncode == 4
    assert "what is measured so is no result" in process.stderr


def test_stored_numbers_have_five_digits_and_a_row_has_a_line(tmp_path):
    result = record.document("full", {"sizes": [{"name": "a", "seconds": 1.23456789}, {"name": "b", "seconds": 2.0}]})
    text = record.write("clone", result, tmp_path).read_text()
    assert '      {"name": "a", "seconds": 1.2346},\n      {"name": "b", "seconds": 2.0}\n' in text
    assert record.read(tmp_path)["clone"]["tables"]["sizes"][0] == {"name": "a", "seconds": 1.2346}
