// SPDX-License-Identifier: Apache-2.0

// Reading: raw pointers un-share nothing in the scope, and everything again after it.

#include "core/reading.h"

#include "core/accounting.h"
#include "core/allocate.h"
#include "core/materialize.h"
#include "core/reshare.h"
#include "core/retire.h"
#include "core/write_hook.h"
#include "family.h"

#include <atomic>
#include <thread>
#include <vector>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

using Lines = std::vector<std::string>;

class ReadingTest : public EngineTest {};

c10::intrusive_ptr<c10::StorageImpl> held(const at::Tensor& tensor) {
  return c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&storage_impl(tensor));
}

/// A scope over storages, whose pointers end with it unless the test says otherwise.
class Scope {
 public:
  explicit Scope(const std::vector<at::Tensor>& tensors) {
    std::vector<c10::StorageImpl*> storages;
    for (const auto& tensor : tensors) storages.push_back(&storage_impl(tensor));
    covered_ = suspend_hooks(storages);
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope() {
    if (!ended_) finish(false);
  }

  std::vector<const c10::StorageImpl*> covered() const {
    std::vector<const c10::StorageImpl*> storages;
    for (const auto& covered : covered_) storages.push_back(covered.storage._unsafe_get_target());
    return storages;
  }

  /// What became of the first storage.
  const CoveredStorage& end(bool outlived = false) {
    finish(outlived);
    return covered_.at(0);
  }

 private:
  void finish(bool outlived) {
    ended_ = true;
    resume_hooks(covered_);
    for (auto& covered : covered_) {
      covered.held.reset();
      if (!covered.still_covered) set_outlived(*covered.exposure, outlived);
    }
  }

  std::vector<CoveredStorage> covered_;
  bool ended_ = false;
};

void write(const at::Tensor& tensor) { materialize({{&storage_impl(tensor)}}, {"a test"}); }

// Broken by: hooks that are not suspended, or not resumed.
TEST_F(ReadingTest, PointersUnshareOutsideOnly) {
  const auto source = numbers(1000), copy = clone(source);
  {
    Scope reading({copy});
    EXPECT_EQ(storage_impl(copy).mutable_data(), storage_impl(source).data());
    storage_impl(copy).mutable_data();
    EXPECT_TRUE(write_hook::looks_armed(storage_impl(copy)));
    EXPECT_EQ(reading.covered(), (std::vector<const c10::StorageImpl*>{&storage_impl(copy)}));
  }
  EXPECT_EQ(materializations(), Lines{});
  storage_impl(copy).mutable_data();
  EXPECT_EQ(materializations(), Lines{"copy a raw pointer 4000"});
}

// Broken by: scopes that are not counted.
TEST_F(ReadingTest, ScopesOverlap) {
  const auto source = numbers(1000), copy = clone(source);
  Scope first({copy});
  { Scope second({copy}); }
  storage_impl(copy).mutable_data();
  EXPECT_TRUE(shared(copy));
  first.end();
  storage_impl(copy).mutable_data();
  EXPECT_FALSE(shared(copy));
}

// Broken by: overlapping storages that are suspended both: two tensors show one address.
TEST_F(ReadingTest, OneStorageForEachAddress) {
  const auto source = numbers(1000);
  const auto copies = clone({source, source});
  const Scope reading({source, copies[0], copies[1]});
  EXPECT_EQ(reading.covered().size(), 1U);
}

// Broken by: a `reseat` that leaves the hook suspended. A thread had read the hook before the scope began; when it
// returns, torch clears whatever hook is there, so nobody may arm the storage until then.
TEST_F(ReadingTest, AThreadInTheHookKeepsTheStorageFromBeingArmed) {
  if (std::string(write_hook::name) != "materializer") GTEST_SKIP() << "torch 2.11 and 2.12 clear no hook";
  const auto source = numbers(1000), copy = clone(source);
  Scope reading({copy});
  EXPECT_TRUE(first_write(&storage_impl(copy)));  // what torch calls
  EXPECT_EQ(write_hook::readiness(storage_impl(copy)), write_hook::Readiness::busy);
  storage_impl(copy).mutable_data();  // comes late, and torch clears
}

TEST_F(ReadingTest, AWriteInTheScopeEndsIt) {
  const auto source = numbers(1000), copy = clone(source);
  Scope reading({copy});
  write(copy);
  const auto again = clone(copy);
  EXPECT_FALSE(reading.end().stayed);
  storage_impl(copy).mutable_data();
  EXPECT_FALSE(same_memory(copy, again));
}

// Broken by: `FormerSharer::exposure` left out: the block is freed under a pointer that was handed out.
TEST_F(ReadingTest, PointersStayValidAfterAWriteInTheScope) {
  const auto copy = clone(numbers(1000));  // the last sharer would steal
  {
    const auto sibling = clone(copy);
    Scope reading({copy});
    storage_impl(copy).mutable_data();
    write(copy);
    materializations();
    write(sibling);
    EXPECT_EQ(materializations(), Lines{"copy a test 4000"}) << "a steal would let the thief free what is looked into";
    EXPECT_EQ(totals().retired_blocks, 1U);
    reading.end();
  }
  EXPECT_EQ(totals().retired_blocks, 0U);
}

// Broken by: pointers that are forgotten when the first of two scopes ends.
TEST_F(ReadingTest, PointersOfAScopeThatGoesOnStayValid) {
  const auto source = numbers(1000), copy = clone(source);
  Scope first({copy}), second({copy});
  write(copy);
  write(source);
  first.end();
  EXPECT_EQ(totals().retired_blocks, 1U);
  second.end();
  EXPECT_EQ(totals().retired_blocks, 0U);
}

// Broken by: a `relocate` that forgets the scopes: the hook would never be heard again.
TEST_F(ReadingTest, AStorageThatJoinsAnotherBlockStaysInTheScope) {
  const auto keeper = numbers(1000), joiner = deep_copy(keeper), expected = deep_copy(keeper);
  const auto clones = clone({keeper, joiner});
  Scope reading({joiner});
  EXPECT_TRUE(join(storage_impl(joiner), storage_impl(clones[1]), storage_impl(clones[0])));
  storage_impl(joiner).mutable_data();
  EXPECT_TRUE(same_memory(joiner, keeper));
  EXPECT_FALSE(reading.end().stayed);
  static_cast<float*>(storage_impl(joiner).mutable_data())[0] = -1;
  EXPECT_TRUE(same_bits(keeper, expected));
}

TEST_F(ReadingTest, NumpyIsSeenByItsTraceAlone) {
  const auto source = numbers(1000), copy = clone(source), loaded = numbers(500);
  storage_impl(loaded).set_resizable(false);  // what torch.load leaves
  const auto other = clone(loaded);
  Scope reading({copy}), of_the_loaded({loaded});
  storage_impl(copy).set_resizable(false);  // what numpy() does
  EXPECT_TRUE(reading.end().seen_by_numpy);
  EXPECT_FALSE(of_the_loaded.end().seen_by_numpy);
  EXPECT_FALSE(storage_impl(loaded).resizable()) << "as it was";
}

// Broken by: a scope that takes away the trace that NumPy left in another.
TEST_F(ReadingTest, TheLastOfOverlappingScopesAsksForNumpy) {
  const auto source = numbers(1000), copy = clone(source);
  Scope first({copy});
  storage_impl(copy).set_resizable(false);  // what numpy() does
  Scope second({copy});
  EXPECT_TRUE(first.end().still_covered);
  const auto& outcome = second.end();
  EXPECT_FALSE(outcome.still_covered);
  EXPECT_TRUE(outcome.seen_by_numpy);
}

// Broken by: siblings that are not moved, or moved without their offset; an owner that moves.
TEST_F(ReadingTest, IsolateGivesTheMemoryToOneAndACopyToTheOthers) {
  const auto source = numbers(1000);
  const auto copy = clone(source), span = clone(source.narrow(0, 100, 50));
  const auto expected = deep_copy(source);
  Scope reading({copy});
  auto* address = storage_impl(copy).mutable_data();
  const auto& outcome = reading.end();
  EXPECT_TRUE(outcome.stayed);
  EXPECT_TRUE(isolate(outcome, {held(source), held(span)}));
  EXPECT_FALSE(shared(copy));
  EXPECT_TRUE(shared(source) && shared(span));
  static_cast<float*>(address)[110] = -1;
  EXPECT_EQ(copy[110].item<float>(), -1);
  EXPECT_TRUE(same_bits(source, expected));
  EXPECT_TRUE(same_bits(span, deep_copy(expected.narrow(0, 100, 50))));
  EXPECT_EQ(totals().blocks, 1U);
  write(span);
  EXPECT_TRUE(same_bits(source, expected));
}

// Broken by: an answer that does not count who was left behind.
TEST_F(ReadingTest, IsolateTellsWhenOthersAreLeft) {
  const auto source = numbers(1000), copy = clone(source), unknown = clone(source);
  Scope reading({copy});
  const auto& outcome = reading.end();
  EXPECT_FALSE(isolate(outcome, {held(source)}));
  EXPECT_TRUE(shared(copy) && shared(unknown));
}

// Broken by: memory that is given to one storage while pointers of another look into it, in a scope that goes on.
TEST_F(ReadingTest, IsolateTellsWhenPointersOfAnotherScopeLookIntoTheMemory) {
  const auto source = numbers(1000), copy = clone(source);
  const auto expected = deep_copy(source);
  Scope outer({source}), inner({copy});
  const auto* seen = static_cast<const float*>(storage_impl(source).mutable_data());
  const auto& outcome = inner.end();
  EXPECT_FALSE(isolate(outcome, {held(source)}));
  write(copy);
  static_cast<float*>(storage_impl(copy).mutable_data())[1] = -1;
  EXPECT_EQ(seen[1], expected[1].item<float>());
  EXPECT_TRUE(same_bits(source, expected));
  outer.end();
  EXPECT_TRUE(isolate(outcome, {held(source)}));
}

TEST_F(ReadingTest, IsolateWithoutMemoryChangesNothing) {
  const auto source = numbers(1000), copy = clone(source);
  Scope reading({copy});
  const auto& outcome = reading.end();
  fail_allocation(0);
  EXPECT_THROW(isolate(outcome, {held(source)}), c10::Error);
  EXPECT_TRUE(same_memory(source, copy));
  EXPECT_EQ(totals().sharers, 2U);
}

// Broken by: an `isolate` that knows only the block of the beginning: the pointer would write what `keeper` reads.
TEST_F(ReadingTest, IsolateFollowsAStorageThatMovedInTheScope) {
  const auto keeper = numbers(1000), joiner = deep_copy(keeper), expected = deep_copy(keeper);
  const auto clones = clone({keeper, joiner});
  Scope reading({joiner});
  ASSERT_TRUE(join(storage_impl(joiner), storage_impl(clones[1]), storage_impl(clones[0])));
  auto* pointer = static_cast<float*>(storage_impl(joiner).mutable_data());
  EXPECT_TRUE(isolate(reading.end(true), {held(keeper), held(clones[0]), held(clones[1])}));
  pointer[0] = -1;
  EXPECT_EQ(joiner[0].item<float>(), -1);
  for (const auto& other : {keeper, clones[0], clones[1]}) EXPECT_TRUE(same_bits(other, expected));
}

// Broken by: a span that moves to a copy: the pointer looks into memory that is not the tensor's any more.
TEST_F(ReadingTest, IsolateLeavesASpanAtItsAddress) {
  const auto flat = numbers(1000), span = clone(flat.narrow(0, 100, 50));
  Scope reading({span});
  auto* pointer = static_cast<float*>(storage_impl(span).mutable_data());
  EXPECT_TRUE(isolate(reading.end(true), {held(flat)}));
  EXPECT_FALSE(shared(span));
  pointer[3] = -1;
  EXPECT_EQ(span[3].item<float>(), -1);
  EXPECT_TRUE(same_bits(flat, numbers(1000)));
  const auto again = clone(span);
  span.fill_(7);
  EXPECT_EQ(again[3].item<float>(), -1) << "memory that begins in the middle of an allocation shares like any other";
}

// Broken by: an isolation that copies although nothing else shares the block.
TEST_F(ReadingTest, IsolateCopiesNothingForNobody) {
  const auto copy = clone(numbers(1000));
  Scope reading({copy});
  fail_allocation(0);
  EXPECT_TRUE(isolate(reading.end(true), {}));
  EXPECT_FALSE(shared(copy));
}

// Broken by: `set_outlived` that says nothing: a block is freed under a pointer that outlives the scope.
TEST_F(ReadingTest, PointersThatOutliveTheScopeKeepTheBlock) {
  auto copy = clone(numbers(1000)), sibling = clone(copy);
  {
    Scope reading({copy});
    write(copy);
    reading.end(true);
  }
  sibling.reset();
  EXPECT_EQ(totals().retired_blocks, 1U);
  copy.reset();
  EXPECT_EQ(totals().retired_blocks, 0U);
}

// Broken by: a scope that takes the hook off while another thread is in it, and a share that arms it before torch has
// cleared it.
TEST_F(ReadingTest, ScopesRaceWithFirstWrites) {
  for (int round = 0; round < 300; ++round) {
    const auto source = numbers(1000);
    const auto expected = deep_copy(source);
    const auto copy = clone(source);
    std::atomic<bool> go{false};
    std::thread reader([&] {
      while (!go) continue;
      for (int i = 0; i < 20; ++i) Scope({copy});
    });
    std::thread writer([&] {
      while (!go) continue;
      write(copy);
    });
    go = true;
    reader.join();
    writer.join();
    ASSERT_FALSE(shared(copy));
    const auto again = clone(copy);
    static_cast<float*>(storage_impl(copy).mutable_data())[0] = -1;
    ASSERT_EQ(again[0].item<float>(), 1);
    ASSERT_TRUE(same_bits(source, expected));
  }
}

}  // namespace
