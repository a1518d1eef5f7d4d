#pragma once

#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <cstddef>

/// The dispatcher barrier: layer L1, which sees a write as an operator call, before it runs.
///
/// Tensors that the engine has met carry the dispatch key `DeferredInit`, which torch defines for others
/// and does not use; views and detached tensors inherit it. For that key
///   - reads fall through: they cost nothing;
///   - each operator that writes (operators.h) has one boxed kernel: it materializes all written
///     arguments, all or none, and calls on.
/// Multi-tensor operators are also caught on the key `BackendSelect`, which every call passes: their CUDA
/// kernels write through const pointers, which layer L2 cannot see, and their arguments may be
/// tensors that were made before the clone and carry no key. `set_` is caught there too: it can put a
/// tensor without the key on a sharer's storage.
///
/// Operators registered later are covered by a listener on the dispatcher.
///
/// While a kernel of ours runs, its written storages count as being written: a clone taken by another
/// thread at that moment copies them (Reason::writing).
///
/// skip: only if what is left of the dispatch is autograd and the backend (no Python mode, transform or
/// wrapper could swallow the operator), the target covers its storage exactly, and no other argument
/// reads that storage. If the operator throws, what was there is restored.

namespace torchcow {

/// Registers the kernels. Once, before the first clone; takes some milliseconds.
void install_barrier();

/// Puts the barrier's key on a tensor.
void mark(c10::TensorImpl& tensor) noexcept;

/// Is an operator of this or another thread writing `storage` now? The registry's mutex is held.
bool being_written(const c10::StorageImpl& storage) noexcept;

/// Number of operators that have a kernel, for diagnostics and tests.
std::size_t covered_operators() noexcept;

}  // namespace torchcow
