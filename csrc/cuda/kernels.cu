// SPDX-License-Identifier: Apache-2.0

#include "checksum.h"
#include "job_table.h"

/// Device code only: three kernels over one JobTable (job_table.h says how the work is split).
///
/// Each picks, per job, the widest word to which all its addresses are aligned; chunks start at multiples of 32 KiB of
/// their range and so keep that alignment. Bytes behind the last whole word are done one by one. Torch's allocations
/// are aligned to 512 bytes, so the narrow words are for sharers that begin in the middle of a block.

namespace {

using torchcow::cuda::chunk_bytes;
using torchcow::cuda::JobTable;
using torchcow::cuda::threads_per_block;

constexpr unsigned unroll = 8;

struct Chunk {
  unsigned job;
  std::uint64_t offset;
  unsigned bytes;
};

__device__ Chunk my_chunk(const JobTable& table) {
  unsigned low = 0;
  unsigned high = table.count;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    if (table.first_chunk[middle] <= blockIdx.x) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const std::uint64_t offset = static_cast<std::uint64_t>(blockIdx.x - table.first_chunk[low]) * chunk_bytes;
  const std::uint64_t left = table.bytes[low] - offset;
  return {low, offset, left < chunk_bytes ? static_cast<unsigned>(left) : chunk_bytes};
}

template <class Word>
__device__ void copy_words(char* to, const char* from, unsigned bytes) {
  Word* const target = reinterpret_cast<Word*>(to);
  const Word* const source = reinterpret_cast<const Word*>(from);
  const unsigned words = bytes / sizeof(Word);
  // All loads of a round before its first store: the compiler may not reorder them, the two pointers could alias.
  for (unsigned base = threadIdx.x; base < words; base += unroll * threads_per_block) {
    Word held[unroll];
#pragma unroll
    for (unsigned k = 0; k < unroll; ++k) {
      if (base + k * threads_per_block < words) held[k] = source[base + k * threads_per_block];
    }
#pragma unroll
    for (unsigned k = 0; k < unroll; ++k) {
      if (base + k * threads_per_block < words) target[base + k * threads_per_block] = held[k];
    }
  }
  const unsigned done = words * sizeof(Word);
  if (threadIdx.x < bytes - done) to[done + threadIdx.x] = from[done + threadIdx.x];
}

template <class Word>
__device__ bool same(const Word& a, const Word& b) {
  return a == b;
}

__device__ bool same(const uint4& a, const uint4& b) {
  return ((a.x ^ b.x) | (a.y ^ b.y) | (a.z ^ b.z) | (a.w ^ b.w)) == 0;
}

template <class Word>
__device__ bool same_words(const char* a, const char* b, unsigned bytes) {
  const Word* const one = reinterpret_cast<const Word*>(a);
  const Word* const other = reinterpret_cast<const Word*>(b);
  const unsigned words = bytes / sizeof(Word);
  bool result = true;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < words; i += threads_per_block) result &= same(one[i], other[i]);
  const unsigned done = words * sizeof(Word);
  if (threadIdx.x < bytes - done) result &= a[done + threadIdx.x] == b[done + threadIdx.x];
  return result;
}

/// The eight bytes at `at`, put together from words of type Word.
template <class Word>
__device__ std::uint64_t load_eight(const char* at) {
  std::uint64_t value = 0;
#pragma unroll
  for (unsigned k = 0; k < 8 / sizeof(Word); ++k) {
    value |= static_cast<std::uint64_t>(reinterpret_cast<const Word*>(at)[k]) << (8 * sizeof(Word) * k);
  }
  return value;
}

