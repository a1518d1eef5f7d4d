// SPDX-License-Identifier: Apache-2.0

#include "bindings.h"

#include "cpython_internals.h"
#include "engine_state.h"
#include "retire.h"

namespace torchcow {

namespace {

void* release() { return interpreter_runs() && PyGILState_Check() ? PyEval_SaveThread() : nullptr; }

void acquire(void* state) {
  if (state != nullptr) PyEval_RestoreThread(static_cast<PyThreadState*>(state));
}

/// Works with and without the interpreter lock, as an operator calls it after giving that up: it looks
/// into nothing but the caller's own thread state, and compares that with the head of the list.
bool other_threads_run_python() {
  if (!interpreter_runs()) return false;
  auto* self = PyGILState_GetThisThreadState();
  if (self == nullptr) return true;
  const bool first = PyInterpreterState_ThreadHead(PyThreadState_GetInterpreter(self)) == self;
  return !first || PyThreadState_Next(self) != nullptr;
}

}  // namespace

void install_gil_hooks() {
  engine().blocking = {&release, &acquire};
  set_other_threads_probe(&other_threads_run_python);
}

}  // namespace torchcow
