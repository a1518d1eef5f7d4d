#pragma once

/// torch's inter-op pool: the threads of `torch.jit.fork` and `at::launch`, which run operators and never ran Python.
///
/// A reader among them is invisible to the interpreter, so once the pool has been started nobody is `alone` any more
/// (retire.h). torch makes the pool at its first use, through a registry of creators; ours is put in front.
///
/// Threads: any. Failure: where it cannot be known, the pool counts as started.

namespace torchcow::inter_op {

/// From now on a start of the pool is noticed. Looks once whether it has been started before.
void watch();

/// May threads of the pool be about? Yes as well if nobody watches.
[[nodiscard]] bool started() noexcept;

}  // namespace torchcow::inter_op
