// SPDX-License-Identifier: Apache-2.0

// Materialization: steal, copy, skip; batches whole or not at all; nothing changes when memory runs out.

#include "core/materialize.h"
#include "core/retire.h"

#include "core/accounting.h"
#include "core/allocate.h"
#include "family.h"
#include "hostile_allocator.h"

#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

using Lines = std::vector<std::string>;

class Materialize : public EngineTest {};

void materialize_one(const at::Tensor& tensor) { materialize({{&storage_impl(tensor)}}, {"test"}); }

/// A tensor whose storage allocates from `allocator`.
at::Tensor numbers_from(HostileAllocator& allocator, std::int64_t count) {
  auto storage =
      c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), count * 4, &allocator, true);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), c10::DispatchKeySet(c10::DispatchKey::CPU), caffe2::TypeMeta::Make<float>());
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous({count});
  tensor.copy_(numbers(count));
  return tensor;
}

// Broken by: `way = Way::steal` for every sharer (the clone is then written with the source).
TEST_F(Materialize, TheFirstWriterCopies_I10) {
  const auto source = numbers(100);
  const auto expected = deep_copy(source);
  const auto copy = clone(source);
  materialize_one(copy);
  EXPECT_EQ(materializations(), Lines{"copy test 400"});
  EXPECT_FALSE(shared(copy));
  EXPECT_TRUE(shared(source));
  EXPECT_FALSE(same_memory(source, copy));
  EXPECT_TRUE(same_bits(copy, expected));
}

// Broken by: `steals` that is always false; a steal that allocates.
TEST_F(Materialize, TheLastSharerTakesTheBlock) {
  HostileAllocator allocator;
  auto source = numbers_from(allocator, 100);
  const auto* address = source.const_data_ptr();
  const auto expected = deep_copy(source);
  const auto copy = clone(source);
  source.reset();
  allocator.fail(0);
  materialize_one(copy);
  EXPECT_EQ(materializations(), Lines{"steal test 400"});
  EXPECT_EQ(copy.const_data_ptr(), address);
  EXPECT_EQ(allocator.count(), 1U);
  EXPECT_TRUE(same_bits(copy, expected));
  EXPECT_EQ(totals().blocks, 0U);
}

// Broken by: `whole` that looks at the offset only (a storage would then own less than it says, or other bytes).
TEST_F(Materialize, ASpanIsCopiedAndNotStolen) {
  for (const int begin : {0, 30}) {
    auto flat = numbers(100);
    const auto expected = deep_copy(flat.narrow(0, begin, 50));
    const auto span = clone(flat.narrow(0, begin, 50));
    flat.reset();
    materialize_one(span);
    EXPECT_EQ(materializations(), Lines{"copy test 200"});
    EXPECT_TRUE(same_bits(span, expected));
  }
}

// Broken by: `materialize` that does not look whether the target is a sharer.
TEST_F(Materialize, OthersAreLeftAlone) {
  const auto plain = numbers(100);
  const auto* address = plain.const_data_ptr();
  materialize_one(plain);
  EXPECT_EQ(plain.const_data_ptr(), address);
  const auto copy = clone(plain);
  materialize_one(copy);
  materialize_one(copy);
  EXPECT_EQ(materializations(), Lines{"copy test 400"});
}

// Broken by: `skip` without being asked; no `poison` in skipped memory (this test's own check of the poison).
TEST_F(Materialize, SkipsOnlyWhereTheCallerSaysSo) {
  const auto source = numbers(100);
  const auto first = clone(source);
  const auto second = clone(source);
  std::vector<Skipped> skipped;
  const std::vector<WriteTarget> targets{{&storage_impl(first), true}, {&storage_impl(second), false}};
  materialize(targets, {"test"}, &skipped);
  ASSERT_EQ(skipped.size(), 1U);
  EXPECT_EQ(skipped.front().storage.get(), &storage_impl(first));
  EXPECT_TRUE(same_bits(second, source));
  const auto* bytes = static_cast<const unsigned char*>(first.const_data_ptr());
  EXPECT_EQ(std::count(bytes, bytes + 400, 0xFB), 400);
  // The operator failed: what was there comes back.
  finish_skipped(skipped.front(), 0);
  EXPECT_TRUE(same_bits(first, source));
  materializations();

  const auto third = clone(source);
  materialize({{&storage_impl(third), true}}, {"test"});
  EXPECT_EQ(materializations(), Lines{"copy test 400"}) << "nobody would have finished it";
}

// Broken by: `skip` although another thread may be reading: it would see memory that holds nothing yet.
TEST_F(Materialize, NothingIsSkippedBesideOtherThreads_I7) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  std::vector<Skipped> skipped;
  set_other_threads_probe([] { return true; });
  materialize({{&storage_impl(copy), true}}, {"test"}, &skipped);
  set_other_threads_probe([] { return false; });
  EXPECT_TRUE(skipped.empty());
  EXPECT_TRUE(same_bits(copy, source));
  EXPECT_EQ(materializations(), Lines{"copy test 400"});
}

