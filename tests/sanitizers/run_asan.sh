#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# C++ and Python tests under AddressSanitizer and UndefinedBehaviorSanitizer. Stops at the first test that fails.
#
#   PYTHON       the interpreter with torch (.venv/bin/python)
#   JOBS         compile that many files at once (as many as there are processors)
#   PYTEST_ARGS  which Python tests, and how (all)
#
# Only the engine is instrumented: torch is as it was installed. The builds are kept in build/asan.

set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/sanitizers/common.sh

export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1"
configure asan

echo "== C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer"
if have_gtest; then
  # detect_leaks: what torch keeps until the process ends stays reachable, so leaks are the engine's.
  # new_delete_type_mismatch: torch frees a StorageImpl through its base, with the size of the class that it was made as.
  ASAN_OPTIONS="detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1" \
    LSAN_OPTIONS="suppressions=$PWD/tests/sanitizers/lsan.supp:print_suppressions=0" \
    ctest --test-dir build/asan --output-on-failure
else
  echo "LEFT OUT, because GoogleTest is not installed (Debian: apt-get install libgtest-dev)"
fi

echo "== Python tests under AddressSanitizer and UndefinedBehaviorSanitizer"
# The interpreter is not instrumented, so the runtime comes first by LD_PRELOAD, and libstdc++ with it: the runtime looks
# for __cxa_throw when it starts, and the interpreter does not link libstdc++.
# detect_leaks=0: an interpreter leaves thousands of objects behind at its end. Leaks of blocks are found by the tests'
# accounting, and those of the core by the C++ tests above.
# PYTHONMALLOC: the allocator of Python would hide a use of freed objects.
LD_PRELOAD="$(runtime libasan.so):$(runtime libubsan.so):$(runtime libstdc++.so.6)" \
  ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1" \
  PYTHONMALLOC=malloc PYTHONPATH="$PWD/build/asan/package" \
  "$python" -m pytest tests -x -q -p no:cacheprovider ${PYTEST_ARGS:-}
