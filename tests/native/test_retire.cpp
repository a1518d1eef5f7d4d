// SPDX-License-Identifier: Apache-2.0

// Retirement: a block that somebody may still read is neither freed nor stolen.

#include "core/retire.h"

#include "core/accounting.h"
#include "core/engine_state.h"
#include "core/materialize.h"
#include "core/write_hook.h"
#include "family.h"

#include <chrono>
#include <cstring>
#include <thread>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

bool company() { return true; }

class Retire : public EngineTest {
 protected:
  void SetUp() override {
    EngineTest::SetUp();
    set_other_threads_probe(&company);
  }
  void TearDown() override {
    set_other_threads_probe([] { return false; });
    EngineTest::TearDown();
  }
};

// The reader took its address before the write: the writer's old block must stay, and stay as it is.
// Broken by: `retire` that frees at once; `leave` with `remember == false` in `publish`.
TEST_F(Retire, AReadersMemorySurvivesTheWriter_I3) {
  const auto source = numbers(1000);
  const auto expected = deep_copy(source);
  const auto operand = source;  // what a running operator holds
  const auto* address = static_cast<const float*>(source.const_data_ptr());
  {
    const auto copy = clone(source);
    source.fill_(7);
  }
  EXPECT_EQ(totals().retired_blocks, 1U);
  EXPECT_EQ(totals().retired_bytes, 4000U);
  EXPECT_EQ(std::memcmp(address, expected.const_data_ptr(), 4000), 0);
}

// Broken by: `read_by_former_sharers` not asked in `claim`: the clone would write where the reader reads.
TEST_F(Retire, WhatAFormerSharerReadsIsNotStolen) {
  const auto source = numbers(1000);
  const auto expected = deep_copy(source);
  const auto operand = source;
  const auto* address = static_cast<const float*>(source.const_data_ptr());
  const auto copy = clone(source);
  source.fill_(7);
  copy.fill_(8);
  EXPECT_EQ(materializations().back(), "copy aten::fill_.Scalar 4000");
  EXPECT_EQ(std::memcmp(address, expected.const_data_ptr(), 4000), 0);
}

// Broken by: `still_reads` that does not count references.
TEST_F(Retire, AnAliasKeepsTheBlock_I3) {
  set_other_threads_probe([] { return false; });
  const auto source = numbers(100);
  {
    const auto view = source.view({10, 10});
    auto copy = clone(source);
    source.fill_(7);
    copy.reset();
    EXPECT_EQ(totals().retired_blocks, 1U);
  }
  EXPECT_EQ(totals().retired_blocks, 0U);
}

// A storage may be held without a tensor: by a Storage object of another library, say.
// Broken by: a comparison with the tensors' references only.
TEST_F(Retire, AReferenceToTheStorageKeepsTheBlock) {
  set_other_threads_probe([] { return false; });
  const auto source = numbers(100);
  {
    const auto held = source.storage();
    auto copy = clone(source);
    source.fill_(7);
    copy.reset();
    EXPECT_EQ(totals().retired_blocks, 1U);
  }
  EXPECT_EQ(totals().retired_blocks, 0U);
}

// Broken by: no grace although other threads run; a grace that never ends.
TEST_F(Retire, WithoutFurtherReferencesItStaysForAWhile) {
  const auto source = numbers(100);
  {
    const auto copy = clone(source);
    source.fill_(7);
  }
  EXPECT_EQ(totals().retired_blocks, 1U) << "a method call holds no reference of its own";
  const auto patience =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(static_cast<int>(1000 * grace_seconds) + 2000);
  while (totals().retired_blocks > 0 && std::chrono::steady_clock::now() < patience) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(totals().retired_blocks, 0U);
}

// Broken by: a grace period for a single thread.
TEST_F(Retire, AloneThereIsNothingToWaitFor) {
  set_other_threads_probe([] { return false; });
  const auto source = numbers(100);
  {
    const auto copy = clone(source);
    source.fill_(7);
  }
  EXPECT_EQ(totals().retired_blocks, 0U);
}

// Broken by: former sharers that are remembered although their storages died.
TEST_F(Retire, ADeadFormerSharerReadsNothing) {
  auto source = numbers(100);
  auto copy = clone(source);
  source.fill_(7);
  source.reset();
  copy.reset();
  EXPECT_EQ(totals().retired_blocks, 0U);
}

// Broken by: former sharers that are kept as long as their block: each keeps the struct of its storage, and scatters
// the heap.
TEST_F(Retire, FormerSharersThatReadNoMoreAreForgotten) {
  const auto source = numbers(100);
  const auto former_sharers = [&] {
    std::lock_guard lock(engine().mutex);
    return write_hook::sharer_of(storage_impl(source))->block->former_sharers.size();
  };
  const auto kept = clone(source);
  for (int i = 0; i < 1000; ++i) clone(source).fill_(1);
  EXPECT_LT(former_sharers(), 20U);
  std::vector<at::Tensor> alive;
  for (int i = 0; i < 100; ++i) alive.push_back(clone(source).fill_(1));
  EXPECT_GE(former_sharers(), 100U) << "in company they may still be read";
  events(true);
}

// Broken by: a sweep at clone time only.
TEST_F(Retire, EveryMaterializationLooksAgain) {
  const auto source = numbers(100);
  auto held = source.view({10, 10});
  const auto other = numbers(10);
  auto copy = clone(source);
  source.fill_(7);
  copy.reset();
  set_other_threads_probe([] { return false; });
  held.reset();
  const auto bystander = clone(other);
  bystander.fill_(1);
  Garbage garbage;
  std::lock_guard lock(engine().mutex);
  EXPECT_TRUE(engine().retired == nullptr);
}

}  // namespace
