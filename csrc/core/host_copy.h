// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

/// Copies on the host, in several threads where that pays.
///
/// The threads are those of torch's own OpenMP pool: its workers spin for a while after each operator, and a second
/// pool would compete with them for the cores. A pool does not survive fork(), and is busy inside a parallel region; in
/// these cases one thread copies.
///
/// Threads: any. Failure: none.

namespace torchcow::host {

/// From this size on several threads copy.
inline constexpr std::size_t parallel_bytes = std::size_t{2} << 20;

/// Copies between ranges that do not overlap.
void copy(void* to, const void* from, std::size_t bytes) noexcept;

}  // namespace torchcow::host
