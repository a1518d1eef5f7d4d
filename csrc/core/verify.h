// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

/// Verification: shows whether shared memory was written behind the barrier (I1).
///
/// When armed, each new block gets a checksum (checksum.h), and `verify` computes all of them again. That reads all
/// shared memory, so it is for tests, and for hunting a raw pointer through which a program writes.
///
/// Threads: any, without the engine's mutex; blocks are pinned while they are read. Streams: checksums on a device wait
/// on the host. Failure: throws what the device throws.

namespace torchcow {

/// Turns checksums on or off for blocks to come, and takes those of the blocks that live.
void arm_fingerprints(bool on);

/// Checksums a new block if armed. The caller holds one of its clones, and no lock.
void fingerprint(Block& block);

struct Damage {
  std::uint64_t block;
  std::size_t bytes;
  c10::Device device;
};

/// The checksums of those of `blocks` that live now, by the number of the block.
std::unordered_map<std::uint64_t, std::uint64_t> checksums(const std::unordered_set<std::uint64_t>& blocks);

/// The blocks whose bytes have changed; `looked_at` counts those that were compared.
std::vector<Damage> verify(std::size_t& looked_at);

}  // namespace torchcow
