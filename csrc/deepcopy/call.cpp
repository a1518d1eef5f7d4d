// SPDX-License-Identifier: Apache-2.0

#include "call.h"

#include "numpy_mark.h"
#include "storage.h"

#include <unordered_map>
#include <unordered_set>
#include <vector>

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

void Call::note_seen(c10::TensorImpl& tensor) {
  const auto* storage = storage_of(tensor);
  if (storage != nullptr && sharing.answers_for(*storage)) census_.note_seen(*storage, tensor);
}

bool Call::accounts_for(const Probation& probation) const {
  return census_.accounts_for_all_references(*probation.source, 1);  // the probation itself holds it
}

void Call::finish() {
  std::vector<Probation*> doubtful;
  std::unordered_set<const c10::StorageImpl*> sources;
  for (const auto& probation : sharing.probations()) {
    const bool may_be_array = strict_ && numpy_mark::is_set(*probation->source);
    if (!may_be_array && accounts_for(*probation)) {
      SharingCall::confirm(*probation);
    } else {
      doubtful.push_back(probation.get());
      sources.insert(probation->source.get());
    }
  }
  if (doubtful.empty()) return;
  // All that the garbage collector tracks: slow, so at most once.
  if (!strict_) {
    visit_tracked_tensors([&](auto& tensor, auto& storage) {
      if (sources.contains(&storage)) note_seen(tensor);
    });
  }
  for (auto* probation : doubtful) {
    // The base of an array is a tensor that the collector tracks: where NumPy has looked, tensors prove nothing.
    if (!strict_ && !numpy_mark::is_set(*probation->source) && accounts_for(*probation)) {
      SharingCall::confirm(*probation);
    } else {
      SharingCall::take_back(*probation, strict_ ? Reason::strict : Reason::outside);
    }
  }
}

Running::Running(PyObject* memo, Call& call) : memo_(memo) { calls().emplace(memo, &call); }

Running::~Running() { calls().erase(memo_); }

}  // namespace torchcow
