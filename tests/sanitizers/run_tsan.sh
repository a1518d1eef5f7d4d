#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Racing threads under ThreadSanitizer: the C++ tests that use threads, then the Python tests that do.
#
#   PYTHON       the interpreter with torch (.venv/bin/python)
#   JOBS         compile that many files at once (as many as there are processors)
#   PYTEST_ARGS  how to run the Python tests
#
# Only the engine is instrumented. What torch and Python synchronize inside of themselves is unknown to the sanitizer;
# tsan.supp names the reports that come of it, each with its reason. The builds are kept in build/tsan.

set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/sanitizers/common.sh

configure tsan

# ignore_noninstrumented_modules: accesses inside of torch's and Python's libraries (memcpy, free) are not reported; what
# the engine itself reads and writes is.
# second_deadlock_stack: both sides of a lock that is taken in the wrong order.
export TSAN_OPTIONS="suppressions=$PWD/tests/sanitizers/tsan.supp:ignore_noninstrumented_modules=1:second_deadlock_stack=1:history_size=4"

echo "== C++ tests under ThreadSanitizer"
if have_gtest; then
  TSAN_OPTIONS="$TSAN_OPTIONS:halt_on_error=1" \
    ctest --test-dir build/tsan --output-on-failure -R 'test_(races|write_hook|retire|reserve|reshare|reading|barrier|streams|host_copy|host_pages|materialize|ledger|writing)'
else
  echo "LEFT OUT, because GoogleTest is not installed (Debian: apt-get install libgtest-dev)"
fi

echo "== Python tests with threads under ThreadSanitizer"
# no:benchmark: that plugin starts a process, and a fork hangs in the sanitizer's runtime.
# exitcode=66 at the end of the process if anything was reported; reports do not stop the tests.
LD_PRELOAD="$(runtime libtsan.so)" TSAN_OPTIONS="$TSAN_OPTIONS:exitcode=66" PYTHONPATH="$PWD/build/tsan/package" \
  "$python" -m pytest tests/engine/test_threads.py tests/engine/test_reshare.py tests/report/test_trace.py \
  tests/engine/test_reading_scope.py tests/snapshots/test_prototype_threads.py -x -q -p no:cacheprovider -p no:benchmark ${PYTEST_ARGS:-}
