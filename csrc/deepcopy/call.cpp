#include "call.h"

#include <unordered_map>

namespace torchcow {

namespace {

std::unordered_map<PyObject*, Call*>& calls() {
  static auto* calls = new std::unordered_map<PyObject*, Call*>();
  return *calls;
}

}  // namespace

Call* Call::running(PyObject* memo) {
  if (calls().empty()) return nullptr;
  const auto found = calls().find(memo);
  return found == calls().end() ? nullptr : found->second;
}

bool Call::excludes(PyTypeObject* type) const noexcept {
  if (!excluded_ || !shares()) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(excluded_.ptr()); ++i) {
    auto* excluded = reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(excluded_.ptr(), i));
    if (PyType_IsSubtype(type, excluded)) return true;
  }
  return false;
}

PyObject* Call::find_reducer(PyTypeObject* type) const noexcept {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(reducers_.ptr()); ++i) {
    PyObject* pair = PyTuple_GET_ITEM(reducers_.ptr(), i);
    if (PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(pair, 0)))) {
      return PyTuple_GET_ITEM(pair, 1);
    }
  }
  return nullptr;
}

Running::Running(PyObject* memo, Call& call) : memo_(memo) { calls().emplace(memo, &call); }

Running::~Running() { calls().erase(memo_); }

}  // namespace torchcow
