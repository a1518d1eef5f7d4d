#pragma once

#include "block.h"

/// Re-sharing: storages that hold equal bytes read one block again.
///
/// Bytes can be compared only while nobody can write them. So the caller clones both storages, compares the clones,
/// which no write reaches, and calls `join` while they are alive. A storage that was written in between has left the
/// block of its clone, and stays where it is.
///
/// How a storage moves: relocate.h.
///
/// Threads: any. Streams: the caller has waited for the device, so that what was compared is what is there. From now on
/// the storage may be read on the current stream, and where it is at home.

namespace torchcow {

/// Makes `joiner` a sharer of the bytes that `keeper_clone` reads, if it still shares with `joiner_clone`. The caller
/// has seen that the two clones hold the same bytes. False: nothing was done.
bool join(c10::StorageImpl& joiner, const c10::StorageImpl& joiner_clone, const c10::StorageImpl& keeper_clone);

}  // namespace torchcow
