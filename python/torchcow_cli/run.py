# SPDX-License-Identifier: Apache-2.0
"""``torchcow run``: a program under ``torchcow.patch()``, which otherwise finds everything as under plain Python.

Not by ``runpy.run_path``, which removes the program's ``__main__`` after the last line, while threads and exit handlers
may still need it.
"""

from __future__ import annotations

import builtins
import importlib.util
import pkgutil
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Annotated, Any

import typer

from torchcow_cli.output import Mistake


def run(
    program: Annotated[
        str, typer.Argument(help="A script, a folder or zip file with __main__.py, or with -m a module.")
    ],
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed to the program unchanged.")] = None,
    module: Annotated[bool, typer.Option("-m", help="PROGRAM is a module, as for python -m.")] = False,
) -> int:
    """Run a program with copy-on-write deep copies.

    Patches copy.deepcopy in the whole process; the program needs no change.
    """
    import torchcow

    torchcow.patch()
    main = ModuleType("__main__")
    # exec() would set __builtins__ to a dict; in a program that Python starts it is the module.
    vars(main).update(__builtins__=builtins, __annotations__={}, __cached__=None)
    sys.argv = ["-m" if module else program, *(arguments or [])]
    try:
        code = _module(program, main) if module else _script(program, main)
    except (Mistake, SystemExit):
        raise
    except BaseException as error:
        return _report(error)
    sys.modules["__main__"] = main
    try:
        exec(code, vars(main))
    except SystemExit:
        raise
    except BaseException as error:
        return _report(error)
    return 0


def _report(error: BaseException) -> int:
    """Report an exception as the interpreter would: through the program's hook, without frames of this file."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _script(program: str, main: ModuleType) -> CodeType:
    path = Path(program).absolute()
    if not path.exists():
        raise Mistake("run", f"there is no file '{program}'; expected a script, or -m and the name of a module")
    if pkgutil.get_importer(str(path)) is not None:  # a folder or a zip file
        spec = PathFinder.find_spec("__main__", [str(path)])
        packed = None if spec is None else _code(spec, main)
        if packed is None:
            raise Mistake("run", f"there is no __main__.py in '{program}'; name the script itself")
        _set_first_path(str(path))
        return packed
    compiled = path.suffix == ".pyc"
    loader: Any = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", str(path))
    try:
        source = loader.get_data(str(path))
    except OSError as error:
        raise Mistake("run", f"cannot read '{program}': {error.strerror}") from error
    code: CodeType = loader.get_code("__main__") if compiled else compile(source, str(path), "exec", dont_inherit=True)
    _set_first_path(str(path.resolve().parent))
    vars(main).update(__file__=str(path), __loader__=loader, __package__=None, __spec__=None)
    return code


def _module(name: str, main: ModuleType) -> CodeType:
    _set_first_path(str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(name) if all(name.split(".")) else None
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, and one of its own imports failed
        spec = None
    code = None if spec is None else _code(spec, main)
    if spec is None or code is None:
        raise Mistake("run", f"there is no module '{name}' that can be run; a script is named without -m")
    sys.argv[0] = str(spec.origin)
    return code


def _code(spec: ModuleSpec, main: ModuleType) -> CodeType | None:
    """Return the code of a module and set its names in ``main``; None for extension modules and namespace packages."""
    loader: Any = spec.loader
    code: CodeType | None = loader.get_code(spec.name) if hasattr(loader, "get_code") else None
    vars(main).update(
        __file__=spec.origin, __cached__=spec.cached, __loader__=loader, __package__=spec.parent, __spec__=spec
    )
    return code


def _set_first_path(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[0] = folder
