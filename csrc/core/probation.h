// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/StorageImpl.h>
#include <c10/util/SmallVector.h>

#include <cstdint>

/// Probation: the time from the clone call that made a block until that call has looked for raw pointers that left the
/// process's view before (share.h). Other calls do not share the block meanwhile.
///
/// Ownership: the call and the block own a probation together. The call holds the storages as long as it runs.
///
/// Threads: `call` and `passed` are guarded by the engine's mutex; the storages belong to the call.

namespace torchcow {

struct Probation {
  std::uint64_t call;   ///< number of the call that has to answer; 0: it ended without an answer
  bool passed = false;  ///< no such pointer was found, or the share was taken back
  c10::intrusive_ptr<c10::StorageImpl> source;
  c10::SmallVector<c10::intrusive_ptr<c10::StorageImpl>, 1> clones = {};
};

}  // namespace torchcow
