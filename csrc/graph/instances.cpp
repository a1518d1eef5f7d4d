#include "walk.h"

namespace torchcow {

/// `copyreg.__newobj__(cls)`, with the state in `__dict__`, as object.__reduce_ex__ would have it. The state of a module is
/// a copy of its `__dict__`.
PyObject* Walk::enter_instance(PyObject* source, bool module) {
  auto attributes = steal(PyObject_GenericGetDict(source, nullptr));
  PyObject* dict = attributes.ptr();
  if (protocol_.overrides(dict, module) || PyDict_GET_SIZE(dict) == 0 ||
      (module && !protocol_.complete_module(dict))) {
    return ask(source);
  }
  auto* type = Py_TYPE(source);
  // A class can be in the caller's memo as well.
  if (!memo_.hidden() && memo_.find(reinterpret_cast<PyObject*>(type)) != nullptr) return ask(source);
  auto copy = steal(PyBaseObject_Type.tp_new(type, protocol_.empty_tuple, nullptr));
  memo_.put(source, copy.ptr());
  if (module) {
    attributes = steal(PyDict_Copy(dict));
    dict = attributes.ptr();
  }
  // If nobody but the instance and we, or only we, hold the dict, no copy of it is needed beside the attributes.
  const bool own = memo_.hidden() && (module || Py_REFCNT(dict) == 2);
  auto& frame = push(module ? Frame::Kind::module : Frame::Kind::instance, source);
  frame.copy = std::move(copy);
  frame.extra = std::move(attributes);
  frame.size = PyDict_GET_SIZE(dict);
  frame.base = values_.size();
  frame.phase = own ? 0 : 1;
  return nullptr;
}

// instance, module: `extra` is the state, a dict. Phase 0: keys and copied values wait in `values_`, and become the
// attributes at the end. Phase 1: the dict itself is being copied, and updates the attributes of the copy.
PyObject* Walk::resume_instance(PyObject* result) {
  const auto depth = frames_.size();
  const auto frame = [&]() -> Frame& { return frames_[depth - 1]; };
  PyObject* const dict = top().extra.ptr();
  auto made = py::reinterpret_steal<py::object>(result);
  if (top().phase == 1) {
    if (!made) made = py::reinterpret_steal<py::object>(enter(dict));
    if (!made) return nullptr;
    const auto attributes = steal(PyObject_GenericGetDict(frame().copy.ptr(), nullptr));
    check(PyDict_Update(attributes.ptr(), made.ptr()));
    return finish(std::move(frame().copy));
  }
  for (;;) {
    if (made) values_.push_back(std::move(made));
    auto& here = frame();
    if (PyDict_GET_SIZE(dict) != here.size) {
      PyErr_SetString(PyExc_RuntimeError, "dictionary changed size during iteration");
      raise();
    }
    PyObject *key, *value;
    if (!PyDict_Next(dict, &here.position, &key, &value)) break;
    if (values_.size() - here.base == 2 * static_cast<std::size_t>(here.size)) {
      PyErr_SetString(PyExc_RuntimeError, "dictionary keys changed during iteration");
      raise();
    }
    const auto held = borrow(value);
    auto name = borrow(key);
    values_.push_back(PyUnicode_CheckExact(key) ? std::move(name) : Walk(memo_).copy(key));
    made = py::reinterpret_steal<py::object>(enter(value));
    if (!made) return nullptr;
  }
  const auto base = frame().base;
  const auto copy = frame().copy;
  const auto attributes = steal(PyObject_GenericGetDict(copy.ptr(), nullptr));
  for (auto i = base; i < values_.size(); i += 2) {
    check(PyDict_SetItem(attributes.ptr(), values_[i].ptr(), values_[i + 1].ptr()));
  }
  values_.resize(base);
  return finish(copy);
}

}  // namespace torchcow
