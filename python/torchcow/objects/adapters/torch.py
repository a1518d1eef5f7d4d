"""torch: modules, optimizers, tensors. Schedulers are objects like others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchcow.objects.adapters.attributes import Attributes, attributes_of

_TABLES = ("_parameters", "_buffers", "_modules")


class Modules(Attributes):
    """Modules: parameters, buffers and children, and then attributes. The rules are those of ``Module.__setattr__``."""

    foreign = (object, torch.nn.Module)

    def accepts(self, obj: Any) -> bool:
        """Modules that are initialized."""
        return isinstance(obj, torch.nn.Module) and all(table in vars(obj) for table in _TABLES)

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """What is in the tables, and the other attributes."""
        found = {name: value for table in _tables(obj) for name, value in table.items()}
        found.update((name, value) for name, value in attributes_of(obj).items() if name not in _TABLES)
        return found

    def get(self, obj: Any, name: str) -> Any:
        """As ``parts`` has it, without looking at all of them."""
        for table in (vars(obj), *_tables(obj)):
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
    return [vars(obj).get(table, {}) for table in _TABLES]


class Optimizers(Attributes):
    """Optimizers: options such as ``lr`` stand for those of every parameter group and the defaults, all at once."""

    foreign = (object, torch.optim.Optimizer)

    def accepts(self, obj: Any) -> bool:
        """Optimizers that are initialized."""
        return isinstance(obj, torch.optim.Optimizer) and "param_groups" in vars(obj)

    def names(self, obj: Any) -> Sequence[str]:
        """The options, and then the attributes."""
        return list(dict.fromkeys([*_options(obj), *super().names(obj)]))

    def get(self, obj: Any, name: str) -> Any:
        """An option's value in the first group that has it, or an attribute."""
        options = _options(obj)
        return options[name] if name in options else super().get(obj, name)

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """An option takes anything: what is a valid value only the optimizer knows."""
        return None if name in _options(obj) else super().refuse(obj, name, value)

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Set the option in each group, and as the default for groups that are added later."""
        if name not in _options(obj):
            return super().replace(obj, name, value)
        for group in obj.param_groups:
            group[name] = value
        if name in obj.defaults:
            obj.defaults[name] = value
        return None

    def aliased(self, obj: Any, name: str, value: Any) -> bool:
        """The groups are."""
        return name in _options(obj)


class Tensors(Attributes):
    """Tensors: ``requires_grad`` can be changed; the gradient and attributes are parts."""

    def accepts(self, obj: Any) -> bool:
        """Any tensor."""
        return isinstance(obj, torch.Tensor)

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """The gradient, and what somebody has attached."""
        gradient = {"grad": obj.grad} if obj.is_leaf and obj.grad is not None else {}
        return {**gradient, **attributes_of(obj)}

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
