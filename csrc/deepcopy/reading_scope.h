#pragma once

#include "python.h"

#include "reading.h"

#include <optional>
#include <unordered_map>
#include <vector>

/// One `torchcow.reading` scope: the tensors that Python named, and whether pointers to them outlive it.
///
/// Threads: under the interpreter lock.

namespace torchcow {

class ReadingScope {
 public:
  ReadingScope(py::list tensors, bool checksum);

  /// For each tensor: can raw pointers to it be asked for without un-sharing it?
  [[nodiscard]] std::vector<bool> covered() const;

  struct Outcome {
    bool stayed = false;       ///< it shares the same memory as when the scope began
    bool damaged = false;      ///< that memory has other bytes now
    bool looked_into = false;  ///< something that is no tensor of Python, or an array, may still look into it
  };

  /// Ends the scope. For each tensor: what became of it.
  std::vector<Outcome> end();

  /// After `end`: whoever still looks into the memory of these tensors looks into memory that nobody else shares.
  /// Returns those for which that could not be reached. Slow: it looks at all objects, once.
  [[nodiscard]] std::vector<std::size_t> isolate(const std::vector<std::size_t>& indices) const;

 private:
  py::list tensors_;
  std::vector<const c10::StorageImpl*> storages_;  ///< of the tensors, when the scope began; for comparison only
  std::optional<Reading> reading_;
  std::unordered_map<const c10::StorageImpl*, Reading::Outcome> outcomes_;
};

}  // namespace torchcow
