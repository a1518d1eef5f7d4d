// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "python.h"

#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/FunctionRef.h>

#include <cstddef>
#include <unordered_map>
#include <vector>

/// A census: do the tensors that Python can see account for all references to a storage?
///
/// A DLPack consumer, a graph that saved a tensor, or a holder in C++ can write or read the memory of a storage without
/// an operator that torchcow sees. It leaves no trace but a reference. So a storage is safe to share only if each
/// reference to it, and to each tensor over it, has a holder that is known to be harmless. A holder that the census
/// does not know makes the count too high, which is safe; a holder that it counts although torch keeps no reference for
/// it would hide one of these, so tests compare each term with torch (tests/deepcopy/test_census.py).
///
/// Ownership: a census holds each tensor that it has seen once, until it ends.
///
/// Threads: under the interpreter lock.

namespace torchcow {

using SeenTensor = c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

/// The references to a tensor that have a known holder.
struct TensorReferences {
  std::size_t python_object = 0;     ///< its object in Python
  std::size_t grad_accumulator = 0;  ///< the node that adds to its `.grad`, which only reads its sizes
  std::size_t views = 0;             ///< seen views: each holds its base, once for each kind of differentiation
  std::size_t census = 1;            ///< the census

  [[nodiscard]] std::size_t total() const noexcept { return python_object + grad_accumulator + views + census; }
};

class Census {
 public:
  /// Holds `tensor` as one over `storage`, once.
  void note_seen(const c10::StorageImpl& storage, c10::TensorImpl& tensor);

  /// The tensors that were seen over `storage`.
  [[nodiscard]] const std::vector<SeenTensor>& seen(const c10::StorageImpl& storage) const;

  /// The known references to `tensor`, one of those seen over `storage`.
  [[nodiscard]] TensorReferences references_to(const c10::StorageImpl& storage, const c10::TensorImpl& tensor) const;

  /// Do the tensors that were seen over `storage` account for all references to it, but for `held` ones of the caller,
  /// and are all references to these tensors known?
  [[nodiscard]] bool accounts_for_all_references(const c10::StorageImpl& storage, std::size_t held) const;

 private:
  std::unordered_map<const c10::StorageImpl*, std::vector<SeenTensor>> seen_;
};

/// Visits each tensor that the garbage collector tracks and that has a storage. Slow: it looks at all objects.
void visit_tracked_tensors(c10::function_ref<void(c10::TensorImpl& tensor, c10::StorageImpl& storage)> visit);

}  // namespace torchcow
