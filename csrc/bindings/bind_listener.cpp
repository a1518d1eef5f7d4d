#include "bindings.h"

#include "engine_state.h"
#include "materialize.h"

#include <deque>
#include <mutex>

namespace py = pybind11;

namespace torchcow {

namespace {

/// A Python function that is told of each materialization, or null; lives as long as the process once it was set.
PyObject* function = nullptr;

/// What a listener does is not told to listeners.
thread_local bool telling = false;

/// News of threads that have no Python: the main thread tells them when it comes by.
struct Waiting {
  std::mutex mutex;
  std::deque<Event> events;
};

Waiting& waiting() {
  static auto* instance = new Waiting();
  return *instance;
}

/// `here`: the thread that writes is the one that tells, so its Python stack is the writer's.
void call(const Event& event, bool here) noexcept {
  if (function == nullptr || telling) return;
  telling = true;
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  try {
    const auto listener = py::reinterpret_borrow<py::object>(function);
    listener(to_string(event.way), event.operator_name, event.bytes, event.device.str(),
             reinterpret_cast<std::uintptr_t>(event.storage), here);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("a callback of torchcow.on_materialize");
  } catch (const std::exception&) {
    // No memory for the arguments: the write matters more.
  }
  PyErr_Restore(type, value, traceback);
  telling = false;
}

int tell_waiting(void*) noexcept {
  std::deque<Event> events;
  {
    std::lock_guard lock(waiting().mutex);
    events.swap(waiting().events);
  }
  for (const auto& event : events) call(event, false);
  return 0;
}

void tell(const Event& event) noexcept {
  if (!interpreter_runs() || telling) return;
  if (PyGILState_GetThisThreadState() != nullptr) {
    const py::gil_scoped_acquire locked;
    call(event, true);
    return;
  }
  try {
    std::lock_guard lock(waiting().mutex);
    waiting().events.push_back(event);
  } catch (const std::bad_alloc&) {
    return;
  }
  Py_AddPendingCall(&tell_waiting, nullptr);
}

void set_python_listener(const py::object& listener) {
  Py_XSETREF(function, listener.is_none() ? nullptr : listener.inc_ref().ptr());
  set_listener(listener.is_none() ? nullptr : &tell);
}

}  // namespace

void bind_listener(py::module_& module) { module.def("set_listener", &set_python_listener, py::arg("listener")); }

}  // namespace torchcow
