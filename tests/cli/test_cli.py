# SPDX-License-Identifier: Apache-2.0
"""The command line: help, exit codes, one JSON document, one line for a mistake, a traceback for a bug.

Catches: a traceback where the user is wrong, a bug that hides behind a line, output that is no JSON or not only JSON,
colours or broken lines in a pipe.
"""

from __future__ import annotations

import doctest
import json
import subprocess
import sys

import pytest

pytest.importorskip("typer")

from support.oracle import STARTS_PROCESSES
from torchcow_cli import bench, doctor, main, output, turns
from torchcow_cli.app import app, get_command
from torchcow_cli.checks import Finding
from torchcow_cli.demo import command as demo
from torchcow_cli.turns import Turns

COMMANDS = sorted(get_command(app).commands)


def one_line(captured, *words):
    """What a mistake looks like: nothing on stdout, one line on stderr with all the words."""
    assert captured.out == ""
    assert captured.err.startswith("torchcow") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err
    return True


def test_help_names_each_command(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert {"demo", "run", "bench", "doctor"} <= set(COMMANDS)
    assert all(f"  {command} " in told for command in COMMANDS)
    assert "..." not in told.split("Commands:")[1], "each command is described in one line"
    assert main(["-h"]) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"Usage: torchcow {command}") and told.err == ""


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"run", "registry"}))
def test_each_command_that_reports_has_json(command, capsys):
    main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_version(capsys):
    import torchcow

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == torchcow.__version__ + "\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["a COMMAND is missing", "--help"]),
        (["fly"], ["No such command 'fly'"]),
        (["doctor", "--colour"], ["doctor: error: No such option: --colour", "doctor --help"]),
        (["doctor", "there"], ["unexpected extra argument", "there"]),
        (["bench", "--device", "tpu"], ["expected cpu or cuda, got 'tpu'"]),
        (["bench", "--variants", "-1"], ["expected a whole number of at least 1, got '-1'"]),
        (["demo", "--json", "--model", "no such\nmodel"], ["unknown model 'no such model'"]),
        (["demo", "--seed", "x"], ["'--seed'", "integer"]),
        (["run"], ["Missing argument"]),
        (["run", "no-such-script.py"], ["there is no file 'no-such-script.py'", "expected a script"]),
        (["run", "tests/native"], ["no __main__.py in 'tests/native'"]),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["torchcow"])
    monkeypatch.setattr("torchcow.patch", lambda: None)
    assert main(arguments) == 2
    assert one_line(capsys.readouterr(), *words)


def test_a_bug_shows_its_traceback(monkeypatch):
    monkeypatch.setattr("torchcow_cli.checks.CHECKS", (lambda: 1 / 0,))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_an_interrupt_is_code_130(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("torchcow_cli.checks.CHECKS", (interrupted,))
    assert main(["doctor"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_json_stays_alone_on_stdout(monkeypatch, capsys):
    def talkative(*_):
        print("loading shards")

    monkeypatch.setattr(demo, "_run", talkative)
    monkeypatch.setattr("torchcow_cli.demo.report.document", lambda _: {"passed": True})
    assert main(["demo", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"passed": True}
    assert captured.err == "loading shards\n"


def test_json_has_no_numbers_that_json_does_not_know(capsys):
    output.document({"a": [float("nan"), -float("inf"), 1.5], 2: (True, None)})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": ["nan", "-inf", 1.5],
        "2": [True, None],
    }


def test_a_pipe_gets_plain_text_of_any_width_and_a_terminal_gets_colours(monkeypatch, capsys):
    long = "word " * 60
    findings = [Finding("topic", "broken", long, why=long, remedy="[not a style]")]
    monkeypatch.setenv("COLUMNS", "80")
    doctor._show(findings)
    piped = capsys.readouterr().out
    assert "\x1b" not in piped
    assert piped.count(long.strip()) == 2, "no line is broken"
    assert "[not a style]" in piped
    monkeypatch.setenv("FORCE_COLOR", "1")
    doctor._show(findings)
    assert "\x1b" in capsys.readouterr().out


def test_the_demo_reports_wrong_bits_with_code_1(monkeypatch, capsys):
    options = ["demo", "--model", "tiny", "--variants", "2"]
    assert main([*options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] and len(told["variants"]) == 2 and all(check["holds"] for check in told["checks"])
    assert told["memory"]["after cloning"]["unique"] < told["memory"]["after cloning"]["logical"]
    assert told["seconds"]["clone"]["measured"] == 2
    monkeypatch.setattr("torchcow_cli.demo.evidence.changed", lambda base, variant: frozenset({"embed.weight"}))
    assert main(options) == 1
    assert "WRONG  tensors changed that the demo did not write, in variants [0, 1]" in capsys.readouterr().out
    assert main([*options, "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["passed"]


def test_bench_compares_and_sees_a_clone_that_is_not_isolated(monkeypatch, capsys):
    monkeypatch.setattr(bench, "MODELS", {"transformer": lambda quick: __import__("torch").nn.Linear(64, 64)})
    monkeypatch.setattr(bench, "TURN", 0.0)
    assert main(["bench", "--quick", "--json", "--variants", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    (model,) = told["models"].values()
    assert model["isolated"] and model["parameters"] == 64 * 65 and model["tensors"] == 2
    assert model["memory"]["as deep copies"] == 4 * 4 * 64 * 65
    assert model["memory"]["after cloning"] < model["memory"]["after one write each"] <= 4 * 4 * 64 * 65
    assert model["copy"]["rounds"] == 5
    ratio = model["copy"]["deepcopy / clone"]
    assert 0 < ratio["lower quartile"] <= ratio["median"] <= ratio["upper quartile"]
    assert main(["bench", "--quick"]) == 0
    assert "Tensor memory of a model and 10 variants" in capsys.readouterr().out
    monkeypatch.setattr("torchcow.clone", lambda model: model)
    assert main(["bench", "--quick"]) == 1
    assert "WRONG, a write to a clone changed the source" in capsys.readouterr().out


def test_candidates_take_turns_and_each_turn_has_its_length():
    order = []
    timed = Turns({name: (lambda: None, lambda _, name=name: order.append(name)) for name in "ab"})
    timed.round()
    timed.round()
    assert order == ["a", "b", "a", "b"]
    assert len(timed.ratios("a", "b")) == 2
    timed.forget()
    timed._turn = 0.001
    timed.round()
    assert len(order) > 8 and len(timed.times["a"]) == 1


@pytest.mark.parametrize("module", [output, turns])
def test_examples(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


@STARTS_PROCESSES
def test_a_missing_library_is_one_line():
    code = "import sys, runpy; sys.modules['typer'] = None; runpy.run_module('torchcow', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    complaint = "the command line needs the package typer: pip install rich typer"
    assert done.stderr == f"python -m torchcow: error: {complaint}\n"
