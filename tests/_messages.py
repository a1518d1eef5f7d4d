"""The messages of errors, read from the sources: literal text, with ``{}`` for whatever is put in when it is raised."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_ERRORS = re.compile(r"(Error|Mistake|BadParameter)$")
_MACROS = {"TORCH_CHECK": 1, "TORCH_CHECK_WITH": 2, "PyErr_Format": 1, "PyErr_SetString": 1, "c10::str": 0}
_CALL = re.compile(r"\b(TORCH_CHECK|TORCH_CHECK_WITH|PyErr_Format|PyErr_SetString|c10::str|(?:py|std)::\w+_error)\(")


def python() -> Iterator[tuple[str, str]]:
    """(where, message) of each error that the package makes."""
    for file in sorted((ROOT / "python").rglob("*.py")):
        module = _Module(ast.parse(file.read_text()))
        for line, text in module.messages():
            yield f"{file.relative_to(ROOT)}:{line}", " ".join(text.split())


class _Module:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.functions = {one.name: one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}
        self.caught = {one.name for one in ast.walk(tree) if isinstance(one, ast.ExceptHandler)}
        self.assigned: dict[str, list[ast.expr]] = {}
        for one in ast.walk(tree):
            if isinstance(one, ast.Assign):
                for target in one.targets:
                    if isinstance(target, ast.Name):
                        self.assigned.setdefault(target.id, []).append(one.value)

    def messages(self) -> Iterator[tuple[int, str]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, (ast.Name, ast.Attribute)):
                name = ast.unparse(node.exc)
                if name not in self.caught and name not in self.assigned:
                    yield node.lineno, name
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and not _name(node.exc.func):
                yield from ((node.lineno, text) for text in self.texts(node.exc.args[0]))
            elif isinstance(node, ast.Call) and _ERRORS.search(_name(node.func)) and node.args:
                what = node.args[1] if _name(node.func) == "Mistake" else node.args[0]
                yield from ((node.lineno, text) for text in self.texts(what))
            elif isinstance(node, ast.Call) and _name(node.func) == "_problem":
                yield from ((node.lineno, text) for text in self.texts(node.args[1]))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self.problems.append":
                yield from ((node.lineno, text) for text in self.texts(node.args[0]))
        if "refuse" in self.functions:
            for one in ast.walk(self.tree):
                if isinstance(one, ast.FunctionDef) and one.name == "refuse":
                    yield from ((one.lineno, text) for text in self.returned(one))

    def returned(self, function: ast.FunctionDef) -> Iterator[str]:
        for one in ast.walk(function):
            if isinstance(one, ast.Return) and one.value is not None:
                yield from self.texts(one.value)

    def texts(self, node: ast.expr) -> Iterator[str]:
        """All that an expression can be; an exception that was caught, and what is no text, is ``{}``."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield from self.joined(node)
        elif isinstance(node, ast.BinOp):
            for left in self.texts(node.left):
                yield from (left + right for right in self.texts(node.right))
        elif isinstance(node, ast.IfExp):
            yield from self.texts(node.body)
            yield from self.texts(node.orelse)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
            yield from self.returned(self.functions[node.func.id])
        elif isinstance(node, ast.Call) and _name(node.func) == "join" and isinstance(node.args[0], ast.List):
            yield " ".join("".join(self.texts(one)) for one in node.args[0].elts)
        elif isinstance(node, ast.Name) and node.id in self.assigned:
            for value in self.assigned[node.id]:
                yield from self.texts(value)
        else:
            yield "{}"

    def joined(self, node: ast.JoinedStr) -> Iterator[str]:
        """A text with ``{}``; if it has no words of its own, with the words that a variable in it may have."""
        bare = not any(isinstance(part, ast.Constant) and re.search("[a-z]", str(part.value)) for part in node.values)
        choices: list[list[str]] = []
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            if isinstance(part, ast.Constant):
                choices.append([str(part.value)])
            else:
                choices.append(list(self.texts(inner)) if bare and isinstance(inner, ast.Name) else ["{}"])
        yield from map("".join, itertools.product(*choices))


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def native() -> Iterator[tuple[str, str]]:
    """(where, message) of each error that the engine makes."""
    for file in sorted(one for end in ("cpp", "h") for one in (ROOT / "csrc").rglob(f"*.{end}")):
        text = file.read_text()
        for call in _CALL.finditer(text):
            line = text.count("\n", 0, call.start()) + 1
            arguments = _arguments(text, call.end())[_MACROS.get(call[1], 0) :]
            for message in _joined(arguments):
                yield f"{file.relative_to(ROOT)}:{line}", message


def _arguments(text: str, start: int) -> list[str]:
    """The arguments of a call, as text."""
    depth, found = 1, [""]
    for token in re.finditer(r'"(?:\\.|[^"\\])*"|[\s\S]', text[start:]):
        part = token[0]
        depth += (part in "([{") - (part in ")]}") if len(part) == 1 else 0
        if depth == 0:
            break
        if part == "," and depth == 1:
            found.append("")
        else:
            found[-1] += part
    return found


def _joined(arguments: list[str]) -> Iterator[str]:
    pieces = []
    for argument in arguments:
        literals = re.findall(r'"((?:\\.|[^"\\])*)"', argument)
        if "?" in re.sub(r'"(?:\\.|[^"\\])*"', "", argument) and literals:
            yield from literals
            return
        only = not re.sub(r'"(?:\\.|[^"\\])*"', "", argument).strip()
        pieces.append("".join(literals) if only else "{}")
    yield " ".join("".join(pieces).split())
