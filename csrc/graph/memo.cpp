#include "memo.h"

#include "protocol.h"

#include <torch/csrc/Storage.h>

namespace torchcow {

namespace {

py::object identity(const void* object) { return steal(PyLong_FromVoidPtr(const_cast<void*>(object))); }

void keep_alive(PyObject* source, PyObject* dict) {
  const auto key = identity(dict);
  PyObject* kept = PyDict_GetItemWithError(dict, key.ptr());
  if (kept == nullptr) {
    if (PyErr_Occurred()) raise();
    const auto made = steal(PyList_New(0));
    check(PyList_Append(made.ptr(), source));
    check(PyDict_SetItem(dict, key.ptr(), made.ptr()));
  } else if (PyList_CheckExact(kept)) {
    check(PyList_Append(kept, source));
  } else {
    steal(PyObject_CallMethodObjArgs(borrow(kept).ptr(), Protocol::get().names.append, source, nullptr));
  }
}

}  // namespace

Memo::Memo(Call& call) : call_(&call), entries_(64) {}

Memo::Memo(Call& call, py::object dict) : call_(&call), dict_(std::move(dict)) {}

Memo::~Memo() {
  storages_.clear();
  release(std::move(entries_));
}

/// The objects may run user code when they go: nothing may look into the table any more.
void Memo::release(std::vector<Entry> entries) {
  for (const auto& entry : entries) {
    if (entry.source == nullptr) continue;
    Py_DECREF(entry.source);
    Py_DECREF(entry.copy);
  }
}

Memo::Entry& Memo::entry_of(PyObject* source) {
  const auto mask = entries_.size() - 1;
  auto place = (reinterpret_cast<std::uintptr_t>(source) >> 4) * 0x9E3779B97F4A7C15ULL >> 20;
  for (;; ++place) {
    auto& entry = entries_[place & mask];
    if (entry.source == source || entry.source == nullptr) return entry;
  }
}

void Memo::grow() {
  std::vector<Entry> smaller(entries_.size() * 4);
  entries_.swap(smaller);
  for (const auto& entry : smaller) {
    if (entry.source != nullptr) entry_of(entry.source) = entry;
  }
}

PyObject* Memo::find(PyObject* source) {
  if (hidden()) return entry_of(source).copy;
  PyObject* copy = PyDict_GetItemWithError(dict_.ptr(), identity(source).ptr());
  if (copy == nullptr && PyErr_Occurred()) raise();
  return copy;
}

void Memo::put(PyObject* source, PyObject* copy) {
  if (!hidden()) {
    check(PyDict_SetItem(dict_.ptr(), identity(source).ptr(), copy));
    return;
  }
  auto* entry = &entry_of(source);
  if (entry->source != nullptr) {
    if (entry->copy == copy) return;
    Py_INCREF(copy);
    Py_DECREF(std::exchange(entry->copy, copy));
    return;
  }
  if (++count_ * 2 > entries_.size()) {
    grow();
    entry = &entry_of(source);
  }
  *entry = {source, copy};
  Py_INCREF(source);
  Py_INCREF(copy);
}

void Memo::settle(PyObject* source, PyObject* copy) {
  put(source, copy);
  if (!hidden()) keep_alive(source, dict_.ptr());
}

PyObject* Memo::dict() {
  if (!hidden()) return dict_.ptr();
  const auto dict = steal(PyDict_New());
  const auto kept = steal(PyList_New(0));
  for (const auto& entry : entries_) {
    if (entry.source == nullptr) continue;
    check(PyDict_SetItem(dict.ptr(), identity(entry.source).ptr(), entry.copy));
    check(PyList_Append(kept.ptr(), entry.source));
  }
  if (!storages_.empty()) {
    const auto torch = steal(PyDict_New());
    for (const auto& [source, pair] : storages_) {
      const auto object = steal(THPStorage_Wrap(pair.first));
      const auto copy = steal(THPStorage_Wrap(pair.second));
      check(PyDict_SetItem(torch.ptr(), identity(source).ptr(), copy.ptr()));
      check(PyDict_SetItem(dict.ptr(), identity(object.ptr()).ptr(), copy.ptr()));
      check(PyList_Append(kept.ptr(), object.ptr()));
    }
    check(PyDict_SetItem(dict.ptr(), Protocol::get().names.torch, torch.ptr()));
  }
  if (PyList_GET_SIZE(kept.ptr()) > 0) check(PyDict_SetItem(dict.ptr(), identity(dict.ptr()).ptr(), kept.ptr()));
  running_.emplace(dict.ptr(), *call_);
  dict_ = dict;
  storages_.clear();
  release(std::move(entries_));
  return dict_.ptr();
}

const c10::Storage* Memo::find_storage(const c10::StorageImpl* source) const {
  const auto found = storages_.find(source);
  return found == storages_.end() ? nullptr : &found->second.second;
}

void Memo::put_storage(const c10::Storage& source, c10::Storage copy) {
  storages_.emplace(source.unsafeGetStorageImpl(), std::pair(source, std::move(copy)));
}

}  // namespace torchcow
