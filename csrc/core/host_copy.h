#pragma once

#include <cstddef>

/// Copies on the host, in several threads where that pays.
///
/// Threads are started per copy, not borrowed from OpenMP: a pool does not survive fork(), and a first
/// write can happen in a child or inside of a parallel region.

namespace torchcow::host {

/// From this size on several threads copy.
inline constexpr std::size_t parallel_bytes = std::size_t{8} << 20;

/// Copies between ranges that do not overlap.
void copy(void* to, const void* from, std::size_t bytes) noexcept;

}  // namespace torchcow::host
