# SPDX-License-Identifier: Apache-2.0

# What run_asan.sh, run_tsan.sh and run_coverage.sh share; sourced in the root of the repository.

python="${PYTHON:-.venv/bin/python}"
python="$(cd "$(dirname "$python")" && pwd)/$(basename "$python")"
export PATH="$(dirname "$python"):$PATH"  # cmake and ninja of the environment
compiler="${CXX:-g++}"

have_gtest() {
  echo '#include <gtest/gtest.h>' | "$compiler" -x c++ -E - >/dev/null 2>&1
}

# runtime NAME: the path of a runtime library of the compiler
runtime() {
  local path
  path="$("$compiler" -print-file-name="$1")"
  [ -e "$path" ] || { echo "$compiler has no $1" >&2; exit 1; }
  realpath "$path"
}

# configure PRESET: builds the tests, and a package with the extension of that preset, in build/PRESET
configure() {
  local folder="build/$1" tests=OFF
  have_gtest && tests=ON
  mkdir -p "$folder/package"
  rm -rf "$folder"/package/torchcow*
  cp -r python/torchcow* "$folder/package/"
  rm -f "$folder"/package/torchcow/*.so
  cmake --preset "$1" -DTORCHCOW_TESTS="$tests" -DPython_EXECUTABLE="$python" \
    -DTORCHCOW_OUTPUT_DIR="$PWD/$folder/package/torchcow" \
    >"$folder/configure.log" 2>&1 || { cat "$folder/configure.log"; exit 1; }
  cmake --build "$folder" ${JOBS:+-j "$JOBS"}
}
