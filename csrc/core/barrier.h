// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "operators.h"
#include "writing.h"

#include <ATen/core/TensorBody.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/util/SmallVector.h>

#include <cstddef>

/// The dispatcher barrier: layer L1, which sees a write as an operator call, before it runs.
///
/// Each operator that writes (operators.h) has a kernel on the dispatch key `BackendSelect`, which torch puts into
/// every call of every thread, just above the backends. The kernel announces the storages that it writes (writing.h),
/// materializes all of them or none, and calls the operator. So
///   - operators that only read have no kernel of ours, and cost nothing;
///   - a write is seen through every tensor: no tensor is marked, so an alias that was made before the clone is seen
///     like any other. Multi-tensor operators on CUDA need this, as their kernels write through const pointers, which
///     layer L2 cannot see;
///   - a call that a Python mode, a transform or tracing handles above the backends is no write.
///
/// The kernel is boxed, but for the operators of barrier_fast.cpp, which programs call in loops over small tensors. A
/// listener on the dispatcher covers operators that are registered later.
///
/// skip: the target covers its storage exactly, and no other argument reads that storage. If the operator throws, the
/// old bytes are restored.
///
/// Threads: any. Streams: those of the materialization (materialize.h). Failure: if the materialization throws, the
/// operator is not called and nothing has changed.

namespace torchcow {

/// Registers the kernels. Call it once, before the first clone; it takes some milliseconds.
void install_barrier();

/// Number of operators that have a kernel, for diagnostics and tests.
[[nodiscard]] std::size_t covered_operators() noexcept;

inline constexpr auto barrier_key = c10::DispatchKey::BackendSelect;

inline c10::DispatchKeySet below_barrier(c10::DispatchKeySet keys) {
  return keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, barrier_key);
}

/// What one call writes: the storages, and the tensors that it overwrites.
struct Writes {
  c10::SmallVector<WriteTarget, 4> targets;
  c10::SmallVector<at::Tensor, 1> overwritten;
};

/// Is one of the targets a sharer? A hint: no lock is taken.
[[nodiscard]] bool any_shared(const Writes& writes) noexcept;

/// Materializes, calls, and finishes what was skipped.
void write_through(const OperatorTraits& traits, const Writes& writes, c10::function_ref<void()> call);

/// Registers the unboxed kernels.
void install_fast_barrier();

}  // namespace torchcow
