# SPDX-License-Identifier: Apache-2.0
"""scikit-learn: clones of estimators keep what was fitted, and parameters have the names of ``get_params``.

Catches: a clone that is not fitted, a fit that reaches the snapshot, a path that ends at ``steps``.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import torchcow
from torchcow.errors import PathError
from torchcow.objects.paths import names_at

pytest.importorskip("sklearn", reason="the group dev of the package installs it")
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

X = np.random.default_rng(0).normal(size=(64, 6))
Y = (X[:, 0] > 0).astype(int)


def pipeline():
    columns = ColumnTransformer([("scale", StandardScaler(), [0, 1, 2]), ("range", MinMaxScaler(), [3, 4, 5])])
    return Pipeline([("columns", columns), ("model", LogisticRegression(C=0.5))]).fit(X, Y)


def test_a_clone_is_fitted_and_a_refit_stays_with_it():
    source = pipeline()
    prototype = torchcow.Prototype(source)
    mine = prototype.clone()
    want = source.predict_proba(X)
    assert np.array_equal(mine.predict_proba(X), want)
    mine.fit(X, 1 - Y)
    assert not np.array_equal(mine.predict_proba(X), want)
    assert np.array_equal(prototype.clone().predict_proba(X), want)
    source.fit(X, 1 - Y)
    assert np.array_equal(prototype.clone().predict_proba(X), want)
    assert not hasattr(clone(mine).named_steps["model"], "coef_"), "sklearn's own clone forgets"


def test_parameters_of_steps_are_changed_by_path():
    prototype = torchcow.Prototype({"before": pipeline(), "model": nn.Linear(6, 1)})
    mine = prototype.clone(**{"before.model.C": 2.0, "before.columns.scale.with_mean": False})
    assert mine["before"].get_params()["model__C"] == 2.0
    assert mine["before"].get_params()["columns__scale__with_mean"] is False
    assert prototype.clone()["before"].get_params()["model__C"] == 0.5
    other = prototype.clone(**{"before.model": Ridge()})
    assert isinstance(other["before"].named_steps["model"], Ridge)
    assert isinstance(prototype.clone()["before"].named_steps["model"], LogisticRegression)


def test_a_wrong_name_says_what_exists():
    prototype = torchcow.Prototype(pipeline())
    with pytest.raises(PathError, match=r"there is no 'modle' in this Pipeline, .*; it has: model, "):
        prototype.clone(**{"modle.C": 1})
    with pytest.raises(PathError, match=r"there is no 'c' in 'model' \(LogisticRegression\), .*; it has: C, "):
        prototype.clone(**{"model.c": 1})
    assert "coef_" in names_at(prototype._snapshot, "model")


def test_steps_of_a_shallow_clone_are_in_common():
    prototype = torchcow.Prototype(pipeline())
    with pytest.raises(PathError, match="'model' cannot be set in a shallow clone"):
        prototype.clone(deep=False, model=Ridge())
    assert prototype.clone(deep=False, verbose=True).verbose is True
    assert prototype.clone(deep=False).verbose is False


@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_arrays_are_copied(order):
    source = {"mean": np.asarray(np.arange(12.0).reshape(3, 4), order=order), "view": None, "model": nn.Linear(4, 1)}
    source["view"] = source["mean"][1]
    prototype = torchcow.Prototype(source)
    mine, oracle = prototype.clone(), copy.deepcopy(source)
    assert np.array_equal(mine["mean"], oracle["mean"])
    assert mine["mean"].flags.f_contiguous == oracle["mean"].flags.f_contiguous
    mine["mean"][:] = 0
    source["mean"][:] = 1
    assert np.array_equal(prototype.clone()["mean"], oracle["mean"])
    assert np.array_equal(mine["view"], oracle["view"]), "deepcopy cuts views of NumPy"


def test_an_estimator_with_a_torch_model_inside():
    class Net(BaseEstimator):
        def __init__(self, width=4, rate=0.1):
            self.width, self.rate = width, rate

        def fit(self, x, y):
            self.model_ = nn.Linear(x.shape[1], 1)
            return self

    source = Net().fit(X, Y)
    prototype = torchcow.Prototype(source)
    mine = prototype.clone(**{"rate": 0.5, "model_.bias.requires_grad": False})
    assert (mine.rate, mine.model_.bias.requires_grad, source.rate) == (0.5, False, 0.1)
    with torch.no_grad():
        mine.model_.weight.zero_()
    assert source.model_.weight.any() and prototype.clone().model_.weight.any()
