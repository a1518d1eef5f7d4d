#pragma once

#include "python.h"

#include "share.h"

#include <c10/util/FunctionRef.h>

#include <vector>

/// Who else may look into the memory of a storage?
///
/// A consumer of DLPack, a graph that saved a tensor, or a holder in C++ leaves no trace but a reference. So every
/// reference to the storage must be explained by tensors that Python can see.
///
/// Threads: under the interpreter lock.

namespace torchcow {

/// Do `tensors`, each of which the caller holds once, explain all references to `storage`? Of those the caller holds
/// `own`. Tensors over other storages do no harm.
[[nodiscard]] bool explained(const c10::StorageImpl& storage, const std::vector<MetTensor>& tensors, std::size_t own);

/// Visits each tensor that the garbage collector tracks and that has a storage. Slow: it looks at all objects.
void visit_tracked_tensors(c10::function_ref<void(c10::TensorImpl& tensor, c10::StorageImpl& storage)> visit);

}  // namespace torchcow
