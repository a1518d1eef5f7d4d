// SPDX-License-Identifier: Apache-2.0

#include "host_copy.h"

#include "fork.h"

#include <ATen/Parallel.h>

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>

namespace torchcow::host {

namespace {

std::atomic<bool> child_of_fork{false};
const AtFork at_fork(ForkStage::host_copy, {.in_child = [] { child_of_fork = true; }});

/// What compilers call for `#pragma omp parallel`. Looked up in the library that torch has loaded: the pragma itself
/// would need a library to link with, and a second one would have a pool of its own.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

Parallel openmp() {
#ifdef __SANITIZE_THREAD__
  return nullptr;  // ThreadSanitizer does not see how OpenMP's threads wait for each other
#endif
  static const auto found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

/// One copy, in chunks; each thread takes the next chunk until none is left.
struct Chunks {
  char* to;
  const char* from;
  std::size_t bytes;
  std::size_t chunk;
  std::atomic<std::size_t> next{0};

  void take() noexcept {
    for (;;) {
      const auto begin = next.fetch_add(chunk, std::memory_order_relaxed);  // OpenMP's barrier orders the bytes
      if (begin >= bytes) return;
      std::memcpy(to + begin, from + begin, std::min(chunk, bytes - begin));
    }
  }
};

std::size_t thread_count() {
  const bool pool = openmp() != nullptr && !at::in_parallel_region() && !child_of_fork;
  return pool ? static_cast<std::size_t>(std::max(1, at::get_num_threads())) : 1;
}

}  // namespace

void copy(void* to, const void* from, std::size_t bytes) noexcept {
  const auto threads = bytes < parallel_bytes ? 1 : thread_count();
  if (threads == 1) {
    std::memcpy(to, from, bytes);
    return;
  }
  // All threads are called even if there is work for a few only: OpenMP ends and starts threads when their number
  // changes.
  const auto chunk = std::max(bytes / threads + 1, parallel_bytes / 2);
  Chunks chunks{static_cast<char*>(to), static_cast<const char*>(from), bytes, chunk};
  openmp()([](void* data) { static_cast<Chunks*>(data)->take(); }, &chunks, static_cast<unsigned>(threads), 0);
}

}  // namespace torchcow::host
