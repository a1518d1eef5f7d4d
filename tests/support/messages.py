# SPDX-License-Identifier: Apache-2.0
"""The messages of errors, read from the sources: literal text, with ``{}`` for whatever is put in when it is raised."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

from support import ROOT

_ERRORS = re.compile(r"(Error|Mistake|BadParameter|SystemExit)$")
_MACROS = {"TORCH_CHECK": 1, "TORCH_CHECK_WITH": 2, "PyErr_Format": 1, "PyErr_SetString": 1, "c10::str": 0}
_CALL = re.compile(r"\b(TORCH_CHECK|TORCH_CHECK_WITH|PyErr_Format|PyErr_SetString|c10::str|(?:py|std)::\w+_error)\(")


def python() -> Iterator[tuple[str, str]]:
    """(where, message) of each error that the package makes, or its build."""
    for file in sorted(one for folder in ("python", "cmake") for one in (ROOT / folder).rglob("*.py")):
        module = _Module(ast.parse(file.read_text()))
        for line, text in module.messages():
            yield f"{file.relative_to(ROOT)}:{line}", " ".join(text.split())


class _Module:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.functions = {one.name: one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}
        self.caught = {one.name for one in ast.walk(tree) if isinstance(one, ast.ExceptHandler)}
        #: Functions that make an error out of their first argument; what is within them is told by their calls.
        self.makers = {name: found for name, one in self.functions.items() if (found := _made_by(one))}
        self.within = {id(inner) for maker in self.makers for inner in ast.walk(self.functions[maker])}
        self.assigned: dict[str, list[ast.expr]] = {}
        self.appended: dict[str, list[ast.expr]] = {}
        for one in ast.walk(tree):
            if isinstance(one, ast.Assign):
                for target in one.targets:
                    if isinstance(target, ast.Name):
                        self.assigned.setdefault(target.id, []).append(one.value)
            if isinstance(one, ast.Call) and ast.unparse(one.func).endswith(".append"):
                self.appended.setdefault(ast.unparse(one.func)[: -len(".append")], []).append(one.args[0])

    def messages(self) -> Iterator[tuple[int, str]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, (ast.Name, ast.Attribute)):
                name = ast.unparse(node.exc)
                if name not in self.caught and name not in self.assigned:
                    yield node.lineno, name
            elif isinstance(node, ast.FunctionDef) and node.name == "refuse":
                yield from ((node.lineno, text) for text in self.returned(node))
            elif isinstance(node, ast.Call):
                yield from ((node.lineno, text) for text in self.said(node))
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and not _name(node.exc.func):
                yield from ((node.lineno, text) for text in self.texts(node.exc.args[0]))

    def said(self, call: ast.Call) -> Iterator[str]:
        """The message of a call that makes an error, or notes one."""
        name = _name(call.func)
        if name in self.makers:
            (parameter, template), what = self.makers[name], list(self.texts(call.args[0]))
            yield from self.joined(template, {parameter: what})
        elif _ERRORS.search(name) and call.args and id(call) not in self.within:
            yield from self.texts(call.args[1 if name == "Mistake" else 0])
        elif name == "problem":
            yield from self.texts(call.args[1])
        elif ast.unparse(call.func) == "self.problems.append":
            yield from self.texts(call.args[0])

    def returned(self, function: ast.FunctionDef) -> Iterator[str]:
        for one in ast.walk(function):
            if isinstance(one, ast.Return) and one.value is not None:
                yield from self.texts(one.value)

    def texts(self, node: ast.expr) -> Iterator[str]:
        """All that an expression can be; an exception that was caught, and what is no text, is ``{}``."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield from self.joined(node, {})
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
        elif isinstance(node, ast.Call) and _name(node.func) == "join" and ast.unparse(node.args[0]) in self.appended:
            for one in self.appended[ast.unparse(node.args[0])]:
                yield from self.texts(one)
        elif isinstance(node, ast.Name) and node.id in self.assigned:
            for value in self.assigned[node.id]:
                yield from self.texts(value)
        else:
            yield "{}"

    def joined(self, node: ast.JoinedStr, known: dict[str, list[str]]) -> Iterator[str]:
        """A text with ``{}``; if it has no words of its own, with the words that a variable in it may have."""
        bare = not any(isinstance(part, ast.Constant) and re.search("[a-z]", str(part.value)) for part in node.values)
        choices: list[list[str]] = []
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            if isinstance(part, ast.Constant):
                choices.append([str(part.value)])
            elif isinstance(inner, ast.Name) and inner.id in known:
                choices.append(known[inner.id])
            else:
                choices.append(list(self.texts(inner)) if bare and isinstance(inner, ast.Name) else ["{}"])
        yield from map("".join, itertools.product(*choices))


def _made_by(function: ast.FunctionDef) -> tuple[str, ast.JoinedStr] | None:
    """The first parameter of a function and the text that it makes of it for an error, if that is all it does."""
    last = function.body[-1]
    if not isinstance(last, ast.Return) or not isinstance(last.value, ast.Call) or not function.args.args:
        return None
    parameter, made = function.args.args[0].arg, last.value
    if not _ERRORS.search(_name(made.func)) or not made.args or not isinstance(made.args[0], ast.JoinedStr):
        return None
    used = {
        one.value.id
        for one in made.args[0].values
        if isinstance(one, ast.FormattedValue) and isinstance(one.value, ast.Name)
    }
    return (parameter, made.args[0]) if parameter in used else None


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