// Broken by: `finish_skipped` that ignores `written`.
TEST_F(Materialize, RestoresWhatWasNotWritten) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  std::vector<Skipped> skipped;
  materialize({{&storage_impl(copy), true}}, {"test"}, &skipped);
  static_cast<float*>(copy.mutable_data_ptr())[0] = -1;
  finish_skipped(skipped.front(), 4);
  EXPECT_EQ(copy[0].item<float>(), -1);
  EXPECT_TRUE(same_bits(copy.narrow(0, 1, 99), source.narrow(0, 1, 99)));
}

// Broken by: a batch that counts a storage twice; one that gives up blocks as it goes.
TEST_F(Materialize, ABatchMayNameAStorageTwice) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  const auto view = copy.view({10, 10});
  const std::vector<WriteTarget> targets{{&storage_impl(copy)}, {&storage_impl(view)}, {&storage_impl(copy)}};
  materialize(targets, {"test"});
  EXPECT_EQ(materializations(), Lines{"copy test 400"});
  EXPECT_TRUE(shared(source));
}

// Broken by: `leaving` taken as 0 (the last one copies too), or counted over all blocks (all of them steal).
TEST_F(Materialize, SiblingsInOneBatchTheLastOneSteals) {
  HostileAllocator allocator;
  const auto source = numbers_from(allocator, 100);
  const auto other = numbers(100);
  const auto expected = deep_copy(source);
  const std::vector<at::Tensor> family{source, clone(source), clone(source), other, clone(other)};
  std::vector<WriteTarget> targets;
  for (const auto& tensor : family) targets.push_back({&storage_impl(tensor)});
  materialize(targets, {"test"});
  auto lines = materializations();
  std::sort(lines.begin(), lines.end());
  EXPECT_EQ(lines, (Lines{"copy test 400", "copy test 400", "copy test 400", "steal test 400", "steal test 400"}));
  EXPECT_EQ(allocator.count(), 3U) << "one for the source, two copies";
  for (const auto& tensor : family) EXPECT_TRUE(same_bits(tensor, expected));
  EXPECT_EQ(totals().blocks, 0U);
}

// A skipped sibling stays on the block until its operator returned, so nobody may steal below it.
// Broken by: `leaving` that counts jobs which skip.
TEST_F(Materialize, NobodyStealsFromASkippedSibling) {
  const auto source = numbers(100);
  const auto expected = deep_copy(source);
  const auto copy = clone(source);
  std::vector<Skipped> skipped;
  const std::vector<WriteTarget> targets{{&storage_impl(source), true}, {&storage_impl(copy), true}};
  materialize(targets, {"test"}, &skipped);
  // The operator writes all targets, and then fails.
  for (const auto& tensor : {source, copy})
    std::fill_n(static_cast<float*>(storage_impl(tensor).mutable_data()), 100, 0.0F);
  for (auto& skip : skipped) {
    ASSERT_NE(skip.keeper->block->data.get(), nullptr) << "the block of a skipped storage was given away";
    finish_skipped(skip, 0);
  }
  EXPECT_TRUE(same_bits(source, expected));
  EXPECT_TRUE(same_bits(copy, expected));
}

// Broken by: giving up a block before the last allocation; claims that are not released (the retry then raises).
TEST_F(Materialize, EveryAllocationMayFail_I5) {
  constexpr int count = 6;
  for (int failing = 0; failing < count; ++failing) {
    std::vector<HostileAllocator> allocators(count);
    std::vector<at::Tensor> sources;
    for (auto& allocator : allocators) sources.push_back(numbers_from(allocator, 100));
    const auto copies = clone(sources);
    const auto expected = deep_copy(sources.front());
    std::vector<WriteTarget> targets;
    for (const auto& copy : copies) targets.push_back({&storage_impl(copy)});
    allocators[failing].fail(0);
    EXPECT_THROW(materialize(targets, {"test"}), std::bad_alloc);
    for (int i = 0; i < count; ++i) {
      EXPECT_TRUE(shared(sources[i]) && shared(copies[i]) && same_memory(sources[i], copies[i]));
      EXPECT_TRUE(same_bits(copies[i], expected));
    }
    EXPECT_EQ(totals().sharers, 2U * count);
    EXPECT_TRUE(materializations().empty()) << "a failure is not a materialization";
    materialize(targets, {"test"});
    for (int i = 0; i < count; ++i) {
      EXPECT_FALSE(shared(copies[i]));
      EXPECT_TRUE(same_bits(copies[i], expected));
    }
    EXPECT_EQ(materializations().size(), std::size_t{count});
  }
}

