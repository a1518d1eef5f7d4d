// SPDX-License-Identifier: Apache-2.0

// The list of sharers of a block.

#include "core/block.h"

#include <gtest/gtest.h>

#include <vector>

namespace {

using namespace torchcow;

Sharer sharer_of(Block& block, std::size_t offset, std::size_t bytes) {
  Sharer sharer{};
  sharer.block = &block;
  sharer.offset = offset;
  sharer.bytes = bytes;
  return sharer;
}

std::vector<const Sharer*> sharers_of(const Block& block) {
  std::vector<const Sharer*> found;
  const Sharer* previous = nullptr;
  for (const auto* sharer = block.sharers; sharer != nullptr; previous = sharer, sharer = sharer->next) {
    EXPECT_EQ(sharer->previous, previous);
    found.push_back(sharer);
  }
  EXPECT_EQ(found.size(), block.sharer_count);
  return found;
}

// Broken by: `unlink` that leaves `next->previous` alone; `unlink` that does not move the head; no `--sharer_count`.
TEST(Block, UnlinksInAnyOrder) {
  for (const std::vector<int>& order : {std::vector{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {1, 2, 0}}) {
    Block block{};
    std::vector<Sharer> sharers;
    sharers.reserve(3);
    for (int i = 0; i < 3; ++i) block.link(sharers.emplace_back(sharer_of(block, 0, 0)));
    std::vector<const Sharer*> left{&sharers[2], &sharers[1], &sharers[0]};
    EXPECT_EQ(sharers_of(block), left);
    for (const int gone : order) {
      block.unlink(sharers[gone]);
      std::erase(left, &sharers[gone]);
      EXPECT_EQ(sharers_of(block), left);
      EXPECT_EQ(sharers[gone].next, nullptr);
      EXPECT_EQ(sharers[gone].previous, nullptr);
    }
  }
}

// Broken by: `data()` without the offset.
TEST(Block, ASharerReadsItsSpan) {
  char bytes[16] = {};
  Block block{};
  block.data = c10::DataPtr(bytes, c10::kCPU);
  block.bytes = sizeof(bytes);
  EXPECT_EQ(sharer_of(block, 5, 3).data(), bytes + 5);
}

}  // namespace
