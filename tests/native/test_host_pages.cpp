// SPDX-License-Identifier: Apache-2.0

// Host memory for large first writes: where it begins, when it is kept, when it is given back.

#include "core/host_pages.h"

#include "family.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using namespace torchcow;
using torchcow::testing::clone;
using torchcow::testing::storage_impl;

constexpr auto huge = host::huge_page_bytes;

class HostPages : public torchcow::testing::EngineTest {
 protected:
  void SetUp() override {
    EngineTest::SetUp();
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP() << "under AddressSanitizer memory comes from malloc";
#endif
    host::keep_freed(true);
  }
  void TearDown() override {
    host::keep_freed(false);
    host::drop_kept();
    EngineTest::TearDown();
  }
};

void* address_of_freed(std::size_t bytes) { return host::allocate_pages(bytes).get(); }

// Broken by: the hint that mmap aligns by itself; a size that is not rounded up to pages.
TEST_F(HostPages, BeginOnAHugePageAndHoldEveryByte) {
  for (const auto bytes : {huge, huge + 1, 3 * huge - 1, 5 * huge + 4097}) {
    const auto pages = host::allocate_pages(bytes);
    ASSERT_TRUE(pages);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pages.get()) % huge, 0U);
    EXPECT_TRUE(host::are_pages(pages.get_deleter()));
    std::memset(pages.get(), 7, bytes);
    EXPECT_EQ(static_cast<char*>(pages.get())[bytes - 1], 7);
  }
}

// Broken by: a threshold that is off by one.
TEST_F(HostPages, SmallOnesAreLeftToTheAllocator) {
  EXPECT_FALSE(host::allocate_pages(huge - 1));
  EXPECT_FALSE(host::allocate_pages(0));
}

// Broken by: pages of another size that are handed out; pages that stay on the list when they are taken.
TEST_F(HostPages, AreUsedAgainForTheSameSizeOnly) {
  void* first = address_of_freed(2 * huge);
  EXPECT_EQ(host::kept_bytes(), 2 * huge);
  const auto other = host::allocate_pages(2 * huge + 4096);
  EXPECT_NE(other.get(), first);
  const auto again = host::allocate_pages(2 * huge);
  EXPECT_EQ(again.get(), first);
  EXPECT_EQ(host::kept_bytes(), 0U);
  const auto third = host::allocate_pages(2 * huge);
  EXPECT_NE(third.get(), first);
}

// MADV_FREE comes before the pages are on the list: what the next owner writes stays.
// Broken by: advice that is given when the pages are taken.
TEST_F(HostPages, HoldWhatTheNextOwnerWrites) {
  address_of_freed(4 * huge);
  const auto again = host::allocate_pages(4 * huge);
  std::memset(again.get(), 9, 4 * huge);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const auto* bytes = static_cast<const char*>(again.get());
  EXPECT_EQ(std::count(bytes, bytes + 4 * huge, 9), static_cast<std::ptrdiff_t>(4 * huge));
}

// Broken by: no bound; the youngest that goes first.
TEST_F(HostPages, TheOldestGoWhenTooManyAreKept) {
  constexpr auto size = host::max_kept_bytes / 4;
  std::vector<c10::DataPtr> live;
  std::vector<void*> addresses;
  for (int i = 0; i < 6; ++i) {
    live.push_back(host::allocate_pages(size));
    addresses.push_back(live.back().get());
  }
  live.clear();  // freed in the order of the vector
  EXPECT_EQ(host::kept_bytes(), host::max_kept_bytes);
  for (int i = 5; i >= 2; --i) {
    live.push_back(host::allocate_pages(size));
    EXPECT_EQ(live.back().get(), addresses[i]);
  }
  EXPECT_EQ(host::kept_bytes(), 0U);
}

// Broken by: `keep` that is not looked at.
TEST_F(HostPages, NothingIsKeptUnlessItIsWanted) {
  host::keep_freed(false);
  address_of_freed(2 * huge);
  EXPECT_EQ(host::kept_bytes(), 0U);
}

// Broken by: `drop_kept` left out of the engine state; `keep_freed` not set by it.
TEST_F(HostPages, AreKeptWhileSomethingIsSharedAndNoLonger) {
  host::keep_freed(false);
  {
    const auto source = at::zeros({static_cast<std::int64_t>(huge)});
    for (int i = 0; i < 3; ++i) {
      auto copy = clone(source);
      copy.add_(1);
    }
    EXPECT_EQ(host::kept_bytes(), 4 * huge);
  }
  EXPECT_EQ(host::kept_bytes(), 0U);
}

// A written clone is a source like any other, though its memory is ours.
// Broken by: `own_memory` that knows torch's deleter only.
TEST_F(HostPages, CanBeShared) {
  const auto source = at::zeros({static_cast<std::int64_t>(huge)});
  auto copy = clone(source);
  copy.add_(1);
  EXPECT_TRUE(host::are_pages(storage_impl(copy).data_ptr().get_deleter()));
  EXPECT_EQ(torchcow::testing::refusal(copy), Reason::none);
}

// Broken by: a mapping that fails and is handed out; kept pages that are not given up for it.
TEST_F(HostPages, GiveWayWhenThereIsNoRoom) {
  address_of_freed(64 * huge);
  rlimit before{};
  getrlimit(RLIMIT_AS, &before);
  std::size_t mapped = 0;
  if (std::FILE* statm = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(statm, "%zu", &mapped) != 1) mapped = 0;
    std::fclose(statm);
  }
  const rlimit tight{mapped * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) + huge, before.rlim_max};
  setrlimit(RLIMIT_AS, &tight);
  const auto fits = host::allocate_pages(32 * huge);
  const auto never = host::allocate_pages(std::size_t{1} << 45);
  setrlimit(RLIMIT_AS, &before);
  EXPECT_TRUE(fits);
  EXPECT_FALSE(never);
  EXPECT_EQ(host::kept_bytes(), 0U);
}

// Broken by: a mutex that is not held across the fork.
TEST_F(HostPages, SurviveFork) {
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) address_of_freed(2 * huge);
  });
  for (int i = 0; i < 50; ++i) {
    const auto child = fork();
    if (child == 0) {
      alarm(10);  // a child that hangs ends by a signal
      const auto pages = host::allocate_pages(2 * huge);
      std::memset(pages.get(), 1, 2 * huge);
      _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFEXITED(status)) << "child " << i << " ended by signal " << WTERMSIG(status);
  }
  stop = true;
  busy.join();
}

// Broken by: advice that touches, or that rounds beyond the range.
TEST(HostPagesAdvice, ChangesNothing) {
  std::vector<char> data(3 * huge, 5);
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, huge, data.size()}) {
    host::advise_huge_pages(data.data(), bytes);
  }
  EXPECT_EQ(std::count(data.begin(), data.end(), 5), static_cast<std::ptrdiff_t>(data.size()));
}

}  // namespace
