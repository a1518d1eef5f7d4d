# SPDX-License-Identifier: Apache-2.0
"""torch: modules, optimizers, tensors. Schedulers are objects like others."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchcow.objects.adapters.attributes import Attributes, attributes_of
from torchcow.objects.adapters.keys import add_beside, keys_by_name

#: The attributes of a module that hold its parameters, buffers and children.
TABLES = ("_parameters", "_buffers", "_modules")
# In a module of TorchScript: the C++ object, and the module that a traced one stands for.
_SCRIPT = (*TABLES, "_c", "_actual_script_module")


class Modules(Attributes):
    """Modules: parameters, buffers and children, and then attributes. The rules are those of ``Module.__setattr__``."""

    foreign = (object, torch.nn.Module)

    def accepts(self, obj: Any) -> bool:
        """Any module."""
        return issubclass(type(obj), torch.nn.Module)

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """What is in the tables, and the other attributes."""
        tables, attributes = _tables(obj), attributes_of(obj)
        for name in _SCRIPT if issubclass(type(obj), torch.jit.ScriptModule) else TABLES:
            attributes.pop(name, None)
        parts: dict[str, Any] = {}
        for content in (*tables, attributes):
            parts.update(content)
        if len(parts) == len(attributes) + sum(map(len, tables)):
            return parts
        parts = {}
        for where, content in zip((*TABLES, "__dict__"), (*tables, attributes), strict=True):
            add_beside(parts, content, where)
        return parts

    def get(self, obj: Any, name: str) -> Any:
        """As ``parts`` has it, without looking at all of them."""
        for table in (*_tables(obj), vars(obj)):
            if name in table:
                return table[name]
        return super().get(obj, name)

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """What ``Module.__setattr__`` would refuse, and what attributes refuse."""
        kind = type(value).__name__
        parameters, buffers, children = _tables(obj)
        registered = name in parameters or name in buffers or name in children
        if isinstance(value, torch.nn.Parameter):
            if not registered and name not in vars(obj) and hasattr(obj, name):
                return f"a parameter cannot take the place of an attribute of the class {type(obj).__name__}"
        elif name in parameters:
            if value is not None:
                return f"{name!r} is a parameter and takes a torch.nn.Parameter or None, got {_a(kind)}"
        elif not isinstance(value, torch.nn.Module):
            if name in children and value is not None:
                return f"{name!r} is a child module and takes a torch.nn.Module or None, got {_a(kind)}"
            if name in buffers and not isinstance(value, (torch.Tensor, type(None))):
                return f"{name!r} is a buffer and takes a torch.Tensor or None, got {_a(kind)}"
            if isinstance(value, torch.nn.Buffer) and not registered:
                return f"{name!r} is an attribute, and a torch.nn.Buffer cannot take its place"
        return None if registered else super().refuse(obj, name, value)

    def aliased(self, obj: Any, name: str, value: Any) -> bool:
        """The tables are."""
        tabled = any(name in table for table in _tables(obj))
        return tabled or isinstance(value, (torch.nn.Module, torch.nn.Parameter, torch.nn.Buffer))


def _tables(obj: Any) -> list[dict[str, Any]]:
    if issubclass(type(obj), torch.jit.ScriptModule):  # its tables are views of C++
        return [dict(getattr(obj, table, {}).items()) for table in TABLES]
    attributes = vars(obj)
    return [attributes.get(table, {}) for table in TABLES]


class Optimizers(Attributes):
    """Optimizers: options such as ``lr`` stand for those of every parameter group and the defaults, all at once.

    The state of a parameter is named by the parameter's index, as in ``state_dict``: ``state.0.exp_avg``.
    """

    foreign = (object, torch.optim.Optimizer)

    def accepts(self, obj: Any) -> bool:
        """Optimizers that are initialized."""
        return issubclass(type(obj), torch.optim.Optimizer) and {"param_groups", "state"} <= vars(obj).keys()

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """The groups, the state of each parameter, and the other attributes."""
        attributes = attributes_of(obj)
        state: dict[Any, Any] = attributes.pop("state")
        parts = {"param_groups": attributes.pop("param_groups")}
        parts.update((name, state[key]) for name, key in _state_keys(obj).items())
        add_beside(parts, attributes, "__dict__")
        return parts

    def names(self, obj: Any) -> Sequence[str]:
        """The options, and then the parts. ``state`` as a whole is a name if all its keys are parameters."""
        # Other keys would be names in it, too, and a path with one of them would lead to two places.
        whole = ["state"] if obj.state.keys() <= {p for group in obj.param_groups for p in group["params"]} else []
        return list(dict.fromkeys([*_options(obj), *whole, *super().names(obj)]))

    def get(self, obj: Any, name: str) -> Any:
        """An option's value in the first group that has it, or a part."""
        options = _options(obj)
        if name in options:
            return options[name]
        return vars(obj)[name] if name in vars(obj) else super().get(obj, name)

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """An option takes anything: what is a valid value only the optimizer knows."""
        return None if name in _options(obj) else super().refuse(obj, name, value)

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Set the option in each group, and as the default for groups that are added later."""
        if name in _options(obj):
            for group in obj.param_groups:
                group[name] = value
            if name in obj.defaults:
                obj.defaults[name] = value
        elif name in (keys := _state_keys(obj)):
            obj.state[keys[name]] = value
        else:
            super().replace(obj, name, value)

    def aliased(self, obj: Any, name: str, value: Any) -> bool:
        """The groups are, and the state."""
        return name in _options(obj) or name in _state_keys(obj)


def _state_keys(obj: Any) -> dict[str, Any]:
    """The keys of an optimizer's state by name: ``state.0`` for the first parameter of the first group."""
    parameters = (parameter for group in obj.param_groups for parameter in group["params"])
    indices: dict[int, int] = {}
    for index, parameter in enumerate(parameters):
        indices.setdefault(id(parameter), index)
    keys = list(obj.state)
    names = keys_by_name(indices.get(id(key), key) for key in keys)
    return {f"state.{name}": key for name, key in zip(names, keys, strict=True)}


