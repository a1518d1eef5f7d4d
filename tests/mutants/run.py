# SPDX-License-Identifier: Apache-2.0
"""Break the project on purpose, and see that tests notice: ``make mutants``.

Each mutant (mutants.py) is applied to a copy of the tree in build/mutants, and the tests that it names run there. At
least one of them must fail; all of them must pass without the mutant. Only what a mutant changes is compiled.

    run.py [--record] [NAME ...]

Results are written to build/mutants/results.json; with --record also to tests/mutants/results.json and to the table in
DESIGN.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mutants import HERE, ROOT, Mutant, StaleMutantError, load

SCRATCH = ROOT / "build" / "mutants"
TREE = SCRATCH / "tree"
BUILD = SCRATCH / "build"
#: Where the package is, with the extension of ``make build``, and with one that is compiled for each mutant.
SITES = {False: SCRATCH / "interpreted", True: SCRATCH / "compiled"}
RESULTS = HERE / "results.json"
TABLE = "mutants"
#: After this long without an end, the tests of a mutant count as failed.
SECONDS = 180.0


@dataclass
class Outcome:
    """How many of the tests of a mutant failed."""

    failed: int = 0
    ran: int = 0
    output: str = ""

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.failed + other.failed, self.ran + other.ran, self.output + other.output)


class BrokenMutantError(Exception):
    """A mutant that says nothing: it does not compile, or its tests do not run."""


def copy_tree() -> None:
    """Bring build/mutants/tree up to date; files that are the same keep their times, so nothing is compiled twice."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    names = {name for name in listed if name and (ROOT / name).is_file()}
    for name in names:
        source, target = ROOT / name, TREE / name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for path in list(TREE.rglob("*")):
        if path.is_file() and str(path.relative_to(TREE)) not in names and path.suffix != ".pyc":
            path.unlink()


