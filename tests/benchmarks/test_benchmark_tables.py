# SPDX-License-Identifier: Apache-2.0
"""README, docs/benchmarks.md and the charts say what the stored results say, and a change of either is found."""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys

import pytest

from support import ROOT

RESULTS = ROOT / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="not a checkout")
sys.path.insert(0, str(ROOT / "benchmarks"))

import record  # noqa: E402
import render  # noqa: E402
from report import charts, clone, cuda, first_write, labels, markdown  # noqa: E402


@pytest.fixture
def copied(tmp_path):
    """The files that are checked, in a folder of their own."""
    for name in ("README.md", "docs/benchmarks.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "docs" / "charts", tmp_path / "docs" / "charts")
    shutil.copytree(RESULTS, tmp_path / "benchmarks" / "results")
    return tmp_path


def check(root):
    return render.main(["--check", "--root", str(root)])


def test_tables_and_charts_are_what_the_stored_results_say(capsys):
    assert check(ROOT) == 0, capsys.readouterr().err


def one_digit_more(text, start):
    """The same text with another number after ``start``."""
    at = re.compile(r"\d").search(text, text.index(start)).start()
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("README.md", "| clone GPT-2"),
        ("docs/benchmarks.md", "| GPT-2"),
        ("docs/benchmarks.md", "*Measured on"),
        ("benchmarks/results/clone.json", '"candidate": "torchcow.clone", "rounds": '),
        ("benchmarks/results/memory.json", '"resident": '),
        ("benchmarks/results/reading.json", '"commit": "'),
        ("docs/charts/break_even.svg", "data sha256:"),
    ],
)
def test_a_number_that_is_changed_is_found(name, start, copied, capsys):
    assert check(copied) == 0
    path = copied / name
    path.write_text(one_digit_more(path.read_text(), start))
    assert check(copied) == 1
    stderr = capsys.readouterr().err
    assert "render.py" in stderr
    assert "says" in stderr or "was drawn from other results" in stderr


def test_a_chart_that_is_missing_is_found_and_drawn_again(copied, capsys):
    pytest.importorskip("matplotlib", reason="make venv installs it")
    path = copied / "docs" / "charts" / "clone.svg"
    path.unlink()
    assert check(copied) == 1
    assert "docs/charts/clone.svg: was drawn from other results" in capsys.readouterr().err
    assert render.main(["--root", str(copied)]) == 0
    assert check(copied) == 0
    drawn = path.read_text()
    path.unlink()
    charts.draw("clone", charts.clone(record.read(copied / "benchmarks" / "results")), path)
    assert path.read_text() == drawn  # no date, no random identifiers
    assert "svg" in drawn and "<dc:date>" not in drawn


@pytest.mark.parametrize("name", charts.CHARTS)
def test_a_chart_of_other_numbers_has_another_digest(name):
    question, chart = charts.CHARTS[name]
    results = record.read()
    before = chart(results).digest()
    for row in (row for rows in results[question]["tables"].values() for row in rows):
        for key in ("resident", "seconds", "ratio"):
            if isinstance(row.get(key), dict):
                row[key] = {name: value * 2 for name, value in row[key].items()}
            elif key in row:
                row[key] *= 2
    assert chart(results).digest() != before
    assert charts.stored_digest(ROOT / "docs" / "charts" / f"{name}.svg") == before


def test_a_rehearsal_is_not_taken_for_results_of_a_gpu(copied):
    document = {"benchmarks": {"form": "tiny", "tables": {}}}
    (copied / "gpu.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit, match="not run, or in a rehearsal"):
        render.main(["--root", str(copied), "--gpu", str(copied / "gpu.json")])
    document["benchmarks"] = {**record.read()["clone"], "tables": {"optimizers": [{"error": "no memory"}]}}
    (copied / "gpu.json").write_text(json.dumps(document))
    assert render.main(["--root", str(copied), "--gpu", str(copied / "gpu.json")]) == 0
    assert "Failed: no memory" in (copied / "docs" / "benchmarks.md").read_text()
    assert check(copied) == 0


@pytest.mark.parametrize("question", record.read())
def test_stored_results_say_where_they_come_from(question):
    result = record.read()[question]
    assert re.fullmatch("[0-9a-f]{40}", result["commit"])
    assert result["form"] in ("quick", "full")
    assert {"cpu", "cores", "memory_gb", "system", "huge pages"} <= set(result["machine"])
    assert {"python", "torch", "torchcow"} <= set(result["versions"])
    assert not platform.node() or platform.node() not in json.dumps(result["machine"])


def test_every_number_of_the_headline_is_generated():
    text = (ROOT / "README.md").read_text()
    assert len(render.HEADLINE.findall(text)) == 1


def test_without_a_gpu_the_page_says_so():
    assert "no stored results yet" in cuda.section(None)
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert ("no stored results yet" in page) == ("cuda" not in record.read())


def test_no_row_of_the_page_is_a_key_of_the_results():
    rows = re.findall(r"^(?:\|.*|\*\*.*\*\*)$", (ROOT / "docs" / "benchmarks.md").read_text(), re.MULTILINE)
    assert [row for row in rows if "_" in re.sub("`[^`]*`", "", row)] == []
    tables = {name for question in ("prototype", "registry", "answers") for name in record.read()[question]["tables"]}
    assert tables - {"figures"} <= set(labels.TABLES)
    figures = {name for result in record.read().values() for row in result["tables"].get("figures", []) for name in row}
    shown = {labels.figure(name, 1.0)[0] for name in figures if name in labels.FIGURES}
    assert len(shown) == len(labels.FIGURES), "a figure has no value, or two have one name"


@pytest.mark.parametrize("name", charts.CHARTS)
def test_a_logarithmic_axis_says_so(name):
    lines = charts.CHARTS[name][1](record.read())
    assert ("(log scale" in lines.x, "(log scale" in lines.y) == ("x" in lines.log, "y" in lines.log)


def test_the_bars_show_their_values():
    lines = charts.clone(record.read())
    assert all(len(lines.texts[name]) == len(points) for name, points in lines.series.items())
    drawn = (ROOT / "docs" / "charts" / "clone.svg").read_text()
    assert [text for texts in lines.texts.values() for text in texts if f">{text}<" not in drawn] == []


def test_losses_are_named():
    """A method that is faster than a clone, and fractions for which a deep copy is faster, are named in words."""

    def row(model, name, seconds):
        return {"model": model, "candidate": name, "seconds": {"median": seconds}}

    row_of = markdown.by([row("m", "torchcow.clone", 2.0), row("m", "other", 1.0)], "model", "candidate")
    methods = {"other": {"limits": "a dict"}, "torchcow.clone": {"limits": ""}}
    assert clone._lost(row_of, ["m"], methods) == "other is faster than a clone for every model (a dict)."
    ratio = {"lower": 1.1, "median": 1.2, "upper": 1.3}
    rows = [{"steps": 1, "fraction": f, "candidate": "torchcow.clone", "ratio": ratio} for f in (0.5, 1.0)]
    expected = "1 step: a deep copy is faster with 50 % and 100 % trained, at worst by 20 % (beyond the quartiles)."
    assert first_write._verdict(rows) == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.00012345, "123 µs"),
        (1.5, "1.5 s"),
        (0.0625, "62.5 ms"),
        (3e-8, "30 ns"),
        (1234.0, "1,230 s"),
        (99.95, "100 s"),
    ],
)
def test_times_are_shown_with_three_digits(value, shown):
    assert markdown.duration(value) == shown
