// SPDX-License-Identifier: Apache-2.0
#pragma once

/// torch's inter-op pool: the threads of `torch.jit.fork` and `at::launch`, which run operators and never ran Python.
///
/// The interpreter does not know these threads, so once the pool has been started no thread is `alone` any more
/// (retire.h). torch makes the pool at its first use, through a registry of creators; ours is put in front of torch's.
///
/// Threads: any. Failure: if the state of the pool cannot be found out, it counts as started.

namespace torchcow::inter_op {

/// From now on a start of the pool is noticed. Looks once whether it has been started before.
void watch();

/// May threads of the pool exist? Yes if `watch` was not called.
[[nodiscard]] bool started() noexcept;

}  // namespace torchcow::inter_op
