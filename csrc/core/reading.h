#pragma once

#include "block.h"

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

/// Reading: a scope in which raw pointers only read, so that asking for one un-shares nothing.
///
/// Compiled kernels and writers of files take mutable pointers and read through them. In the scope the write hooks of
/// the given storages are suspended: L2 is silent, L1 goes on. Operators that write materialize as ever, and whatever
/// is written by a raw pointer reaches all who share.
///
/// Two storages of one scope never show the same address: who saves a model takes equal addresses for ties. Where
/// storages overlap in a block, only the first is suspended.
///
/// Pointers that outlive the scope would write unseen. Whether there are any is the caller's question (deepcopy/
/// references.h); `isolate` then gives the memory to the storage that the pointers belong to, and everybody else a
/// copy.
///
/// A storage that is written in the scope moves away, and pointers into the block that it left see what it held before.
/// They stay valid: the block lives until the scope ends, and longer where NumPy has looked into it
/// (FormerSharer::pointers).
///
/// Ownership: a scope holds storages weakly. Threads: scopes may overlap in any way; the last one that ends lets the
/// hook be heard again. `isolate` is not safe against operators in other threads that still read siblings when
/// the storage is written later: that is a pointer's affair, which the scope forbids.
///
/// Streams: `isolate` waits on the host, as siblings may be read on any stream afterwards.

namespace torchcow {

class Reading {
 public:
  /// Suspends the hooks of those of `storages` that are sharers.
  Reading(c10::ArrayRef<c10::StorageImpl*> storages, bool checksum);
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;
  /// Ends the scope if that was not done.
  ~Reading();

  /// The storages whose hooks were suspended. For comparison only: they may be dead.
  [[nodiscard]] std::vector<const c10::StorageImpl*> covered() const;

  /// What became of a storage in the scope.
  struct Outcome {
    WeakStorage storage;
    std::uint64_t block;  ///< that it shared when the scope began
    bool stayed;          ///< it shares that block still
    bool goes_on;         ///< and another scope of it, which has still to ask for pointers that outlive it
    bool seen_by_numpy;   ///< NumPy looked into it, in this scope or in one that overlaps
    bool damaged;         ///< the block has another checksum than at the beginning
  };

  /// Ends the scope: hooks are heard again.
  std::vector<Outcome> end();

 private:
  struct Entry {
    WeakStorage storage;
    std::uint64_t block;
    bool resizable;  ///< NumPy leaves no other trace than a storage that may not be resized any more
  };

  void suspend(c10::ArrayRef<c10::StorageImpl*> storages);
  [[nodiscard]] std::unordered_set<std::uint64_t> blocks() const;

  std::vector<Entry> entries_;
  bool checksum_;
  std::unordered_map<std::uint64_t, std::uint64_t> sums_;  ///< by the number of the block, when the scope began
};

/// Moves `siblings` from the block with this number to a copy of it; then `owner`, if it still shares the block, takes
/// the memory and keeps its address. False: the block has other sharers as well, which are still there, or pointers
/// look into it that were handed out in the scope of another storage.
/// Throws what the allocator throws, and then nothing has changed.
bool isolate(std::uint64_t block, const std::vector<c10::intrusive_ptr<c10::StorageImpl>>& siblings,
             c10::StorageImpl* owner);

}  // namespace torchcow
