// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

/// The work of one launch, as the kernels read it: up to `table_jobs` jobs, passed by value as the kernel's parameter.
///
/// Why parameters and not a table in device memory: a first write often happens when memory is short, and a copy that
/// must allocate before it can start is one more thing that fails just then. A parameter needs no allocation, no
/// transfer and no lifetime (the launch copies it), so the caller's arrays may go away at once. The price is the 4 KB
/// that every driver accepts: 144 jobs a launch. A model of a thousand tensors takes seven launches, each a few
/// microseconds of host time.
///
/// How work is split: each job is cut into chunks of `chunk_bytes`, the chunks of all jobs are numbered through, and
/// each thread block does the chunk of its own number. One huge job and many small ones thus fill the device alike.
/// `first_chunk` holds the running count that lets a block find its job by bisection.
///
/// Invariants: 1 <= count <= table_jobs; every job has at least one byte, hence a chunk; first_chunk[0] == 0 and
/// first_chunk[count] is the number of blocks of the launch.
///
/// Shared by kernels.cu and cuda_kernels.cpp: nothing but plain types.

namespace torchcow::cuda {

constexpr unsigned threads_per_block = 256;
/// Eight 16-byte words for each thread of a block: enough loads in flight to be bound by memory alone.
constexpr std::uint32_t chunk_bytes = threads_per_block * 16 * 8;
constexpr std::uint32_t table_jobs = 144;

struct JobTable {
  /// copy: destination. compare: one range. checksum: the range.
  const void* left[table_jobs];
  /// copy: source. compare: the other range. checksum: the std::uint64_t that the sum is added to.
  const void* right[table_jobs];
  std::uint64_t bytes[table_jobs];
  std::uint32_t first_chunk[table_jobs + 1];
  std::uint32_t count;
};

/// 4 KB is the parameter space that all drivers grant; the compare kernel takes one pointer besides the table.
static_assert(sizeof(JobTable) + sizeof(void*) <= 4096, "a JobTable must fit into the kernel's parameters");

}  // namespace torchcow::cuda