template <class Word>
__device__ std::uint64_t sum_words(const char* data, unsigned bytes, std::uint64_t first_index) {
  const unsigned words = bytes / 8;
  std::uint64_t sum = 0;
#pragma unroll 8
  for (unsigned i = threadIdx.x; i < words; i += threads_per_block) {
    sum += torchcow::checksum_word(load_eight<Word>(data + 8 * i), first_index + i);
  }
  const unsigned rest = bytes % 8;
  if (rest != 0 && threadIdx.x == 0) {
    std::uint64_t word = 0;
    for (unsigned k = 0; k < rest; ++k) {
      word |= static_cast<std::uint64_t>(static_cast<unsigned char>(data[8 * words + k])) << (8 * k);
    }
    sum += torchcow::checksum_word(word, first_index + words);
  }
  return sum;
}

}  // namespace

/// Copies table.right to table.left.
extern "C" __global__ void __launch_bounds__(threads_per_block) torchcow_copy(const __grid_constant__ JobTable table) {
  const Chunk chunk = my_chunk(table);
  char* const to = static_cast<char*>(const_cast<void*>(table.left[chunk.job])) + chunk.offset;
  const char* const from = static_cast<const char*>(table.right[chunk.job]) + chunk.offset;
  const auto alignment = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
  if (alignment % 16 == 0) {
    copy_words<uint4>(to, from, chunk.bytes);
  } else if (alignment % 8 == 0) {
    copy_words<std::uint64_t>(to, from, chunk.bytes);
  } else if (alignment % 4 == 0) {
    copy_words<std::uint32_t>(to, from, chunk.bytes);
  } else if (alignment % 2 == 0) {
    copy_words<std::uint16_t>(to, from, chunk.bytes);
  } else {
    copy_words<unsigned char>(to, from, chunk.bytes);
  }
}

/// Sets *differ to 1 if a bit differs between table.left and table.right; the caller has set it to 0.
extern "C" __global__ void __launch_bounds__(threads_per_block)
    torchcow_compare(const __grid_constant__ JobTable table, unsigned* differ) {
  if (*static_cast<volatile unsigned*>(differ) != 0) return;
  const Chunk chunk = my_chunk(table);
  const char* const a = static_cast<const char*>(table.left[chunk.job]) + chunk.offset;
  const char* const b = static_cast<const char*>(table.right[chunk.job]) + chunk.offset;
  const auto alignment = reinterpret_cast<std::uintptr_t>(a) | reinterpret_cast<std::uintptr_t>(b);
  bool equal;
  if (alignment % 16 == 0) {
    equal = same_words<uint4>(a, b, chunk.bytes);
  } else if (alignment % 8 == 0) {
    equal = same_words<std::uint64_t>(a, b, chunk.bytes);
  } else if (alignment % 4 == 0) {
    equal = same_words<std::uint32_t>(a, b, chunk.bytes);
  } else if (alignment % 2 == 0) {
    equal = same_words<std::uint16_t>(a, b, chunk.bytes);
  } else {
    equal = same_words<unsigned char>(a, b, chunk.bytes);
  }
  if (!equal) atomicExch(differ, 1U);
}

/// Adds the sum over the words of table.left (checksum.h) to *table.right; the caller has set it to 0 and finishes it.
extern "C" __global__ void __launch_bounds__(threads_per_block)
    torchcow_checksum(const __grid_constant__ JobTable table) {
  __shared__ unsigned long long sums[threads_per_block];
  const Chunk chunk = my_chunk(table);
  const char* const data = static_cast<const char*>(table.left[chunk.job]) + chunk.offset;
  const auto alignment = reinterpret_cast<std::uintptr_t>(data);
  std::uint64_t sum;
  if (alignment % 8 == 0) {
    sum = sum_words<std::uint64_t>(data, chunk.bytes, chunk.offset / 8);
  } else if (alignment % 4 == 0) {
    sum = sum_words<std::uint32_t>(data, chunk.bytes, chunk.offset / 8);
  } else {
    sum = sum_words<unsigned char>(data, chunk.bytes, chunk.offset / 8);
  }
  sums[threadIdx.x] = sum;
  for (unsigned half = threads_per_block / 2; half != 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) atomicAdd(static_cast<unsigned long long*>(const_cast<void*>(table.right[chunk.job])), sums[0]);
}