def copy_package(site: Path) -> None:
    """Install the Python files of the tree."""
    shutil.copytree(TREE / "python", site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pyc", "__pycache__"))


def built_extension() -> Path:
    """Return the extension that ``make build`` installed."""
    command = [sys.executable, "-c", "from torchcow import _C; print(_C.__file__)"]
    return Path(subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout.strip())


def configure() -> None:
    """Make the build folder of mutants that are compiled; ccache spares most of the first build where it is used."""
    if (BUILD / "build.ninja").is_file():
        return
    command = ["cmake", "-S", str(TREE), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    command += ["-DTORCHCOW_TESTS=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-DTORCHCOW_OUTPUT_DIR={SITES[True] / 'torchcow'}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def compile_for(mutants: Iterable[Mutant]) -> None:
    """Compile what the tests of the mutants need."""
    targets = set()
    for mutant in mutants:
        targets |= {name for name, _ in mutant.native_tests}
        if mutant.python_tests:
            targets.add("torchcow_extension")
    command = ["cmake", "--build", str(BUILD), "--target", *sorted(targets)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BrokenMutantError(f"does not compile:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")


def run_pytest(tests: Iterable[str], site: Path, seconds: float) -> Outcome:
    """Run tests of Python in the tree."""
    tests = list(dict.fromkeys(tests))
    if not tests:
        return Outcome()
    report = SCRATCH / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests], cwd=TREE, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return Outcome(1, 1, "pytest: no end\n")
    if done.returncode not in (0, 1) and done.returncode > 0:
        raise BrokenMutantError(
            f"pytest did not run its tests ({done.returncode}):\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        )
    if done.returncode < 0 or not report.is_file():
        return Outcome(1, 1, f"pytest: killed by signal {-done.returncode}\n{done.stdout[-500:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    names = {f"{case.get('classname')}.{case.get('name')}" for case in failed}
    if all(case.find("skipped") is not None for case in cases):
        raise BrokenMutantError("all of its tests were skipped")
    return Outcome(len(names), len(cases), done.stdout[-3000:] if failed else "")


def run_native(tests: Iterable[tuple[str, str]], seconds: float) -> Outcome:
    """Run C++ tests."""
    outcome = Outcome()
    for name, pattern in dict.fromkeys(tests):
        found = list((BUILD / "tests").rglob(name)) + list((BUILD / "tests").rglob(f"*/{name}"))
        report = SCRATCH / "report.json"
        report.unlink(missing_ok=True)
        command = [str(found[0]), f"--gtest_filter={pattern}", f"--gtest_output=json:{report}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
        except subprocess.TimeoutExpired:
            outcome += Outcome(1, 1, f"{name}: no end\n")
            continue
        if not report.is_file():
            outcome += Outcome(1, 1, f"{name}: ended with {done.returncode}\n{done.stderr[-500:]}")
            continue
        summary = json.loads(report.read_text())
        if summary["tests"] == 0:
            raise BrokenMutantError(f"{name} has no test {pattern}")
        outcome += Outcome(summary["failures"], summary["tests"], done.stdout[-3000:] if summary["failures"] else "")
    return outcome


def run_tests(mutants: list[Mutant], seconds: float = SECONDS) -> Outcome:
    """Run the tests of some mutants, each once."""
    native = run_native((test for mutant in mutants for test in mutant.native_tests), seconds)
    site = SITES[any(mutant.compiles for mutant in mutants)]
    return native + run_pytest((test for mutant in mutants for test in mutant.python_tests), site, seconds)


def try_mutant(mutant: Mutant) -> Outcome:
    """Break the tree, run the tests of the mutant, and repair the tree."""
    site = SITES[mutant.compiles]
    before = mutant.apply(TREE)
    try:
        copy_package(site)
        if mutant.compiles:
            compile_for([mutant])
        return run_tests([mutant])
    except BrokenMutantError as error:
        raise BrokenMutantError(f"{mutant.name}: {error}") from None
    finally:
        for path, text in before.items():
            path.write_text(text)
        copy_package(site)


def stale_mutants(mutants: Iterable[Mutant], root: Path = ROOT) -> list[str]:
    """Complaints about mutants that do not apply any more."""
    complaints = []
    for mutant in mutants:
        for edit in mutant.edits:
            try:
                edit.find(root)
            except StaleMutantError as error:
                complaints.append(f"{mutant.name}: {error}")
    return complaints


def render(results: dict[str, dict[str, int]]) -> str:
    """The table of DESIGN.md."""
    lines = ["| mutant | what is broken | tests that failed |", "|---|---|---|"]
    for name, mutant in load().items():
        seen = results.get(name)
        count = f"{seen['failed']} of {seen['ran']}" if seen else "not run"
        lines.append(f"| {name} | {mutant.breaks} | {count} |")
    return "\n".join(lines)


def write_table() -> None:
    """Write the results into DESIGN.md, between its markers."""
    results = json.loads(RESULTS.read_text())
    page = ROOT / "DESIGN.md"
    text = page.read_text()
    head, _, rest = text.partition(f"<!-- {TABLE}: begin -->\n")
    _, _, tail = rest.partition(f"<!-- {TABLE}: end -->")
    page.write_text(f"{head}<!-- {TABLE}: begin -->\n{render(results)}\n<!-- {TABLE}: end -->{tail}")


def main() -> int:
    """Run mutants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which mutants (all)")
    parser.add_argument("--record", action="store_true", help="store the results, and write the table of DESIGN.md")
    parser.add_argument("--check", action="store_true", help="only see whether each mutant applies")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # cmake and ninja of the environment
    known = load()
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)}. There are: {', '.join(known)}")
    chosen = [known[name] for name in options.names] or list(known.values())
    stale = stale_mutants(chosen)
    if stale or options.check:
        print("\n".join(stale) or f"all {len(chosen)} mutants apply")
        return 1 if stale else 0
    copy_tree()
    interpreted = [mutant for mutant in chosen if not mutant.compiles]
    compiled = [mutant for mutant in chosen if mutant.compiles]
    survivors: list[str] = []
    results: dict[str, dict[str, int]] = {}
    for group in (interpreted, compiled):
        if not group:
            continue
        site = SITES[group is compiled]
        copy_package(site)
        if group is compiled:
            configure()
            compile_for(group)
        else:
            extension = built_extension()
            shutil.copy(extension, site / "torchcow" / extension.name)
        sound = run_tests(group, 20 * SECONDS)
        if sound.failed:
            print(f"{sound.failed} of {sound.ran} tests fail without any mutant:\n{sound.output}")
            return 1
        for mutant in group:
            start = time.monotonic()
            outcome = try_mutant(mutant)
            results[mutant.name] = {"failed": outcome.failed, "ran": outcome.ran}
            verdict = "killed" if outcome.failed else "SURVIVED"
            count = f"{outcome.failed} of {outcome.ran} tests failed"
            print(f"{verdict:9}{mutant.name}: {count} ({time.monotonic() - start:.0f} s)", flush=True)
            if not outcome.failed:
                survivors.append(mutant.name)
    (SCRATCH / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if options.record:
        stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        stored = {name: seen for name, seen in (stored | results).items() if name in known}
        RESULTS.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n")
        write_table()
    if survivors:
        print(f"{len(survivors)} of {len(chosen)} mutants survived: {', '.join(survivors)}")
        print("Write the tests that are missing.")
        return 1
    print(f"all {len(chosen)} mutants were killed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
