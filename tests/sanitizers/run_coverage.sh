#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Which lines of the package and of the engine the tests run. Reports as HTML and text in build/coverage.
#
#   PYTHON       the interpreter with torch, coverage and gcovr (.venv/bin/python)
#   JOBS         compile that many files at once (as many as there are processors)
#   PYTEST_ARGS  which Python tests, and how (all)

set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/sanitizers/common.sh

configure coverage
find build/coverage -name '*.gcda' -delete
if have_gtest; then ctest --test-dir build/coverage --output-on-failure; fi

# Child processes are measured too: the package in build/coverage comes first on their path.
failed=0
export COVERAGE_FILE="$PWD/build/coverage/.coverage" PYTHONPATH="$PWD/build/coverage/package"
"$python" -m coverage run -m pytest tests -q -p no:cacheprovider ${PYTEST_ARGS:-} || failed=1
"$python" -m coverage combine -q || true  # nothing to combine where no test started a process
"$python" -m coverage html -q -d build/coverage/python
"$python" -m coverage report | tee build/coverage/python.txt
mkdir -p build/coverage/csrc
"$python" -m gcovr --root . --filter csrc/ --exclude-throw-branches --gcov-ignore-parse-errors \
  --html-details build/coverage/csrc/index.html --txt build/coverage/csrc.txt build/coverage
tail -n 3 build/coverage/csrc.txt
exit "$failed"
