# SPDX-License-Identifier: Apache-2.0
"""scikit-learn: paths name the parameters of estimators, and the steps of pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sklearn.base import BaseEstimator

from torchcow.objects.adapters.attributes import Attributes


class Estimators(Attributes):
    """Estimators, with names as in ``get_params``: ``"pipeline.scaler.with_mean"``. A change keeps what was fitted."""

    def accepts(self, obj: Any) -> bool:
        """Any estimator."""
        return isinstance(obj, BaseEstimator)

    def names(self, obj: Any) -> Sequence[str]:
        """The parameters and named steps, then the attributes, which include what was fitted."""
        return list(dict.fromkeys([*_parameters(obj), *super().names(obj)]))

    def get(self, obj: Any, name: str) -> Any:
        """The parameter or step, or the attribute."""
        parameters = _parameters(obj)
        return parameters[name] if name in parameters else super().get(obj, name)

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Call ``set_params``, or set the attribute."""
        if name in _parameters(obj):
            obj.set_params(**{name: value})
        else:
            setattr(obj, name, value)

    def aliased(self, obj: Any, name: str, value: Any) -> bool:
        """Steps are: they are members of a list."""
        return name in _parameters(obj) and name not in self.parts(obj)


def _parameters(obj: Any) -> Mapping[str, Any]:
    # deep=True includes the steps of pipelines, and also the parameters of steps, which have a path by way of the step.
    return {name: value for name, value in obj.get_params(deep=True).items() if "__" not in name}
