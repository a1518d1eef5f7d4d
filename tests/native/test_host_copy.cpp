// SPDX-License-Identifier: Apache-2.0

// Copies on the host, at sizes around every threshold.

#include "core/host_copy.h"

#include "core/host_pages.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <vector>

namespace {

using namespace torchcow;

std::vector<std::size_t> sizes() {
  std::vector<std::size_t> all{0, 1, 63, 64, 65, 4095, 4096, 4097};
  for (const std::size_t pages : {1, 2, 3, 4, 5, 7, 8, 12, 16, 17}) {
    const std::size_t edge = pages * host::huge_page_bytes;
    all.insert(all.end(), {edge - 1, edge, edge + 1});
  }
  return all;
}

std::vector<std::uint32_t> noise(std::size_t bytes) {
  std::vector<std::uint32_t> words(bytes / 4 + 2);
  std::uint32_t state = 12345;
  for (auto& word : words) word = state = state * 1664525 + 1013904223;
  return words;
}

/// Copies, and looks at the bytes around too.
void expect_copied(std::size_t bytes, std::size_t to_offset, std::size_t from_offset) {
  const auto from = noise(bytes + from_offset);
  std::vector<unsigned char> to(bytes + to_offset + 8, 0xEE);
  const auto* begin = reinterpret_cast<const char*>(from.data()) + from_offset;
  host::copy(to.data() + to_offset, begin, bytes);
  EXPECT_EQ(std::memcmp(to.data() + to_offset, begin, bytes), 0) << bytes << " bytes";
  for (std::size_t i = 0; i < to_offset; ++i) ASSERT_EQ(to[i], 0xEE) << "before the target of " << bytes << " bytes";
  for (std::size_t i = to_offset + bytes; i < to.size(); ++i)
    ASSERT_EQ(to[i], 0xEE) << "behind the target of " << bytes;
}

class HostCopy : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    before_ = at::get_num_threads();
    at::set_num_threads(GetParam());
  }
  void TearDown() override { at::set_num_threads(before_); }

 private:
  int before_ = 1;
};

// Broken by: a last chunk that is left out, or one byte short; chunks that overlap the end.
TEST_P(HostCopy, CopiesEveryByteAndNoOther) {
  for (const auto bytes : sizes()) expect_copied(bytes, 0, 0);
}

// Broken by: chunks that begin on aligned addresses only.
TEST_P(HostCopy, AtAnyAlignment) {
  for (const auto bytes : {host::parallel_bytes + 5, 4 * host::parallel_bytes + 3, 8 * host::parallel_bytes + 1}) {
    expect_copied(bytes, 1, 0);
    expect_copied(bytes, 3, 2);
  }
}

double cpu_seconds(int who) {
  rusage usage{};
  getrusage(who, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec) + static_cast<double>(usage.ru_utime.tv_usec) * 1e-6;
}

#ifndef __SANITIZE_THREAD__
// Broken by: an entry of OpenMP that is not found.
TEST(HostCopyThreads, OthersHelp) {
  if (at::get_num_threads() < 2) GTEST_SKIP() << "one thread";
  const auto others = [] { return cpu_seconds(RUSAGE_SELF) - cpu_seconds(RUSAGE_THREAD); };
  const auto before = others();
  for (int i = 0; i < 10; ++i) expect_copied(16 * host::parallel_bytes, 0, 0);
  EXPECT_GT(others() - before, 0.001);
}
#endif

// Broken by: a child that calls upon a pool it does not have (it never ends).
TEST(HostCopyThreads, AChildOfForkCopiesAlone) {
  expect_copied(4 * host::parallel_bytes, 0, 0);
  const auto child = fork();
  if (child == 0) {
    alarm(20);
    expect_copied(4 * host::parallel_bytes, 0, 0);
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

INSTANTIATE_TEST_SUITE_P(Threads, HostCopy, ::testing::Values(1, 2, 4, 7));

}  // namespace
