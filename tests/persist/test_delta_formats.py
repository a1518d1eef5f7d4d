# SPDX-License-Identifier: Apache-2.0
"""Deltas that older versions wrote can still be read.

Catches: a change of the file, of the nodes or of the dotted names for which a reader of the old format is missing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.every_kind import every_kind, observable
from support.oracle import assert_same, freeze
from torchcow import load_delta
from torchcow.persist.state import capture
from torchcow.persist.state.upgrade import upgraded
from torchcow.persist.tensor_file import TensorFile

FILES = sorted((Path(__file__).parent / "data").glob("delta_*.safetensors"))


def test_format_1_is_among_them():
    assert "delta_1.safetensors" in [path.name for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_delta_of_an_old_version_is_read(path):
    loaded = load_delta(every_kind(1), path)
    assert_same(freeze(observable(every_kind(2))), observable(loaded), path.stem)
    assert loaded["net"].tied.weight is loaded["net"].head.weight
    assert loaded["method"].__self__ is loaded["counter"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nodes_of_an_old_version_become_the_nodes_of_this_one(path):
    with TensorFile(path, "delta") as file:
        nodes = {name: upgraded(node) for name, node in file.info["nodes"].items()}
    assert nodes == capture(every_kind(2)).nodes
    assert {node["kind"] for node in nodes.values()} >= {
        *("value", "given", "same", "tensor", "generator", "array"),
        *("module", "stateful", "dict", "sequence", "method", "object"),
    }
