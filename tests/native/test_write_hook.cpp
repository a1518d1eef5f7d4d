// SPDX-License-Identifier: Apache-2.0

// The write hook: every request for a mutable pointer. One suite for both implementations; the name says which was
// built.

#include "core/write_hook.h"

#include "core/accounting.h"
#include "core/allocate.h"
#include "core/engine_state.h"
#include "core/materialize.h"
#include "core/retire.h"
#include "family.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/COWDeleter.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace at::native {
// Its header brings `at::clone` with it.
TORCH_API void resize_bytes_cpu(c10::StorageImpl* storage, std::size_t bytes);
}  // namespace at::native

namespace {

using namespace torchcow;
using namespace torchcow::testing;

using Lines = std::vector<std::string>;

/// Each test runs without and with other threads that might be inside of an operator: what a first write leaves behind
/// differs on torch 2.11 and 2.12.
class WriteHook : public EngineTest, public ::testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    EngineTest::SetUp();
    RecordProperty("write_hook", write_hook::name);
    if (GetParam()) set_other_threads_probe([] { return true; });
  }
  void TearDown() override {
    set_other_threads_probe([] { return false; });
    EngineTest::TearDown();
  }
};

INSTANTIATE_TEST_SUITE_P(Alone, WriteHook, ::testing::Values(false));
INSTANTIATE_TEST_SUITE_P(Accompanied, WriteHook, ::testing::Values(true));

/// What CPU tensors take, from its construction on.
class Meter final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, std::int64_t bytes, std::size_t, std::size_t, c10::Device) override { held_ += bytes; }
  [[nodiscard]] bool memoryProfilingEnabled() const override { return true; }
  [[nodiscard]] std::int64_t held() const { return held_; }

 private:
  std::int64_t held_ = 0;
};

// Broken by: no `set_materializer`, or no hooked allocator: the write goes into the block.
TEST_P(WriteHook, ARawPointerMaterializes_I2) {
  const auto source = numbers(100);
  const auto expected = deep_copy(source);
  const auto copy = clone(source);
  static_cast<float*>(storage_impl(copy).mutable_data())[7] = -1;
  EXPECT_EQ(materializations(), Lines{"copy a raw pointer 400"});
  EXPECT_TRUE(same_bits(source, expected));
  EXPECT_EQ(copy[7].item<float>(), -1);
  EXPECT_EQ(copy[8].item<float>(), 9);
}

// Broken by: a hook on clones only.
TEST_P(WriteHook, TheSourceIsArmedToo_I2) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  static_cast<float*>(source.mutable_data_ptr())[7] = -1;
  EXPECT_EQ(materializations(), Lines{"copy a raw pointer 400"});
  EXPECT_TRUE(same_bits(copy, numbers(100)));
}

// Broken by: a hook that answers const requests.
TEST_P(WriteHook, ConstPointersDoNot) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  EXPECT_EQ(storage_impl(copy).data(), source.const_data_ptr());
  EXPECT_EQ(copy.const_data_ptr(), source.const_data_ptr());
  EXPECT_EQ(copy.sum().item<float>(), 5050);
  EXPECT_TRUE(materializations().empty());
}

// Broken by: a hook that stays armed after a steal (it would materialize a second time).
TEST_P(WriteHook, TheLastSharerStealsThroughThePointer) {
  auto source = numbers(100);
  const auto* address = source.const_data_ptr();
  const auto copy = clone(source);
  source.reset();
  EXPECT_EQ(storage_impl(copy).mutable_data(), address);
  EXPECT_EQ(storage_impl(copy).mutable_data(), address);
  EXPECT_EQ(materializations(), Lines{"steal a raw pointer 400"});
}

// Broken by: an exception that leaves the storage disarmed (the retry would write into the block).
TEST_P(WriteHook, StaysArmedWhenMemoryRunsOut) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  for (int i = 0; i < 3; ++i) {
    fail_allocation(0);
    EXPECT_THROW(storage_impl(copy).mutable_data(), c10::OutOfMemoryError);
    EXPECT_TRUE(shared(copy));
    EXPECT_TRUE(same_memory(source, copy));
  }
  static_cast<float*>(storage_impl(copy).mutable_data())[0] = -1;
  EXPECT_TRUE(same_bits(source, numbers(100)));
}

