// SPDX-License-Identifier: Apache-2.0

#include "host_pages.h"

#include "fork.h"

#include <c10/core/CPUAllocator.h>

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <new>
#include <utility>

namespace torchcow::host {

namespace {

const auto page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));

/// Stands in the page before the data, so that the address alone leads to it: torch wants a DataPtr whose
/// context is its address, and freeing may not allocate.
struct Pages {
  std::size_t bytes;
  Pages* older = nullptr;  ///< the list of those that are kept

  [[nodiscard]] char* data() noexcept { return reinterpret_cast<char*>(this) + page_bytes; }
  static Pages* before(void* data) noexcept { return reinterpret_cast<Pages*>(static_cast<char*>(data) - page_bytes); }
};

struct Kept {
  std::mutex mutex;
  std::atomic<bool> keep{false};  ///< set without the mutex, but looked at under it
  Pages* newest = nullptr;
  std::size_t bytes = 0;
};

Kept& kept() noexcept {
  static auto* instance = new Kept();
  return *instance;
}

void lock_kept() { kept().mutex.lock(); }
void unlock_kept() { kept().mutex.unlock(); }

const AtFork at_fork(ForkStage::host_pages,
                     {.before = &lock_kept, .in_parent = &unlock_kept, .in_child = &unlock_kept});

std::size_t up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

/// Unmaps `pages` and all that are older; returns how many bytes.
std::size_t unmap(Pages* pages) noexcept {
  std::size_t bytes = 0;
  while (pages != nullptr) {
    bytes += pages->bytes;
    auto* older = pages->older;
    munmap(pages, page_bytes + pages->bytes);
    pages = older;
  }
  return bytes;
}

Pages* map(std::size_t bytes) {
  // A mapping begins on any page: map more, and give back what lies before and behind.
  const auto room = page_bytes + bytes + huge_page_bytes;
  void* mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* begin = static_cast<char*>(mapped);
  auto* data = reinterpret_cast<char*>(up(reinterpret_cast<std::uintptr_t>(begin) + page_bytes, huge_page_bytes));
  if (data - page_bytes != begin) munmap(begin, data - page_bytes - begin);
  if (data + bytes != begin + room) munmap(data + bytes, begin + room - (data + bytes));
  advise_huge_pages(data, bytes);
  return new (Pages::before(data)) Pages{bytes};
}

/// The youngest of that size: the kernel is least likely to have taken it.
Pages* take_kept(std::size_t bytes) noexcept {
  auto& self = kept();
  std::lock_guard lock(self.mutex);
  for (auto** link = &self.newest; *link != nullptr; link = &(*link)->older) {
    if ((*link)->bytes != bytes) continue;
    auto* found = *link;
    *link = std::exchange(found->older, nullptr);
    self.bytes -= bytes;
    return found;
  }
  return nullptr;
}

/// The part of `bytes` that the kernel may take. A tail of small pages costs the next write 0.13 us for each, as much
/// as a tenth of its time, so a short one stays.
std::size_t reclaimable(std::size_t bytes) {
  const auto tail = bytes % huge_page_bytes;
  return tail <= bytes / 8 ? bytes - tail : bytes;
}

/// Keeps `pages` if that is wanted; returns those that are to be unmapped.
Pages* put_away(Pages* pages) noexcept {
  auto& self = kept();
  std::lock_guard lock(self.mutex);
  if (!self.keep || madvise(pages->data(), reclaimable(pages->bytes), MADV_FREE) != 0) return pages;
  pages->older = std::exchange(self.newest, pages);
  self.bytes = 0;
  auto** link = &self.newest;
  for (; *link != nullptr && self.bytes + (*link)->bytes <= max_kept_bytes; link = &(*link)->older) {
    self.bytes += (*link)->bytes;
  }
  return std::exchange(*link, nullptr);
}

void free_pages(void* data) {
  c10::profiledCPUMemoryReporter().Delete(data);
  unmap(put_away(Pages::before(data)));
}

}  // namespace

c10::DataPtr allocate_pages(std::size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  return {};  // AddressSanitizer watches over malloc only
#endif
  if (bytes < huge_page_bytes) return {};
  const auto size = up(bytes, page_bytes);
  auto* pages = take_kept(size);
  if (pages == nullptr) pages = map(size);
  if (pages == nullptr && drop_kept() > 0) pages = map(size);
  if (pages == nullptr) return {};
  c10::profiledCPUMemoryReporter().New(pages->data(), bytes);
  return {pages->data(), pages->data(), &free_pages, c10::Device(c10::DeviceType::CPU)};
}

bool are_pages(c10::DeleterFnPtr deleter) noexcept { return deleter == &free_pages; }

void advise_huge_pages(void* data, std::size_t bytes) noexcept {
  const auto begin = up(reinterpret_cast<std::uintptr_t>(data), huge_page_bytes);
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) & ~(huge_page_bytes - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

void keep_freed(bool on) noexcept { kept().keep = on; }

std::size_t drop_kept() noexcept {
  auto& self = kept();
  Pages* all = nullptr;
  {
    std::lock_guard lock(self.mutex);
    all = std::exchange(self.newest, nullptr);
    self.bytes = 0;
  }
  return unmap(all);
}

std::size_t kept_bytes() noexcept {
  auto& self = kept();
  std::lock_guard lock(self.mutex);
  return self.bytes;
}

}  // namespace torchcow::host
