# SPDX-License-Identifier: Apache-2.0
"""Render the stored results into README.md, docs/benchmarks.md and docs/charts.

python benchmarks/render.py            write
python benchmarks/render.py --check    fail if a page differs from the results
python benchmarks/render.py --gpu F    store the benchmarks in F, which tests/cuda/run_on_gpu.sh wrote; then write
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import record
from report import charts, clone, cuda, first_write, memory, reading, rest, scaling
from report.markdown import table

ROOT = Path(__file__).resolve().parent.parent
HEADLINE = re.compile(r"(<!-- benchmarks: headline -->\n).*?(<!-- end -->)", re.DOTALL)
SECTIONS = {
    "clone": clone.section,
    "memory": memory.section,
    "first_write": first_write.section,
    "reading": reading.section,
    "scaling": scaling.section,
}
IN_README = ("GPT-2 124M", "Llama 1.1B bfloat16", "ResNet-50 26M", "SmolLM2 135M, real weights")

INTRODUCTION = """<!-- Written by benchmarks/render.py from benchmarks/results: do not edit. -->

# Benchmarks

How fast is torchcow, and how much memory does it save? Each section asks one question and has the measured answer.
Rows in which torchcow loses are shown like the others.

    make bench             # minutes; prints what it measures
    make bench FULL=1      # all models and sizes; stores the results and writes this page

Methods take turns, A B C, A B C, in one process, so a machine whose speed drifts slows all of them. Times are
medians, with the quartiles in brackets: the middle half of the rounds. A ratio is formed within each round, so a slow
round cancels out; the table has the median of the ratios. Differences that are smaller than the quartiles are noise.
Each benchmark also checks its result. Fast calls are repeated within a turn and the median call counts, so caches are
warm, unless the text says otherwise. The results are JSON in `benchmarks/results`, and a test fails if this page says
something else.
"""


def page(results: charts.Results) -> str:
    parts = [INTRODUCTION]
    quick = [name.replace("_", " ") for name, result in results.items() if result["form"] != "full" and name != "cuda"]
    if quick:
        parts.append(f"Results of the quick form, with few rounds and without large models: {', '.join(quick)}.\n")
    for name, section in SECTIONS.items():
        if name in results:
            parts.append(section(results[name]))
    parts.append(cuda.section(results.get("cuda")))
    parts += [rest.section(name, results[name]) for name in rest.TITLES if name in results]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def headline(results: charts.Results) -> str:
    rows = clone.headline(results["clone"], list(IN_README))
    rows += memory.headline(results["memory"])
    rows += reading.headline(results["reading"])
    rows += first_write.headline(results["first_write"])
    machine, versions = results["clone"]["machine"], results["clone"]["versions"]
    others = len(results["clone"]["tables"]["methods"]) - 1
    where = f"{machine['cpu']}, {machine['cores']} cores, torch {versions['torch']}, {results['clone']['form']} form"
    return (
        "\n"
        + table(["", "`copy.deepcopy`", "torchcow", "better by"], rows)
        + f"\nMedians on a CPU ({where}); below 1x torchcow loses.\n"
        f"[All results](docs/benchmarks.md), against {others} other methods.\n\n"
        "![Time of a clone by model](docs/charts/clone.svg)\n\n"
    )


def texts(root: Path, results: charts.Results) -> dict[Path, str]:
    """What README and the page of benchmarks must contain."""
    readme = root / "README.md"
    old = readme.read_text()
    if not HEADLINE.search(old):
        raise SystemExit(f"{readme}: has no '<!-- benchmarks: headline -->' with an '<!-- end -->' after it")
    new = HEADLINE.sub(lambda match: match[1] + headline(results) + match[2], old)
    return {readme: new, root / "docs" / "benchmarks.md": page(results)}


def plots(root: Path, results: charts.Results) -> dict[Path, tuple[str, charts.Lines]]:
    return {
        root / "docs" / "charts" / f"{name}.svg": (name, chart(results))
        for name, (question, chart) in charts.CHARTS.items()
        if question in results
    }


def differences(root: Path, results: charts.Results) -> list[str]:
    """Where a file differs from the results, one line each."""
    report = []
    for path, text in texts(root, results).items():
        old = path.read_text().splitlines() if path.exists() else []
        new = text.splitlines()
        if old != new:
            at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            lines = [lines[at] if at < len(lines) else "(nothing)" for lines in (old, new)]
            report.append(
                f"{path.relative_to(root)}:{at + 1}: says\n    {lines[0]}\n  and the results say\n    {lines[1]}"
            )
    for path, (_, lines) in plots(root, results).items():
        if charts.stored_digest(path) != lines.digest():
            report.append(f"{path.relative_to(root)}: was drawn from other results")
    return report


def write(root: Path, results: charts.Results) -> None:
    for path, text in texts(root, results).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path, (name, lines) in plots(root, results).items():
        if charts.stored_digest(path) != lines.digest():
            charts.draw(name, lines, path)


def of_a_gpu(path: Path) -> dict[str, Any]:
    """The benchmarks in the results of run_on_gpu.sh, whose form is that of all other results."""
    benchmarks = json.loads(path.read_text())["benchmarks"]
    if "tables" not in benchmarks or benchmarks["form"] == "tiny":
        raise SystemExit(f"{path}: its benchmarks were not run, or in a rehearsal, or by an older bench_cuda.py")
    return benchmarks


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    parser.add_argument("--gpu", type=Path, metavar="FILE", help="store the benchmarks of a run on a GPU first")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    options = parser.parse_args(arguments)
    folder = options.root / "benchmarks" / "results"
    if options.gpu:
        record.write("cuda", of_a_gpu(options.gpu), folder)
    results = record.read(folder)
    if missing := [name for name in SECTIONS if name not in results]:
        raise SystemExit(f"{folder}: no results of {', '.join(missing)}; 'make bench FULL=1' measures and stores them")
    if not options.check:
        write(options.root, results)
        return 0
    report = differences(options.root, results)
    for line in report:
        print(line, file=sys.stderr)
    if report:
        print("'python benchmarks/render.py' writes them anew from benchmarks/results", file=sys.stderr)
    return 1 if report else 0


if __name__ == "__main__":
    raise SystemExit(main())