// Broken by: `sharer_of` that goes by the hook and not by the DataPtr; a leak of the sharer (no `clear_materializer`).
TEST_P(WriteHook, ResizedToZeroAndGrownAgain) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  copy.unsafeGetTensorImpl()->set_sizes_contiguous({0});
  auto& storage = storage_impl(copy);
  storage.set_data_ptr_noswap(storage.allocator()->allocate(0));
  storage.set_nbytes(0);
  EXPECT_FALSE(shared(copy));
  EXPECT_EQ(totals().sharers, 1U);
  copy.resize_({1000});
  copy.fill_(3);
  EXPECT_EQ(copy.sum().item<float>(), 3000);
  EXPECT_TRUE(same_bits(source, numbers(100)));
}

// Broken by: `grows` that is always false, with a growth that writes into the block.
TEST_P(WriteHook, Growth) {
  for (const bool of_the_source : {false, true}) {
    const auto source = numbers(100);
    const auto copy = clone(source);
    const auto& grown = of_the_source ? source : copy;
    const auto& other = of_the_source ? copy : source;
    grown.resize_({5000});
    grown.narrow(0, 100, 4900).fill_(1);
    EXPECT_TRUE(same_bits(grown.narrow(0, 0, 100), numbers(100)));
    EXPECT_TRUE(same_bits(other, numbers(100)));
    EXPECT_FALSE(shared(grown));
    grown.resize_({50});
    grown.fill_(2);
    EXPECT_TRUE(same_bits(other, numbers(100)));
  }
}

// Broken by: `grows` that is always true (shrinking would copy for nothing).
TEST_P(WriteHook, ShrinkingKeepsSharing) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  copy.resize_({50});
  EXPECT_TRUE(same_memory(source, copy));
  EXPECT_TRUE(materializations().empty());
  copy.fill_(0);
  copy.resize_({100});
  EXPECT_TRUE(same_bits(copy.narrow(0, 50, 50), source.narrow(0, 50, 50)));
}

// Broken by: a hook that survives `set_data_ptr`, and materializes memory that is the storage's own.
TEST_P(WriteHook, OtherMemoryIsPutIn) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  auto memory = c10::GetCPUAllocator()->allocate(400);
  auto* address = memory.get();
  storage_impl(copy).set_data_ptr(std::move(memory));
  EXPECT_FALSE(shared(copy));
  materializations();
  EXPECT_EQ(storage_impl(copy).mutable_data(), address);
  copy.fill_(5);
  EXPECT_TRUE(materializations().empty());
  EXPECT_TRUE(same_bits(source, numbers(100)));
  EXPECT_EQ(totals().sharers, 1U);
}

// Broken by: `release_resources` that is not noticed (a weak reference keeps the struct, not the memory).
TEST_P(WriteHook, AStorageDiesWhileWeaklyReferenced) {
  const auto source = numbers(100);
  auto copy = clone(source);
  const c10::weak_intrusive_ptr<c10::StorageImpl> weak(
      copy.unsafeGetTensorImpl()->unsafe_storage().getWeakStorageImpl());
  copy.reset();
  EXPECT_EQ(weak.use_count(), 0U);
  EXPECT_EQ(totals().sharers, 1U);
}

// Broken by: `arm` that cannot be done twice on one storage; contexts that are freed twice; a flag that stays cleared.
TEST_P(WriteHook, ArmedAgainAndAgain) {
  const auto source = numbers(100);
  for (int i = 0; i < 5; ++i) {
    const auto copy = clone(source);
    EXPECT_TRUE(same_memory(source, copy));
    static_cast<float*>(storage_impl(source).mutable_data())[0] = static_cast<float>(i);
    EXPECT_EQ(source[0].item<float>(), static_cast<float>(i));
    EXPECT_FALSE(same_memory(source, copy));
  }
}

// Broken by: a hook that stays behind when the storage was written by an operator, or has other memory.
TEST_P(WriteHook, WhatWasWrittenOrResizedIsSharedAgain) {
  const auto source = numbers(100);
  const auto written = clone(source);
  written.add_(1);
  EXPECT_EQ(refusal(written), Reason::none);
  const auto grown = clone(source);
  grown.resize_({200});
  EXPECT_EQ(refusal(grown), Reason::none);
  const auto emptied = clone(source);
  auto& storage = storage_impl(emptied);
  storage.set_data_ptr_noswap(c10::GetCPUAllocator()->allocate(400));
  EXPECT_EQ(refusal(emptied), Reason::none);
}

