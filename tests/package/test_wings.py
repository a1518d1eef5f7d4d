# SPDX-License-Identifier: Apache-2.0
"""The wings of the package depend on each other in one direction, and no modules import each other in a circle.

Catches: an import of a higher wing, wherever in a file it stands; a circle of modules; a folder that no wing has.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from support import ROOT

PYTHON = ROOT / "python"

pytestmark = pytest.mark.skipif(not PYTHON.is_dir(), reason="not a checkout")

#: From the ground up. A wing imports from itself and from those below.
WINGS = (
    ("torchcow._C", "torchcow._native", "torchcow.errors"),
    ("torchcow.objects",),
    ("torchcow.engine", "torchcow.testing"),
    ("torchcow.report",),
    ("torchcow.snapshots",),
    ("torchcow.persist",),
    ("torchcow.registry",),
    ("torchcow",),
    ("torchcow_startup",),
    ("torchcow_cli",),
    ("torchcow.__main__",),
)


def modules() -> dict[str, Path]:
    files = [*PYTHON.rglob("*.py"), *PYTHON.rglob("*.pyi")]
    return {".".join(file.relative_to(PYTHON).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(tree: ast.AST, checked: bool = False) -> Iterator[tuple[str, str]]:
    """(module, name) of each import that runs; the name is "" for ``import module``. `checked`: for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            if checked:
                yield from imports(node)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        else:
            yield from imports(node, checked)


def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Which module imports which; one that a package imports by the name of a submodule counts as the submodule."""
    found: dict[str, set[str]] = {}
    for name, file in files.items():
        # The root loads what it imports for type checkers when that is used.
        pairs = imports(ast.parse(file.read_text()), checked=name == "torchcow")
        targets = {f"{module}.{part}" if f"{module}.{part}" in files else module for module, part in pairs}
        found[name] = (targets & files.keys()) - {name}
    return found


def floor(module: str) -> int:
    """The wing that a module is in, by number: that with the longest name that fits."""
    prefixes = [module.rsplit(".", cut)[0] for cut in range(module.count(".") + 1)]
    return next(number for prefix in prefixes for number, wing in enumerate(WINGS) if prefix in wing)


def test_imports_are_found():
    tree = ast.parse(
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\ndef f():\n    from d.e import g\n"
    )
    assert set(imports(tree)) == {("a", ""), ("d.e", "g")}
    known = graph(modules())
    assert "torchcow.report.plot" in known["torchcow.report.memory"], "within a function"
    assert "torchcow.registry" in known["torchcow"], "when it is used"
    assert "torchcow._C" in known["torchcow._native"]


def test_wings_depend_downwards():
    known = graph(modules())
    upwards = [
        f"{module} -> {target}"
        for module, targets in known.items()
        for target in sorted(targets)
        if floor(target) > floor(module)
    ]
    assert upwards == []


def test_each_wing_exists():
    files = modules()
    assert [name for wing in WINGS for name in wing if name not in files] == []
    inside = {name for name in files if name.count(".") == 1 and name.startswith("torchcow.")}
    assert inside == {name for wing in WINGS for name in wing if name.startswith("torchcow.")}


def test_no_modules_import_each_other():
    try:
        list(TopologicalSorter(graph(modules())).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
