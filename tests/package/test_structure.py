# SPDX-License-Identifier: Apache-2.0
"""The structure of the sources: no circles, and dependencies that point one way.

Catches: an include that closes a circle, through a header or through a source; a core that knows who uses it; a file
name that stands for two files.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import ROOT

CSRC = ROOT / "csrc"
SOURCES = {".h", ".cpp", ".cu"}

# A folder may include files of itself and of the folders that are listed for it.
FOLDERS: dict[str, set[str]] = {
    "core": set(),
    "deepcopy": {"core"},
    "cuda": {"core"},
    "bindings": {"core", "deepcopy", "cuda"},
}

# One header, implemented once for each torch.
IMPLEMENTATIONS = {"write_hook_materializer": "write_hook", "write_hook_cow": "write_hook"}


def included_names(text: str) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)


def node_of(path: Path) -> str:
    """`core/share` for share.h and share.cpp: header and source of one name are one node."""
    return f"{path.parent.name}/{IMPLEMENTATIONS.get(path.stem, path.stem)}"


def include_graph(sources: dict[Path, str]) -> dict[str, set[str]]:
    """Which node includes which. An include is resolved by its file name, so names must be unique."""
    nodes_by_name: dict[str, str] = {}
    for path in sources:
        assert path.name not in nodes_by_name, f"{path.name} exists twice, so an include of it has two meanings"
        nodes_by_name[path.name] = node_of(path)
    graph: dict[str, set[str]] = {node: set() for node in nodes_by_name.values()}
    for path, text in sources.items():
        for name in included_names(text):
            target = nodes_by_name[Path(name).name]
            if target != node_of(path):
                graph[node_of(path)].add(target)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach one another (Tarjan), without those of one node."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return groups


@pytest.fixture(scope="module")
def native_sources() -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(CSRC.rglob("*")) if path.suffix in SOURCES}


def test_a_circle_is_found() -> None:
    chain = {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a", "c"}}
    assert circles(chain) == []
    assert circles({**chain, "c": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"c"}}) == [["a", "b"], ["c", "d"]]


def test_header_and_source_are_one_node() -> None:
    sources = {
        Path("core/a.h"): '#include "b.h"\n#include <vector>\n',
        Path("core/a.cpp"): '#include "core/a.h"\n',
        Path("core/b.h"): "",
        Path("core/b.cpp"): '#include "b.h"\n#include "a.h"\n',
    }
    assert include_graph(sources) == {"core/a": {"core/b"}, "core/b": {"core/a"}}


def test_native_sources_have_no_circle(native_sources: dict[Path, str]) -> None:
    graph = include_graph(native_sources)
    assert len(graph) > 40
    assert circles(graph) == []


def test_native_folders_depend_downwards(native_sources: dict[Path, str]) -> None:
    upward = [
        f"{node} includes {target}"
        for node, targets in include_graph(native_sources).items()
        for target in sorted(targets)
        if (folder := target.split("/")[0]) != (own := node.split("/")[0]) and folder not in FOLDERS[own]
    ]
    assert upward == []
    assert {path.parent.name for path in native_sources} == set(FOLDERS)
