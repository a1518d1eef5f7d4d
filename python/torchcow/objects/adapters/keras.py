# SPDX-License-Identifier: Apache-2.0
"""Keras 3 on the torch backend: layers, models, metrics, losses and optimizers are copied attribute by attribute.

Keras itself copies by way of its file format, which loses what ``get_config`` leaves out and layers that a subclassed
model makes in ``call``. Four kinds of attributes cannot be copied, and the reducers here make them anew: wrappers that
``__new__`` binds to the object, identities of other objects, functions that are compiled for one model, and references
to Python modules.
"""

from __future__ import annotations

import inspect
import types
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras
import torch
from keras.src.ops.function import Function
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.backend_utils import DynamicBackend
from keras.src.utils.tracking import TrackedDict, TrackedList, TrackedOrderedDict, TrackedSet, Tracker

from torchcow.objects.adapters.adapter import Reducer
from torchcow.objects.adapters.torch import Modules

_INHERITED = (KerasSaveable.__reduce__, object.__reduce__)
_CONSTANT = (types.ModuleType, inspect.Signature)
_COMPILED = ("train_function", "test_function", "predict_function")


class Keras(Modules):
    """Layers and variables go by their own names, and by those of attributes. A new value is assigned to a variable."""

    def __init__(self) -> None:
        self.reducers: Sequence[tuple[type, Reducer]] = _REDUCERS if keras.backend.backend() == "torch" else ()

    def accepts(self, obj: Any) -> bool:
        """Layers and models, metrics, losses, optimizers."""
        return isinstance(obj, KerasSaveable)

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """Layers and variables, and the attributes; these come first where both have one name."""
        named, attributes = _named(obj), super().parts(obj)
        return {name: value for name, value in named.items() if name not in attributes} | dict(attributes)

    def get(self, obj: Any, name: str) -> Any:
        """The part, or what the class has for that name."""
        return self.parts(obj)[name] if name in _named(obj) else super().get(obj, name)

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """Layers, and values of another shape for a variable."""
        current = self.get(obj, name)
        if isinstance(current, keras.layers.Layer):
            return f"{name!r} is a layer of a model that may be built; change what is inside of it"
        if isinstance(current, keras.Variable):
            shape = tuple(getattr(value, "shape", ()))
            if shape != tuple(current.shape):
                return f"{name!r} is a variable of shape {tuple(current.shape)}, and the value has shape {shape}"
            return None
        return super().refuse(obj, name, value)

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Assign the value to the variable, or set the attribute."""
        current = self.get(obj, name)
        if isinstance(current, keras.Variable):
            current.assign(value)
        else:
            setattr(obj, name, value)

    def aliased(self, obj: Any, name: str, value: Any) -> bool:
        """Variables are."""
        return isinstance(self.get(obj, name), keras.Variable)


def _named(obj: Any) -> dict[str, Any]:
    if isinstance(obj, keras.Model):
        return {layer.name: layer for layer in obj.layers}
    if isinstance(obj, keras.layers.Layer):
        state = vars(obj)
        own = (*state.get("_trainable_variables", ()), *state.get("_non_trainable_variables", ()))
        return {variable.name: variable for variable in reversed(own)}
    return {}


def _new(cls: Any) -> Any:
    return cls.__new__(cls)


def _reduce(obj: Any) -> Any:
    cls = type(obj)
    if hasattr(cls, "__deepcopy__") or cls.__reduce__ not in _INHERITED:
        return NotImplemented  # the user's class says how it is copied
    state = dict(vars(obj))
    constants = {name: value for name, value in state.items() if isinstance(value, _CONSTANT)}
    for name in constants:
        del state[name]
    for name in _COMPILED:
        if state.get(name) is not None:
            state[name] = None
    if isinstance(obj, keras.layers.Layer):
        # Losses of the last call, which the next call clears. They belong to its graph.
        state["_losses"] = TrackedList([loss for loss in state.get("_losses", ()) if _is_leaf(loss)])
        state["_loss_ids"] = TrackedSet()
    return _new, (cls,), (state, None), None, None, partial(_restore, constants)


def _restore(constants: dict[str, Any], new: Any, state: tuple[dict[str, Any], Any]) -> None:
    attributes, _ = state
    bound = {name: value for name, value in vars(new).items() if _same_code(value, attributes.get(name))}
    vars(new).clear()
    vars(new).update(attributes)
    vars(new).update(constants)
    vars(new).update(bound)


def _same_code(made: Any, found: Any) -> bool:
    functions = isinstance(made, types.FunctionType) and isinstance(found, types.FunctionType)
    return functions and made.__code__ is found.__code__


def _is_leaf(loss: Any) -> bool:
    return not isinstance(loss, torch.Tensor) or loss.is_leaf


def _reduce_optimizer(obj: Any) -> Any:
    reduced = _reduce(obj)
    if reduced is NotImplemented:
        return reduced
    new, arguments, (state, _), *rest, restore = reduced
    indices = state.pop("_trainable_variables_indices", {})
    known = [(variable, indices[id(variable)]) for variable in obj._trainable_variables if id(variable) in indices]
    return new, arguments, (state, known), *rest, partial(_restore_optimizer, restore)


def _restore_optimizer(restore: Any, new: Any, state: tuple[dict[str, Any], list[tuple[Any, int]]]) -> None:
    restore(new, state)
    new.__dict__["_trainable_variables_indices"] = {id(variable): index for variable, index in state[1]}


def _reduce_function(obj: Any) -> Any:
    reduced = _reduce(obj)
    if reduced is NotImplemented:
        return reduced
    new, arguments, (state, _), *rest, restore = reduced
    keys = state.pop("_nodes", set())
    nodes = [(operation, i) for operation in obj._operations for i in range(len(operation._inbound_nodes))]
    known = [(operation, i) for operation, i in nodes if _key(operation, i) in keys]
    return new, arguments, (state, known), *rest, partial(_restore_function, restore)


def _restore_function(restore: Any, new: Any, state: tuple[dict[str, Any], list[tuple[Any, int]]]) -> None:
    restore(new, state)
    new.__dict__["_nodes"] = {_key(operation, i) for operation, i in state[1]}


def _key(operation: Any, i: int) -> str:
    return f"{id(operation)}_ib-{i}"


def _reduce_tracker(obj: Any) -> tuple[Any, ...]:
    state = dict(vars(obj))
    ids = state.pop("stored_ids")
    stored = {name: [value for value in obj.config[name][1] if id(value) in ids[name]] for name in ids}
    return _new, (type(obj),), (state, stored), None, None, _restore_tracker


def _restore_tracker(new: Any, state: tuple[dict[str, Any], dict[str, list[Any]]]) -> None:
    vars(new).update(state[0])
    new.stored_ids = {name: {id(value) for value in values} for name, values in state[1].items()}


def _container(cls: type, base: Any, add: Any) -> tuple[type, Reducer]:
    def reduce(obj: Any) -> tuple[Any, ...]:
        return _new, (type(obj),), (dict(vars(obj)), base(obj)), None, None, restore

    def restore(new: Any, state: tuple[dict[str, Any], Any]) -> None:
        # Not by the methods of the class, which track what is added.
        vars(new).update(state[0])
        add(new, state[1])

    return cls, reduce


_REDUCERS: Sequence[tuple[type, Reducer]] = (
    (Function, _reduce_function),
    (BaseOptimizer, _reduce_optimizer),
    (KerasSaveable, _reduce),
    (keras.random.SeedGenerator, _reduce),
    (DynamicBackend, _reduce),
    (Tracker, _reduce_tracker),
    _container(TrackedList, list, list.extend),
    _container(TrackedDict, dict, dict.update),
    _container(TrackedOrderedDict, OrderedDict, OrderedDict.update),
    _container(TrackedSet, list, set.update),
)
