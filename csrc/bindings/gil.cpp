#include "bindings.h"

#include "registry.h"
#include "retire.h"

namespace torchcow {

namespace {

bool interpreter_runs() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsInitialized() && !Py_IsFinalizing();
#else
  return Py_IsInitialized() && !_Py_IsFinalizing();
#endif
}

void* release() { return interpreter_runs() && PyGILState_Check() ? PyEval_SaveThread() : nullptr; }

void acquire(void* state) {
  if (state != nullptr) PyEval_RestoreThread(static_cast<PyThreadState*>(state));
}

bool other_threads_run_python() {
  if (!interpreter_runs()) return false;
  if (!PyGILState_Check()) return true;
  // The list of threads does not shrink while the lock is held.
  auto* first = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
  return PyThreadState_Next(first) != nullptr;
}

}  // namespace

void install_gil_hooks() {
  registry().blocking = {&release, &acquire};
  set_other_threads_probe(&other_threads_run_python);
}

}  // namespace torchcow
