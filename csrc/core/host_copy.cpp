#include "host_copy.h"

#include "host_pages.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace torchcow::host {

namespace {

constexpr std::size_t max_threads = 4;  // more do not raise the bandwidth of one socket much

std::size_t thread_count(std::size_t bytes) {
  const auto wanted = std::min<std::size_t>(bytes / (parallel_bytes / 2), max_threads);
  return std::min<std::size_t>(wanted, std::max(1, at::get_num_threads()));
}

}  // namespace

void copy(void* to, const void* from, std::size_t bytes) noexcept {
  const auto threads = bytes < parallel_bytes ? 1 : thread_count(bytes);
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
  // Chunks begin on huge pages, so that two threads do not fault the same one.
  const auto chunk = (bytes / std::max<std::size_t>(threads, 1) + huge_page_bytes) & ~(huge_page_bytes - 1);
  std::vector<std::thread> helpers;
  std::size_t done = 0;
  if (threads > 1) {
    try {
      helpers.reserve(threads);
      for (; bytes - done > chunk; done += chunk) {
        helpers.emplace_back([=] { std::memcpy(target + done, source + done, chunk); });
      }
    } catch (const std::exception&) {
      // No further thread to be had: this one copies the rest.
    }
  }
  std::memcpy(target + done, source + done, bytes - done);
  for (auto& helper : helpers) helper.join();
}

}  // namespace torchcow::host