// Broken by: the same, through operators; an operator that runs although its barrier threw.
TEST_F(Materialize, EveryAllocationOfAnOperatorMayFail) {
  const auto operators = std::vector<std::function<void(const std::vector<at::Tensor>&)>>{
      [](auto& tensors) { at::_foreach_add_(tensors, 1); },
      [](auto& tensors) { at::_foreach_zero_(tensors); },
      [](auto& tensors) { tensors[0].add_(1); },
      [](auto& tensors) { tensors[0].zero_(); },
      [](auto& tensors) { tensors[0].mutable_data_ptr(); },
      [](auto& tensors) { tensors[0].resize_({1000}); },
  };
  for (const auto& act : operators) {
    int failing = 0;
    for (;; ++failing) {
      const std::vector<at::Tensor> sources{numbers(100), numbers(200), numbers(300)};
      const auto copies = clone(sources);
      fail_allocation(failing);
      bool failed = false;
      try {
        act(copies);
      } catch (const c10::OutOfMemoryError&) {
        failed = true;
      }
      fail_allocation(-1);
      if (!failed) break;
      for (std::size_t i = 0; i < sources.size(); ++i) {
        EXPECT_TRUE(shared(copies[i]));
        EXPECT_TRUE(same_bits(copies[i], sources[i]));
      }
      act(copies);
      EXPECT_FALSE(shared(copies[0]));
      for (std::size_t i = 0; i < sources.size(); ++i) EXPECT_TRUE(same_bits(sources[i], numbers(100 * (i + 1))));
    }
    EXPECT_GT(failing, 0) << "no allocation failed: nothing was tested";
  }
}

// Broken by: an error without `add_context`.
TEST_F(Materialize, AFailureSaysWhatWhereAndWhatToDo) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  fail_allocation(0);
  try {
    copy.add_(1);
    FAIL() << "nothing was raised";
  } catch (const c10::OutOfMemoryError& error) {
    const std::string text = error.what();
    for (const auto* part : {"no memory for the first write", "400 bytes on cpu", "aten::add_", "shared by 2 tensors",
                             "Nothing was changed", "try again"}) {
      EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is missing in: " << text;
    }
  }
}

// Runs `other` in a second thread while `tensor` is being materialized, and says whether it waited for that to end.
bool waits_for_a_materialization(const at::Tensor& tensor, HostileAllocator& allocator,
                                 const std::function<void()>& other) {
  std::atomic<bool> ended{false};
  bool waited = false;
  std::thread thread;
  allocator.during = [&] {
    thread = std::thread([&] {
      other();
      ended = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    waited = !ended;
  };
  materialize_one(tensor);
  thread.join();
  return waited;
}

// Broken by: `claim` that does not wait for other claims (two copies, of which one is lost).
TEST_F(Materialize, ASecondWriterWaitsAndFindsTheMemoryOfTheFirst) {
  HostileAllocator allocator;
  const auto source = numbers_from(allocator, 100);
  const auto copy = clone(source);
  EXPECT_TRUE(waits_for_a_materialization(copy, allocator, [&] { copy.add_(1); }));
  EXPECT_EQ(materializations(), Lines{"copy test 400"});
  EXPECT_TRUE(same_bits(copy, numbers(100).add(1)));
}

// Broken by: `share` that does not wait for claims: the clone would join a block that the source is leaving.
TEST_F(Materialize, AClonerWaitsAndSharesTheNewMemory) {
  HostileAllocator allocator;
  const auto source = numbers_from(allocator, 100);
  const auto copy = clone(source);
  at::Tensor grandchild;
  EXPECT_TRUE(waits_for_a_materialization(copy, allocator, [&] { grandchild = clone(copy); }));
  EXPECT_TRUE(same_memory(copy, grandchild));
  EXPECT_EQ(usage(storage_impl(source)).block_sharers, 1U);
}

// Broken by: one lock for all materializations of a block.
TEST_F(Materialize, SiblingsDoNotWaitForEachOther) {
  HostileAllocator allocator;
  const auto source = numbers_from(allocator, 100);
  const auto copy = clone(source);
  const auto sibling = clone(source);
  EXPECT_FALSE(waits_for_a_materialization(copy, allocator, [&] { sibling.add_(1); }));
}

// Broken by: `block.allocator` taken from the device instead of from the storage that brought the memory.
TEST_F(Materialize, AllocatesFromTheSourcesAllocator) {
  HostileAllocator allocator;
  const auto source = numbers_from(allocator, 100);
  const auto copy = clone(source);
  copy.add_(1);
  EXPECT_EQ(allocator.count(), 2U);
  EXPECT_EQ(allocator.bytes(), 800U);
}

// Broken by: `visible` that is not looked at.
TEST_F(Materialize, WhatNobodySawIsNotRecorded) {
  const auto source = numbers(100);
  SharingCall call;
  Reason reason;
  const auto copy = clone(call, source, reason);
  materialize({{&storage_impl(copy)}}, {"test", false, false});
  for (const auto& probation : call.probations()) SharingCall::confirm(*probation);
  EXPECT_FALSE(shared(copy));
  EXPECT_TRUE(materializations().empty());
}

}  // namespace
