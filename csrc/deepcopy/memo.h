// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "call.h"

#include <c10/core/Storage.h>

#include <optional>
#include <unordered_map>
#include <vector>

/// The memo of a deep copy: which object was copied to which, by identity.
///
/// The memo is *hidden* as long as no user code can see it: a table of ours, several times faster than a dict. The
/// first method or dispatch entry that takes the memo gets a dict with everything that a deep copy would have put into
/// it: the copies under the identities of their sources, the list that keeps sources alive under the identity of the
/// memo itself, and the storages under "torch". From then on that dict is the memo, whatever user code does to it. A
/// memo that the caller brings is a dict from the start.
///
/// One entry is left out while the memo is hidden: that of an instance's `__dict__`, if only the instance refers to it.
///
/// Ownership: sources and copies are kept alive as long as the memo lives.

namespace torchcow {

class Memo {
 public:
  explicit Memo(Call& call);
  Memo(Call& call, py::object dict);
  ~Memo();
  Memo(const Memo&) = delete;
  Memo& operator=(const Memo&) = delete;

  [[nodiscard]] bool hidden() const noexcept { return !dict_; }
  [[nodiscard]] Call& call() const noexcept { return *call_; }

  /// The copy of `source`, borrowed, or nullptr.
  PyObject* find(PyObject* source);
  /// memo[id(source)] = copy
  void put(PyObject* source, PyObject* copy);
  /// What deepcopy does when an object is done: it puts the entry and keeps the source alive.
  void finish(PyObject* source, PyObject* copy);
  /// The same for an object whose entry was put when its copy began.
  void finish_started(PyObject* source, PyObject* copy);

  /// The memo as user code sees it.
  PyObject* dict();

  /// The same for storages of tensors, by `memo["torch"]`; only while hidden.
  const c10::Storage* find_storage(const c10::StorageImpl* source) const;
  void put_storage(const c10::Storage& source, c10::Storage copy);

 private:
  struct Entry {
    PyObject* source = nullptr;
    PyObject* copy = nullptr;
  };
  /// Where in the table the index of an entry is, or would be.
  struct Slot {
    std::uint32_t hash = 0;
    std::uint32_t next = 0;  ///< the index plus one; 0: nothing here
  };
  /// The place of `source` in the table, or the free one where it would be put. The search begins at `start`: at the
  /// place of its hash, or at one where an earlier search of this table ended.
  [[nodiscard]] std::size_t place_of(PyObject* source, std::size_t start) const;
  void grow();
  static void release(std::vector<Entry> entries);

  Call* call_;
  std::vector<Entry> entries_;  ///< in the order in which they came
  std::vector<Slot> table_;     ///< of hashes, with linear probing; the size is a power of two
  /// Where `find` ended without an entry of `source`: `put` goes on from there. Entries are never taken out, so the
  /// search may begin at that place until the table grows.
  struct Miss {
    PyObject* source = nullptr;
    std::size_t place = 0;
  } miss_;
  std::unordered_map<const c10::StorageImpl*, std::pair<c10::Storage, c10::Storage>> storages_;
  py::object dict_;
  std::optional<Running> running_;
};

}  // namespace torchcow
