# SPDX-License-Identifier: Apache-2.0
"""Nodes of format 1 as nodes of format 2, the format of :func:`torchcow.persist.state.capture`.

In format 1 the first key of a node was its kind, and its value depended on the kind. In format 2 each node has a
``kind``, and each other fact has a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torchcow.persist.state.capture import Node


def _tensor(content: Any) -> Node:
    dtype, shape = content
    return {"dtype": dtype, "shape": shape}


def _class(content: Any) -> Node:
    return {"class": content}


#: By kind: what became of the value under the kind.
_FACTS: dict[str, Callable[[Any], Node]] = {
    "value": lambda content: {"value": content},
    "given": lambda content: {"description": content},
    "same": lambda content: {"path": content},
    "method": lambda content: {"function": content},
    **dict.fromkeys(("tensor", "generator", "array"), _tensor),
    **dict.fromkeys(("module", "stateful", "dict", "sequence", "object"), _class),
}


def upgraded(node: Mapping[str, Any]) -> Node:
    """Return a node in format 2; one that has that format already is returned as it is.

    Raises:
        KeyError: it has neither format.
    """
    if "kind" in node or not node:
        return dict(node)
    kind, *_ = node
    facts = {name: value for name, value in node.items() if name != kind}
    if kind == "array":
        facts = {"numpy dtype": facts.pop("dtype"), **facts}
    return {"kind": kind, **_FACTS[kind](node[kind]), **facts}
