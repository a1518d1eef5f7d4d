// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

/// The checksum of a range of bytes, defined once for processors and devices.
///
/// `verify` must notice that somebody changed a block that nobody may change, and must do so without a second copy of
/// it. A block may lie in CPU memory today and be summed by thousands of device threads tomorrow, so the definition has
/// to give one answer in any order of evaluation:
///
///   checksum(range) = checksum_finish(sum over i of checksum_word(word i, i), bytes)        all modulo 2^64
///
/// where word i is the i-th group of eight bytes, little-endian, the last one padded with zeros.
///
/// Why this function: addition makes it order-independent; the index inside makes it position-dependent; for a fixed
/// index `checksum_word` is a bijection, so a change confined to one word is *always* noticed. Both multiplications are
/// needed: with one, the sign bits of two words could change and cancel out half of the time. Other changes go
/// unnoticed about as often as a random 64-bit number repeats. It is no protection against an adversary.
///
/// Plain functions without state: any thread, any stream, no failure. The file is compiled by nvcc too, hence no torch
/// in it.

#ifdef __CUDACC__
#define TORCHCOW_EVERYWHERE __host__ __device__ __forceinline__
#else
#define TORCHCOW_EVERYWHERE inline
#endif

namespace torchcow {

/// What the word at position `index` adds to the sum.
TORCHCOW_EVERYWHERE std::uint64_t checksum_word(std::uint64_t word, std::uint64_t index) noexcept {
  std::uint64_t x = word ^ ((index + 1) * 0x9e3779b97f4a7c15ULL);
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ULL;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 32;
  return x;
}

/// The checksum, given the sum over all words and the length in bytes.
TORCHCOW_EVERYWHERE std::uint64_t checksum_finish(std::uint64_t sum, std::uint64_t bytes) noexcept {
  return checksum_word(sum, bytes);
}

/// The sum over the words of `bytes` bytes of CPU memory, the first of them being word `first_index` of its range.
inline std::uint64_t checksum_span(const void* data, std::size_t bytes, std::uint64_t first_index) noexcept {
  const char* at = static_cast<const char*>(data);
  const std::size_t words = bytes / 8;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < words; ++i) {
    std::uint64_t word;
    std::memcpy(&word, at + 8 * i, 8);
    sum += checksum_word(word, first_index + i);
  }
  if (const std::size_t rest = bytes % 8; rest != 0) {
    std::uint64_t word = 0;
    std::memcpy(&word, at + 8 * words, rest);
    sum += checksum_word(word, first_index + words);
  }
  return sum;
}

}  // namespace torchcow