// Broken by: `deleter_of` that does not look below the hook's own wrapping: what was stolen would be foreign memory.
TEST_P(WriteHook, StolenMemoryIsSharedAgain) {
  auto source = numbers(100);
  for (int i = 0; i < 3; ++i) {
    const auto copy = clone(source);
    source = copy;
    storage_impl(source).mutable_data();
    EXPECT_FALSE(shared(source));
    EXPECT_EQ(refusal(source), Reason::none);
  }
}

// A resize allocates for itself, and frees what the storage held.
// Broken by: `gave_up` that goes by the number of bytes (the storage is handed the memory that the resize then frees).
TEST_P(WriteHook, ResizedToTheSameSize) {
  for (const bool of_the_source : {false, true}) {
    for (const bool written : {false, true}) {
      const auto source = numbers(100);
      const auto copy = clone(source);
      const auto& resized = of_the_source ? source : copy;
      const auto& other = of_the_source ? copy : source;
      if (written) storage_impl(resized).mutable_data();
      const auto* before = resized.const_data_ptr();
      at::native::resize_bytes_cpu(&storage_impl(resized), 400);
      EXPECT_NE(resized.const_data_ptr(), before);
      EXPECT_FALSE(shared(resized));
      EXPECT_TRUE(same_bits(resized, numbers(100)));
      resized.fill_(1);
      EXPECT_EQ(resized.sum().item<float>(), 100);
      EXPECT_TRUE(same_bits(other, numbers(100)));
      EXPECT_EQ(totals().sharers, 1U);
      EXPECT_EQ(refusal(resized), Reason::none);
    }
  }
}

// Broken by: a hook that frees its context whoever holds it (the holder reads freed memory).
TEST_P(WriteHook, MemoryIsTakenOutAndOutlivesTheStorage) {
  for (const auto& [written, remembered] : {std::pair(false, false), {true, false}, {true, true}}) {
    // The last sharer: unless its cause is remembered, it is gone when it dies.
    auto copy = clone(numbers(100));
    if (written) storage_impl(copy).mutable_data();
    auto taken = storage_impl(copy).set_data_ptr(c10::GetCPUAllocator()->allocate(400));
    const auto* address = taken.get();
    EXPECT_EQ(totals().sharers, 0U);
    if (!remembered) forget_last_events();
    copy.reset();
    const auto other = numbers(100).mul(2);
    const auto holder = at::zeros({100});
    storage_impl(holder).set_data_ptr_noswap(std::move(taken));
    EXPECT_TRUE(same_bits(holder, numbers(100)));
    const auto* now = storage_impl(holder).mutable_data();
    EXPECT_TRUE(remembered || now == address);
    EXPECT_TRUE(same_bits(holder, numbers(100)));
    holder.fill_(1);
    EXPECT_TRUE(same_bits(other, numbers(100).mul(2)));
  }
}

// Broken by: `sweep` and `release_resources` that leave the memory of a first write to the storage's struct.
TEST_P(WriteHook, MemoryIsFreedWithItsStorage) {
  const auto source = numbers(100);
  const auto meter = std::make_shared<Meter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
  for (const bool emptied : {false, true}) {
    auto copy = clone(source);
    storage_impl(copy).mutable_data();
    EXPECT_EQ(meter->held(), 400);
    const c10::weak_intrusive_ptr<c10::StorageImpl> weak(
        copy.unsafeGetTensorImpl()->unsafe_storage().getWeakStorageImpl());
    if (emptied) {
      at::native::resize_bytes_cpu(&storage_impl(copy), 0);
      EXPECT_EQ(totals().sharers, 1U);
    } else {
      copy.reset();
    }
    EXPECT_EQ(meter->held(), 0);
  }
}

