// SPDX-License-Identifier: Apache-2.0

#include "bindings.h"

#include "cpython_internals.h"
#include "materialize.h"

#include <deque>
#include <mutex>

namespace py = pybind11;

namespace torchcow {

namespace {

/// The Python function that is notified of each materialization, or null. Once set, it lives as long as the process.
PyObject* listener_function = nullptr;

/// A materialization that the listener itself causes is not notified.
thread_local bool notifying = false;

/// Events of threads without Python. The main thread notifies the listener of them.
struct PendingEvents {
  std::mutex mutex;
  std::deque<Event> events;
};

PendingEvents& pending() {
  static auto* instance = new PendingEvents();
  return *instance;
}

/// `by_writer`: this thread is the one that writes, so its Python stack is the writer's.
void call_listener(const Event& event, bool by_writer) noexcept {
  if (listener_function == nullptr || notifying) return;
  notifying = true;
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  try {
    py::reinterpret_borrow<py::object>(listener_function)(event, by_writer);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("a callback of torchcow.on_materialize");
  } catch (const std::exception&) {
    // No memory for the arguments: the write matters more.
  }
  PyErr_Restore(type, value, traceback);
  notifying = false;
}

int notify_of_pending(void*) noexcept {
  std::deque<Event> events;
  {
    std::lock_guard lock(pending().mutex);
    events.swap(pending().events);
  }
  for (const auto& event : events) call_listener(event, false);
  return 0;
}

void notify(const Event& event) noexcept {
  if (!interpreter_runs() || notifying) return;
  if (PyGILState_GetThisThreadState() != nullptr) {
    const py::gil_scoped_acquire locked;
    call_listener(event, true);
    return;
  }
  try {
    std::lock_guard lock(pending().mutex);
    pending().events.push_back(event);
  } catch (const std::bad_alloc&) {
    return;
  }
  Py_AddPendingCall(&notify_of_pending, nullptr);
}

void set_python_listener(const py::object& listener) {
  Py_XSETREF(listener_function, listener.is_none() ? nullptr : listener.inc_ref().ptr());
  set_listener(listener.is_none() ? nullptr : &notify);
}

}  // namespace

void bind_listener(py::module_& module) { module.def("set_listener", &set_python_listener, py::arg("listener")); }

}  // namespace torchcow