class Tensors(Attributes):
    """Tensors: ``requires_grad`` can be changed; the gradient and attributes are parts."""

    def accepts(self, obj: Any) -> bool:
        """Any tensor."""
        return issubclass(type(obj), torch.Tensor)

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """The gradient, and attributes that were added."""
        parts = {"grad": obj.grad} if obj.is_leaf and obj.grad is not None else {}
        # A tensor with attributes refers to more than its class. To ask for its __dict__ would make one.
        if len(gc.get_referents(obj)) > 1:
            add_beside(parts, attributes_of(obj), "__dict__")
        return parts

    def names(self, obj: Any) -> Sequence[str]:
        """The parts and ``requires_grad``."""
        return ["requires_grad", *self.parts(obj)]

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """Gradients of another shape, gradients of integers, and the like."""
        if name == "requires_grad" and not isinstance(value, bool):
            return f"requires_grad takes True or False, got {_a(type(value).__name__)}"
        if name == "requires_grad" and value and not (obj.is_floating_point() or obj.is_complex()):
            return f"a tensor of {obj.dtype} cannot require gradients"
        if name == "grad" and value is not None and not (isinstance(value, torch.Tensor) and value.shape == obj.shape):
            return f"grad takes a tensor of shape {tuple(obj.shape)} or None"
        return None

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Set the attribute."""
        setattr(obj, name, value)

    def aliased(self, obj: Any, name: str, value: Any) -> bool:
        """No: a shallow copy of a tensor is another tensor over the same memory."""
        return False


def _options(obj: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in (*obj.param_groups, obj.defaults):
        for name, value in group.items():
            if name not in ("params", "param_names"):
                found.setdefault(name, value)
    return found


def _a(kind: str) -> str:
    return f"{'an' if kind[:1] in 'AEIOUaeiou' else 'a'} {kind}"
