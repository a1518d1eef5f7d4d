// SPDX-License-Identifier: Apache-2.0
// Relocation: a sharer moves to another block, and nothing that reads notices.

#include "core/relocate.h"

#include "core/accounting.h"
#include "core/write_hook.h"
#include "family.h"

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Relocate : public EngineTest {};

// Broken by: a hook that keeps the old address; a block that keeps the old sharer; a sharer that is not counted.
TEST_F(Relocate, TheNextWriteIsNoticedInTheNewBlock) {
  const auto source = numbers(100);
  auto copy = clone(source);
  const auto twin = numbers(100);
  const auto twins_copy = clone(twin);
  {
    Garbage garbage;
    std::lock_guard lock(engine().mutex);
    auto& target = *write_hook::sharer_of(storage_impl(twin))->block;
    relocate(*write_hook::sharer_of(storage_impl(copy)), target, 0, garbage);
  }
  EXPECT_TRUE(same_memory(copy, twin));
  EXPECT_EQ(usage(storage_impl(source)).block_sharers, 1U);
  EXPECT_EQ(usage(storage_impl(twin)).block_sharers, 3U);
  EXPECT_EQ(totals().sharers, 4U);
  copy.add_(1);
  EXPECT_TRUE(same_bits(twin, numbers(100)));
  EXPECT_TRUE(same_bits(source, numbers(100)));
  EXPECT_TRUE(same_bits(copy, numbers(100).add(1)));
}

// Broken by: an offset that is counted from the sharer's old place.
TEST_F(Relocate, ASpanMayLieElsewhereInTheNewBlock) {
  const auto source = numbers(100);
  const auto span = clone(source.narrow(0, 10, 5));
  const auto twin = numbers(50).add(5);  // 11 is its sixth number
  const auto twins_copy = clone(twin);
  {
    Garbage garbage;
    std::lock_guard lock(engine().mutex);
    auto& target = *write_hook::sharer_of(storage_impl(twin))->block;
    relocate(*write_hook::sharer_of(storage_impl(span)), target, 5 * sizeof(float), garbage);
  }
  EXPECT_EQ(usage(storage_impl(span)).offset, 5 * sizeof(float));
  EXPECT_TRUE(same_bits(span, numbers(100).narrow(0, 10, 5)));
}

}  // namespace