// Broken by: a first write that leaves the storage looking armed for good (each operator would take the long way).
TEST_P(WriteHook, LooksArmedNoLongerThanUntilTheNextWrite) {
  const auto source = numbers(100);
  const auto by_operator = clone(source);
  EXPECT_TRUE(write_hook::looks_armed(storage_impl(by_operator)));
  by_operator.add_(1);
  EXPECT_FALSE(write_hook::looks_armed(storage_impl(by_operator)));
  const auto by_pointer = clone(source);
  storage_impl(by_pointer).mutable_data();
  by_pointer.add_(1);
  EXPECT_FALSE(write_hook::looks_armed(storage_impl(by_pointer)));
}

class WriteHookRaces : public WriteHook {};
INSTANTIATE_TEST_SUITE_P(Accompanied, WriteHookRaces, ::testing::Values(true));

// What torch does for a racing thread, step by step: between its answer and the exchange the storage may not be armed,
// as the exchange could put the memory of a block back.
// Broken by: `readiness` that is always ready; an answer that is not what the storage holds.
TEST_P(WriteHookRaces, AStorageIsNotArmedWhileAThreadIsInTheHook) {
  if (!write_hook::racing_readers_break) GTEST_SKIP() << "only the hook on torch's copy-on-write has this exchange";
  const auto source = numbers(100);
  const auto copy = clone(source);
  auto& storage = storage_impl(copy);
  storage.mutable_data();
  {
    auto* context = storage._mutable_data_ptr_no_checks().cast_context<c10::impl::cow::COWDeleterContext>(
        &c10::impl::cow::cow_deleter);
    ASSERT_NE(context, nullptr);
    const auto inside = context->decrement_refcount();
    auto answer = storage.allocator()->clone(storage.data(), 400);
    EXPECT_EQ(answer.get(), storage.data());
    EXPECT_EQ(answer.release_context(), context);
    EXPECT_EQ(refusal(copy), Reason::hook);
  }
  EXPECT_EQ(refusal(copy), Reason::none);
}

// Many threads ask one storage for a pointer at once: one materialization, one address. Late ones must neither see the
// block nor take the memory of the first away, and the storage must die in peace.
// Broken by: no second look under the lock (`claim` that does not wait); fresh memory for the late ones; memory that
// never lingers (torch throws in one of some hundred rounds).
TEST_P(WriteHookRaces, LateSecondWriters) {
  for (int round = 0; round < 200; ++round) {
    const auto source = numbers(1000);
    const auto copy = clone(source);
    constexpr int count = 4;
    std::array<void*, count> pointers{};
    std::atomic<int> gate{count};
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) {
      threads.emplace_back([&, i] {
        --gate;
        while (gate > 0) std::this_thread::yield();
        auto* data = static_cast<float*>(storage_impl(copy).mutable_data());
        data[i] = -static_cast<float>(i);
        pointers[i] = data;
      });
    }
    for (auto& thread : threads) thread.join();
    for (auto* pointer : pointers) EXPECT_EQ(pointer, pointers[0]);
    for (int i = 0; i < count; ++i) EXPECT_EQ(copy[i].item<float>(), -static_cast<float>(i));
    EXPECT_TRUE(same_bits(source, numbers(1000)));
    EXPECT_EQ(materializations(), Lines{"copy a raw pointer 4000"});
  }
}

// A thread that came second leaves the hook after the first: a storage that is shared again in between must not lose
// its new hook; when all have left, it is shared again. Broken by: `readiness` that is always ready; late clears that
// are never over.
TEST_P(WriteHookRaces, LateSecondWriterThenClone) {
  for (int round = 0; round < 200; ++round) {
    const auto source = numbers(1000);
    const auto copy = clone(source);
    std::atomic<int> gate{3};
    const auto start = [&] {
      --gate;
      while (gate > 0) std::this_thread::yield();
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        start();
        storage_impl(copy).mutable_data();
      });
    }
    at::Tensor grandchild;
    threads.emplace_back([&] {
      start();
      SharingCall call;
      Reason reason;
      grandchild = clone(call, copy, reason);
      for (const auto& probation : call.probations()) SharingCall::confirm(*probation);
    });
    for (auto& thread : threads) thread.join();
    static_cast<float*>(storage_impl(copy).mutable_data())[0] = -1;
    if (grandchild.defined()) {
      EXPECT_TRUE(same_bits(grandchild, numbers(1000))) << "round " << round;
    }
    EXPECT_TRUE(same_bits(source, numbers(1000)));
    materializations();
  }
}

}  // namespace
