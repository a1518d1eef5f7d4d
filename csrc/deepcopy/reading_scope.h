// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "python.h"

#include "reading.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

/// One `torchcow.reading` scope: the tensors that Python named, and whether pointers into their memory outlive it.
///
/// What a scope promises, and what it does to storages: core/reading.h. Which pointers outlive it: census.h.
///
/// Ownership: a scope holds the tensors until it dies. Threads: under the interpreter lock.

namespace torchcow {

class ReadingScope {
 public:
  /// Begins the scope. With `checksum` it remembers the bytes of all blocks that the tensors share.
  ReadingScope(const py::list& tensors, bool checksum);
  ReadingScope(const ReadingScope&) = delete;
  ReadingScope& operator=(const ReadingScope&) = delete;
  /// Ends the scope if that was not done. Pointers count as outliving it then.
  ~ReadingScope();

  /// For each tensor: can a program ask for raw pointers to it without un-sharing it?
  [[nodiscard]] std::vector<bool> covered() const;

  /// What became of a tensor in the scope.
  struct Outcome {
    bool stayed = false;      ///< it shares the same memory as when the scope began
    bool damaged = false;     ///< that memory has other bytes now
    bool referenced = false;  ///< an array, or something that is no tensor of Python, may still use its memory
  };

  /// Ends the scope. Once; one outcome for each tensor.
  [[nodiscard]] std::vector<Outcome> end();

  /// After `end`: isolates the memory of these tensors. Returns those for which that was not possible. Slow: it looks
  /// at all objects, once.
  [[nodiscard]] std::vector<std::size_t> isolate(const std::vector<std::size_t>& indices) const;

 private:
  explicit ReadingScope(const py::list& tensors);
  void find_references(std::vector<Outcome>& outcomes) const;

  py::list tensors_;
  bool ended_ = false;
  std::vector<CoveredStorage> covered_;
  std::unordered_map<const c10::StorageImpl*, std::size_t> index_;  ///< of each covered storage, in `covered_`
  std::vector<std::optional<std::size_t>> covered_of_;              ///< for each tensor: an index into `covered_`
  std::optional<std::unordered_map<std::uint64_t, std::uint64_t>> checksums_;  ///< by id of the block
};

}  // namespace torchcow
