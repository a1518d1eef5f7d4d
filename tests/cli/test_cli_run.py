# SPDX-License-Identifier: Apache-2.0
"""``run``: a program sees what it would see under plain Python, only its deep copies share memory.

Catches: another ``__main__``, ``sys.argv`` or ``sys.path``; arguments that the command line takes for its own; an exit
code that is lost; frames of ours in the program's traceback.
"""

from __future__ import annotations

import json
import py_compile
import subprocess
import sys
import zipfile

import pytest

pytest.importorskip("typer")

from support.oracle import STARTS_PROCESSES
from torchcow_cli import main

pytestmark = STARTS_PROCESSES

WHAT_IT_SEES = """
'''The program.'''
import json, sys
number: int = 1  # in a program that is compiled with our own future imports, this would be 'int'
main = sys.modules["__main__"]
loader = main.__loader__
json.dump({
    "argv": sys.argv,
    "path": sys.path,
    "names": sorted(vars(main)),
    "main": {name: str(vars(main)[name]) for name in ("__name__", "__file__", "__package__", "__doc__", "__cached__")},
    "loader": loader.__name__ if isinstance(loader, type) else type(loader).__name__,
    "spec": main.__spec__ and main.__spec__.name,
    "builtins": type(main.__builtins__).__name__,
    "annotations": repr(main.__annotations__),
    "mine": main.number,
}, sys.stdout)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "__main__.py").write_text(WHAT_IT_SEES)
    (tmp_path / "package" / "part.py").write_text(WHAT_IT_SEES)
    (tmp_path / "link.py").symlink_to(tmp_path / "package" / "part.py")
    with zipfile.ZipFile(tmp_path / "program.zip", "w") as archive:
        archive.writestr("__main__.py", WHAT_IT_SEES)
    (tmp_path / "program").write_bytes((tmp_path / "program.zip").read_bytes())
    py_compile.compile(str(tmp_path / "package" / "part.py"), str(tmp_path / "compiled.pyc"))
    return tmp_path


def python(*arguments, flags=()):
    command = [sys.executable, "-X", "frozen_modules=off", *flags, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "arguments",
    [
        ["package/part.py", "--help", "-x", "--", "-m", "", "a b", "--json"],
        ["link.py"],
        ["package"],
        ["program.zip", "1"],
        ["program"],
        ["compiled.pyc"],
        ["-m", "package", "--help", "-m"],
        ["-m", "package.part", "x"],
    ],
)
def test_a_program_sees_what_it_sees_under_plain_python(arguments, folder):
    plain, ours = python(*arguments), python("-m", "torchcow", "run", *arguments)
    assert plain.returncode == ours.returncode == 0, ours.stderr
    assert json.loads(ours.stdout) == json.loads(plain.stdout)


def test_a_safe_path_stays_safe(folder):
    arguments = ["package/part.py"]
    plain, ours = python(*arguments, flags=["-P"]), python("-m", "torchcow", "run", *arguments, flags=["-P"])
    assert json.loads(ours.stdout) == json.loads(plain.stdout)


ENDS = """
import atexit, sys, threading
def report(): print("main is", sys.modules["__main__"].mine, flush=True)
mine = "there"
atexit.register(report)
threading.Timer(0.2, report).start()
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(7)", 7),
        ("sys.exit('the last word')", 1),
        ("raise SystemExit", 0),
        ("raise EOFError", 1),
        ("1 / 0", 1),
        ("sys.excepthook = lambda kind, *_: print('hooked', kind.__name__, file=sys.stderr); {}['x']", 1),
        ("raise ValueError('a') from KeyError('b')", 1),
        ("def (", 1),
    ],
)
def test_a_program_ends_as_under_plain_python(end, code, folder):
    (folder / "ends.py").write_text(ENDS.format(end=end))
    plain, ours = python("ends.py"), python("-m", "torchcow", "run", "ends.py")
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    assert ours.returncode == code


def test_an_interrupted_program_is_code_130(folder):
    (folder / "stops.py").write_text("raise KeyboardInterrupt")
    ours = python("-m", "torchcow", "run", "stops.py")
    assert ours.returncode == 130
    assert ours.stderr == python("stops.py").stderr


@pytest.fixture
def in_process(folder, monkeypatch):
    monkeypatch.setattr("torchcow.patch", lambda: None)
    for name in ("argv", "path"):
        monkeypatch.setattr(sys, name, list(getattr(sys, name)))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return folder


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["missing.py"], "there is no file 'missing.py'"),
        (["-m", "no_such_module"], "there is no module 'no_such_module' that can be run"),
        (["-m", "no_such_package.part"], "there is no module 'no_such_package.part' that can be run"),
        (["-m", "json.decoder.part"], "there is no module 'json.decoder.part' that can be run"),
        (["-m", ".part"], "there is no module '.part' that can be run"),
        (["-m", ""], "there is no module '' that can be run"),
        (["-m", "xml"], "there is no module 'xml' that can be run"),
        (["-m", "math"], "there is no module 'math' that can be run"),
        (["empty"], "there is no __main__.py in 'empty'"),
        (["locked.py"], "cannot read 'locked.py': Permission denied"),
    ],
)
def test_no_such_program_is_one_line_and_code_2(arguments, word, in_process, capsys, monkeypatch):
    (in_process / "empty").mkdir()
    (in_process / "locked.py").write_text("")
    if "locked.py" in arguments:

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("importlib.machinery.SourceFileLoader.get_data", refuse)
    assert main(["run", *arguments]) == 2
    told = capsys.readouterr()
    assert word in told.err and told.err.count("\n") == 1 and told.out == ""


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import a_missing_module", "ModuleNotFoundError: No module named 'a_missing_module'"),
        ("open('a missing file')", "FileNotFoundError: [Errno 2] No such file or directory: 'a missing file'"),
        ("raise ValueError(3)", "ValueError: 3"),
    ],
)
def test_a_package_that_fails_to_import_is_the_programs_own_error(source, told, in_process, capsys):
    name = f"breaks{len(source)}"  # each has a name of its own, as finders remember folders
    (in_process / name).mkdir()
    (in_process / name / "__init__.py").write_text(source)
    assert main(["run", "-m", f"{name}.part"]) == 1
    err = capsys.readouterr().err
    assert told in err and "Traceback" in err and "cli/run.py" not in err


def test_a_package_that_exits_while_it_is_imported_exits(in_process):
    (in_process / "leaves").mkdir()
    (in_process / "leaves" / "__init__.py").write_text("raise SystemExit(9)")
    with pytest.raises(SystemExit) as ended:
        main(["run", "-m", "leaves.part"])
    assert ended.value.code == 9


def test_arguments_come_through_and_the_code_of_the_program_is_kept(in_process, capsys):
    (in_process / "p.py").write_text("import sys; print(sys.argv); sys.exit(5)")
    with pytest.raises(SystemExit) as ended:
        main(["run", "p.py", "--help", "-m", "--", "--json"])
    assert ended.value.code == 5
    assert capsys.readouterr().out == "['p.py', '--help', '-m', '--', '--json']\n"
