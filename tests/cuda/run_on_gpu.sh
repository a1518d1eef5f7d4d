#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Build, test and measure torchcow on a machine with a GPU, with one command and within eight minutes:
#
#     tests/cuda/run_on_gpu.sh [RESULTS.json]
#
# Uses the torch that `python3` has (or $PYTHON) and installs nothing into its environment; needs no network. Results go
# to the argument, else to $OUT (a file, or a folder to put gpu-results.json into), else to ./gpu-results.json. The file
# is written whatever fails, and says what did. Exit status: 0 if everything passed.
#
# Order: build, CUDA tests, CUDA benchmarks, all other tests in the time that is left.

set -uo pipefail

python=${PYTHON:-python3}
budget=${TORCHCOW_GPU_SECONDS:-465}
results=${1:-${OUT:-gpu-results.json}}
[[ -d $results ]] && results=$results/gpu-results.json
mkdir -p "$(dirname "$results")"
results=$(cd "$(dirname "$results")" && pwd)/$(basename "$results")

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
work=$PWD/build/gpu
site=$work/site
rm -rf "$site" "$work"/*.log "$work"/*.xml "$work"/*.json "$work"/*.txt
mkdir -p "$site"

# left SECONDS: how long a step may take, at most so long and never past the budget.
left() {
  local rest=$((budget - SECONDS))
  ((rest > $1)) && rest=$1
  ((rest < 1)) && rest=1
  echo "$rest"
}

# step NAME SECONDS COMMAND...: runs it with a time limit; keeps its output, exit status and duration.
step() {
  local name=$1 limit start=$SECONDS status
  limit=$(left "$2")
  shift 2
  echo "== $name (at most $limit s): $*"
  # An interrupt first, so that pytest still writes its report.
  timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 | tee "$work/$name.log"
  status=${PIPESTATUS[0]}
  echo "$status $((SECONDS - start))" >"$work/$name.status.txt"
  return "$status"
}

write_results() {
  "$python" - "$work" "$results" <<'PYTHON'
import json, os, platform, re, subprocess, sys, time
import xml.etree.ElementTree as xml
from pathlib import Path

work, target = Path(sys.argv[1]), Path(sys.argv[2])


def tried(make):
    try:
        return make()
    except Exception as error:
        return f"unknown: {type(error).__name__}: {error}"


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def device():
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }


def versions():
    import torch

    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "driver": tried(lambda: output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")),
        "nvcc": tried(lambda: output("nvcc", "--version").split("\n")[-1]),
    }


def kernels():
    sys.path.insert(0, str(work / "site"))
    import torch

    torch.ones(1, device="cuda")
    import torchcow

    return torchcow._C.build_info().cuda_kernels


def commit():
    try:
        return {"id": output("git", "rev-parse", "HEAD"), "changed": bool(output("git", "status", "--porcelain"))}
    except Exception:
        return {"id": os.environ.get("TORCHCOW_COMMIT", "unknown"), "changed": None}


def steps():
    found = {}
    for path in sorted(work.glob("*.status.txt")):
        status, seconds = map(int, path.read_text().split())
        name = path.name.removesuffix(".status.txt")
        found[name] = {"status": status, "seconds": seconds, "timed_out": status in (124, 137)}
        if status:
            found[name]["tail"] = (work / f"{name}.log").read_text(errors="replace")[-4000:]
    return found


def tests(name):
    report, log = work / f"{name}.xml", work / f"{name}.log"
    # The report of an interrupted run counts the test that was interrupted as passed.
    if report.exists() and not steps().get(name, {}).get("timed_out"):
        counts, bad = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}, []
        for case in xml.parse(report).getroot().iter("testcase"):
            kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
            outcome = {"failure": "failed"}.get(kind := min(kinds, default="passed"), kind)
            counts[outcome] += 1
            if outcome in ("failed", "error"):
                bad.append(f"{case.get('classname')}::{case.get('name')}")
        return counts | {"failures": bad}
    if log.exists():
        counts = {}
        lines = log.read_text(errors="replace")
        for outcome in re.findall(r"^\S+::.* (PASSED|FAILED|ERROR|SKIPPED)", lines, re.MULTILINE):
            counts[outcome.lower()] = counts.get(outcome.lower(), 0) + 1
        return counts | {"incomplete": True}
    return {"not_run": True}


benchmarks = work / "benchmarks.json"
target.write_text(
    json.dumps(
        {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": commit(),
            "device": tried(device),
            "versions": tried(versions),
            "kernels": tried(kernels),
            "steps": steps(),
            "tests": {"cuda": tests("cuda_tests"), "other": tests("other_tests")},
            "benchmarks": json.loads(benchmarks.read_text()) if benchmarks.exists() else {"not_run": True},
        },
        indent=2,
    )
    + "\n"
)
PYTHON
  echo "== results: $results"
}
trap write_results EXIT

# scikit-build-core may be missing, and with it the regular way: then plain CMake, beside a copy of the Python files.
if "$python" -c 'import scikit_build_core' 2>/dev/null; then
  step build_wheel 170 "$python" -m pip install --no-build-isolation --no-deps --no-index --target "$site" .
fi
if ! compgen -G "$site/torchcow/_C*" >/dev/null; then
  rm -rf "$site"
  mkdir -p "$site"
  cp -R python/torchcow* "$site/"
  rm -f "$site"/torchcow/_C*.so
  generator=()
  command -v ninja >/dev/null && generator=(-G Ninja)
  step configure 60 cmake -S . -B "$work/cmake" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release \
    "-DPython_EXECUTABLE=$(command -v "$python")" "-DTORCHCOW_OUTPUT_DIR=$site/torchcow" &&
    step build 200 cmake --build "$work/cmake" --parallel
fi

export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
step import 60 "$python" -c 'import torch, torchcow; print(torch.__version__, torchcow.__file__)' || exit 1

failed=0
pytest=("$python" -m pytest -p no:cacheprovider -v --tb=short)
step cuda_tests 150 "${pytest[@]}" -m cuda tests "--junitxml=$work/cuda_tests.xml" || failed=1
step benchmarks 110 "$python" benchmarks/bench_cuda.py --seconds 80 --out "$work/benchmarks.json" || failed=1
step other_tests 400 "${pytest[@]}" -m "not cuda" tests "--junitxml=$work/other_tests.xml" || failed=1
exit "$failed"
