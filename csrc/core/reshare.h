// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

/// Re-sharing: storages that hold equal bytes read one block again.
///
/// Bytes can be compared only while no write can reach them (I11). So the caller clones both storages, compares the
/// clones, which no write reaches, and calls `join` while the clones are alive. A storage that was written in between
/// has left the block of its clone; `join` notices that and leaves it where it is.
///
/// How a storage moves: relocate.h.
///
/// Threads: any. Streams: the caller has waited for the device, so the compared bytes are those in memory. Afterwards
/// the storage may be read on the current stream, and on its home stream. Failure: may throw std::bad_alloc, and then
/// nothing has changed.

namespace torchcow {

/// Makes `joiner` a sharer of the bytes that `keeper_clone` reads, if it still shares with `joiner_clone`. The caller
/// has found the bytes of the two clones to be equal. False: nothing was done.
bool join(c10::StorageImpl& joiner, const c10::StorageImpl& joiner_clone, const c10::StorageImpl& keeper_clone);

}  // namespace torchcow
