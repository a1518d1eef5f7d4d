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

namespace {

using namespace torchcow;
using namespace torchcow::testing;

using Lines = std::vector<std::string>;

class ReadingTest : public EngineTest {};

c10::intrusive_ptr<c10::StorageImpl> held(const at::Tensor& tensor) {
  return c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&storage_impl(tensor));
}

void write(const at::Tensor& tensor) { materialize({{&storage_impl(tensor)}}, {"a test"}); }

// Broken by: hooks that are not suspended, or not resumed.
TEST_F(ReadingTest, PointersUnshareOutsideOnly) {
  const auto source = numbers(1000), copy = clone(source);
  {
    Reading reading({&storage_impl(copy)}, false);
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
  Reading first({&storage_impl(copy)}, false);
  { Reading second({&storage_impl(copy)}, false); }
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
  const Reading reading({&storage_impl(source), &storage_impl(copies[0]), &storage_impl(copies[1])}, false);
  EXPECT_EQ(reading.covered().size(), 1U);
}

// Broken by: a `reseat` that leaves the hook suspended. A thread had read the hook before the scope began; when it
// returns, torch clears whatever hook is there, so nobody may arm the storage until then.
TEST_F(ReadingTest, AThreadInTheHookKeepsTheStorageFromBeingArmed) {
  if (std::string(write_hook::name) != "materializer") GTEST_SKIP() << "torch 2.11 and 2.12 clear no hook";
  const auto source = numbers(1000), copy = clone(source);
  Reading reading({&storage_impl(copy)}, false);
  EXPECT_TRUE(first_write(&storage_impl(copy)));  // what torch calls
  EXPECT_EQ(write_hook::readiness(storage_impl(copy)), write_hook::Readiness::busy);
  storage_impl(copy).mutable_data();  // comes late, and torch clears
}

TEST_F(ReadingTest, AWriteInTheScopeEndsIt) {
  const auto source = numbers(1000), copy = clone(source);
  Reading reading({&storage_impl(copy)}, false);
  write(copy);
  const auto again = clone(copy);
  EXPECT_FALSE(reading.end().at(0).stayed);
  storage_impl(copy).mutable_data();
  EXPECT_FALSE(same_memory(copy, again));
}

// Broken by: `FormerSharer::pointers` left out: the block is freed under a pointer that was handed out.
TEST_F(ReadingTest, PointersStayValidAfterAWriteInTheScope) {
  const auto copy = clone(numbers(1000));  // the last sharer would steal
  {
    const auto sibling = clone(copy);
    Reading reading({&storage_impl(copy)}, false);
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
  Reading first({&storage_impl(copy)}, false), second({&storage_impl(copy)}, false);
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
  Reading reading({&storage_impl(joiner)}, false);
  EXPECT_TRUE(join(storage_impl(joiner), storage_impl(clones[1]), storage_impl(clones[0])));
  storage_impl(joiner).mutable_data();
  EXPECT_TRUE(same_memory(joiner, keeper));
  EXPECT_FALSE(reading.end().at(0).stayed);
  static_cast<float*>(storage_impl(joiner).mutable_data())[0] = -1;
  EXPECT_TRUE(same_bits(keeper, expected));
}

TEST_F(ReadingTest, NumpyIsSeenByItsTraceAlone) {
  const auto source = numbers(1000), copy = clone(source), loaded = numbers(500);
  storage_impl(loaded).set_resizable(false);  // what torch.load leaves
  const auto other = clone(loaded);
  Reading reading({&storage_impl(copy)}, false), of_the_loaded({&storage_impl(loaded)}, false);
  storage_impl(copy).set_resizable(false);  // what numpy() does
  EXPECT_TRUE(reading.end().at(0).seen_by_numpy);
  EXPECT_FALSE(of_the_loaded.end().at(0).seen_by_numpy);
  EXPECT_FALSE(storage_impl(loaded).resizable()) << "as it was";
}

// Broken by: a scope that takes away the trace that NumPy left in another.
TEST_F(ReadingTest, TheLastOfOverlappingScopesAsksForNumpy) {
  const auto source = numbers(1000), copy = clone(source);
  Reading first({&storage_impl(copy)}, false);
  storage_impl(copy).set_resizable(false);  // what numpy() does
  Reading second({&storage_impl(copy)}, false);
  EXPECT_TRUE(first.end().at(0).goes_on);
  const auto outcome = second.end().at(0);
  EXPECT_FALSE(outcome.goes_on);
  EXPECT_TRUE(outcome.seen_by_numpy);
}

// Broken by: siblings that are not moved, or moved without their offset; an owner that moves.
TEST_F(ReadingTest, IsolateGivesTheMemoryToOneAndACopyToTheOthers) {
  const auto source = numbers(1000);
  const auto copy = clone(source), span = clone(source.narrow(0, 100, 50));
  const auto expected = deep_copy(source);
  Reading reading({&storage_impl(copy)}, true);
  auto* address = storage_impl(copy).mutable_data();
  const auto outcome = reading.end().at(0);
  EXPECT_TRUE(outcome.stayed);
  EXPECT_FALSE(outcome.damaged);
  EXPECT_TRUE(isolate(outcome.block, {held(source), held(span)}, &storage_impl(copy)));
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
  Reading reading({&storage_impl(copy)}, false);
  const auto outcome = reading.end().at(0);
  EXPECT_FALSE(isolate(outcome.block, {held(source)}, &storage_impl(copy)));
  EXPECT_TRUE(shared(copy) && shared(unknown));
}

// Broken by: memory that is given to one storage while pointers of another look into it, in a scope that goes on.
TEST_F(ReadingTest, IsolateTellsWhenPointersOfAnotherScopeLookIntoTheMemory) {
  const auto source = numbers(1000), copy = clone(source);
  const auto expected = deep_copy(source);
  Reading outer({&storage_impl(source)}, false), inner({&storage_impl(copy)}, false);
  const auto* seen = static_cast<const float*>(storage_impl(source).mutable_data());
  const auto outcome = inner.end().at(0);
  EXPECT_FALSE(isolate(outcome.block, {held(source)}, &storage_impl(copy)));
  write(copy);
  static_cast<float*>(storage_impl(copy).mutable_data())[1] = -1;
  EXPECT_EQ(seen[1], expected[1].item<float>());
  EXPECT_TRUE(same_bits(source, expected));
  outer.end();
  EXPECT_TRUE(isolate(outcome.block, {held(source)}, &storage_impl(copy)));
}

TEST_F(ReadingTest, IsolateWithoutMemoryChangesNothing) {
  const auto source = numbers(1000), copy = clone(source);
  Reading reading({&storage_impl(copy)}, false);
  const auto outcome = reading.end().at(0);
  fail_allocation(0);
  EXPECT_THROW(isolate(outcome.block, {held(source)}, &storage_impl(copy)), c10::Error);
  EXPECT_TRUE(same_memory(source, copy));
  EXPECT_EQ(totals().sharers, 2U);
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
      for (int i = 0; i < 20; ++i) Reading({&storage_impl(copy)}, false);
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
