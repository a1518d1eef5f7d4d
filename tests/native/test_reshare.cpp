// SPDX-License-Identifier: Apache-2.0

// Re-sharing: a storage moves to another block only if both hold the bytes that were compared.

#include "core/reshare.h"

#include "core/accounting.h"
#include "core/materialize.h"
#include "core/retire.h"
#include "family.h"

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Reshare : public EngineTest {};

bool join(const at::Tensor& joiner, const at::Tensor& joiner_clone, const at::Tensor& keeper_clone) {
  return torchcow::join(storage_impl(joiner), storage_impl(joiner_clone), storage_impl(keeper_clone));
}

void write(const at::Tensor& tensor) { materialize({{&storage_impl(tensor)}}, {"a test"}); }

// Broken by: a `join` that leaves a sharer behind, or forgets to count.
TEST_F(Reshare, MovesToTheOtherBlock) {
  const auto keeper = numbers(1000), joiner = deep_copy(keeper);
  {
    const auto clones = clone({keeper, joiner});
    EXPECT_TRUE(join(joiner, clones[1], clones[0]));
    EXPECT_TRUE(same_memory(joiner, keeper));
    EXPECT_EQ(usage(storage_impl(joiner)).block_sharers, 3U);
    EXPECT_EQ(totals().blocks, 2U);
  }
  EXPECT_EQ(totals().blocks, 1U);
  EXPECT_EQ(totals().sharers, 2U);
  EXPECT_EQ(totals().unique_bytes, 4000U);
  write(joiner);
  EXPECT_FALSE(same_memory(joiner, keeper));
  EXPECT_TRUE(same_bits(joiner, keeper));
}

// Broken by: a span that is joined without its offset.
TEST_F(Reshare, JoinsASpan) {
  const auto flat = numbers(100);
  const auto joiner = deep_copy(flat.narrow(0, 20, 50));
  const auto clones = clone({flat.narrow(0, 20, 50), joiner});
  EXPECT_TRUE(join(joiner, clones[1], clones[0]));
  EXPECT_TRUE(same_bits(joiner, deep_copy(flat.narrow(0, 20, 50))));
}

// Broken by: `same_span` left out: the bytes that were compared are not those of the joiner any more.
TEST_F(Reshare, NotAfterAWrite_I11) {
  const auto keeper = numbers(1000), joiner = deep_copy(keeper);
  const auto clones = clone({keeper, joiner});
  write(joiner);
  EXPECT_FALSE(join(joiner, clones[1], clones[0]));
  const auto again = clone(joiner);
  EXPECT_FALSE(join(joiner, clones[1], clones[0])) << "shared again, but not with the clone that was compared";
}

// The source may be written meanwhile: its clone keeps what was compared.
TEST_F(Reshare, TheKeeperItselfMayHaveLeft) {
  const auto keeper = numbers(1000), joiner = deep_copy(keeper);
  const auto clones = clone({keeper, joiner});
  write(keeper);
  EXPECT_TRUE(join(joiner, clones[1], clones[0]));
  EXPECT_TRUE(same_memory(joiner, clones[0]));
}

TEST_F(Reshare, NotWithinOneBlock) {
  const auto keeper = numbers(1000);
  const auto joiner = clone(keeper);
  const auto clones = clone({keeper, joiner});
  EXPECT_FALSE(join(joiner, clones[1], clones[0]));
  EXPECT_EQ(totals().sharers, 4U);
}

// Broken by: sizes that are not compared.
TEST_F(Reshare, NotWithAnotherSize) {
  const auto keeper = numbers(1000), joiner = numbers(500);
  const auto clones = clone({keeper, joiner});
  EXPECT_FALSE(join(joiner, clones[1], clones[0]));
}

// Broken by: a block that may be taken back, because somebody might hold a pointer into it.
TEST_F(Reshare, NotOnProbation) {
  const auto keeper = numbers(1000), joiner = deep_copy(keeper);
  const auto joiner_clone = clone(joiner);
  Reason reason;
  SharingCall call;
  const auto keeper_clone = clone(call, keeper, reason);
  ASSERT_TRUE(keeper_clone.defined());
  EXPECT_FALSE(join(joiner, joiner_clone, keeper_clone));
}

// I3. Broken by: a `join` without former sharer.
TEST_F(Reshare, WhoReadsTheOldMemoryStillCan_I3) {
  const auto keeper = numbers(1000);
  const auto joiner = deep_copy(keeper);
  const auto alias = joiner.view({10, 100});
  const auto* old = joiner.const_data_ptr<float>();
  {
    const auto clones = clone({keeper, joiner});
    ASSERT_TRUE(join(joiner, clones[1], clones[0]));
  }
  EXPECT_EQ(totals().retired_blocks, 1U);
  EXPECT_EQ(old[999], keeper.const_data_ptr<float>()[999]);
}

}  // namespace
