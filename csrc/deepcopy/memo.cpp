// SPDX-License-Identifier: Apache-2.0

#include "memo.h"

#include "protocol.h"

#include <torch/csrc/Storage.h>

#include <limits>
#include <new>
#include <utility>

namespace torchcow {

namespace {

py::object identity(const void* object) { return steal(PyLong_FromVoidPtr(const_cast<void*>(object))); }

std::uint32_t short_hash_of(PyObject* source) { return static_cast<std::uint32_t>(hash_of(source) >> 32); }

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

Memo::Memo(Call& call) : call_(&call), table_(64) {}

Memo::Memo(Call& call, py::object dict) : call_(&call), dict_(std::move(dict)) {}

Memo::~Memo() {
  storages_.clear();
  release(std::move(entries_));
}

/// The objects may run user code when they go: nothing may look into the table any more, so this owns the entries.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
void Memo::release(std::vector<Entry> entries) {
  for (const auto& entry : entries) {
    Py_DECREF(entry.source);
    Py_DECREF(entry.copy);
  }
}

std::size_t Memo::place_of(PyObject* source, std::size_t start) const {
  const auto hash = short_hash_of(source);
  const auto mask = table_.size() - 1;
  for (std::size_t place = start & mask;; place = (place + 1) & mask) {
    const auto& slot = table_[place];
    if (slot.next == 0 || (slot.hash == hash && entries_[slot.next - 1].source == source)) return place;
  }
}

void Memo::grow() {
  miss_ = {};
  table_ = std::vector<Slot>(table_.size() * 4);
  std::uint32_t next = 0;
  for (const auto& entry : entries_) {
    const auto hash = short_hash_of(entry.source);
    table_[place_of(entry.source, hash)] = {hash, ++next};
  }
}

PyObject* Memo::find(PyObject* source) {
  if (hidden()) {
    const auto place = place_of(source, short_hash_of(source));
    if (table_[place].next != 0) return entries_[table_[place].next - 1].copy;
    miss_ = {source, place};
    return nullptr;
  }
  PyObject* copy = PyDict_GetItemWithError(dict_.ptr(), identity(source).ptr());
  if (copy == nullptr && PyErr_Occurred()) raise();
  return copy;
}

void Memo::put(PyObject* source, PyObject* copy) {
  if (!hidden()) {
    check(PyDict_SetItem(dict_.ptr(), identity(source).ptr(), copy));
    return;
  }
  auto& slot = table_[place_of(source, miss_.source == source ? miss_.place : short_hash_of(source))];
  if (slot.next != 0) {
    Py_INCREF(copy);
    Py_DECREF(std::exchange(entries_[slot.next - 1].copy, copy));
    return;
  }
  if (entries_.size() == std::numeric_limits<std::uint32_t>::max()) throw std::bad_alloc();
  entries_.push_back({source, copy});
  Py_INCREF(source);
  Py_INCREF(copy);
  slot = {short_hash_of(source), static_cast<std::uint32_t>(entries_.size())};
  if (entries_.size() * 2 > table_.size()) grow();
}

void Memo::finish(PyObject* source, PyObject* copy) { hidden() ? put(source, copy) : finish_started(source, copy); }

void Memo::finish_started(PyObject* source, PyObject* copy) {
  if (hidden()) return;
  put(source, copy);
  keep_alive(source, dict_.ptr());
}

PyObject* Memo::dict() {
  if (!hidden()) return dict_.ptr();
  const auto dict = steal(PyDict_New());
  const auto kept = steal(PyList_New(0));
  for (const auto& entry : entries_) {
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
