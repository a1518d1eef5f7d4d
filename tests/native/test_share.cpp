// Sharing: what a clone is made of, who may be shared, and how a share is taken back.

#include "core/barrier.h"
#include "core/materialize.h"
#include "family.h"

#include <ATen/ops/_lazy_clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Share : public EngineTest {};

// Broken by: a `share` that copies, or that gives the source another address.
TEST_F(Share, ReadsTheSourcesMemory) {
  const auto source = numbers(1000);
  const auto* address = source.const_data_ptr();
  const auto copy = clone(source);
  EXPECT_EQ(source.const_data_ptr(), address) << "pointers that exist must stay valid";
  EXPECT_TRUE(same_memory(source, copy));
  EXPECT_NE(&storage_impl(source), &storage_impl(copy));
  EXPECT_TRUE(same_bits(source, copy));
  const auto sum = totals();
  EXPECT_EQ(sum.blocks, 1U);
  EXPECT_EQ(sum.sharers, 2U);
  EXPECT_EQ(sum.unique_bytes, 4000U);
  EXPECT_EQ(sum.logical_bytes, 8000U);
  EXPECT_TRUE(events(true).empty());
}

// Broken by: a new block for a storage that is a sharer already.
TEST_F(Share, AClonesCloneJoinsTheBlock) {
  const auto source = numbers(100);
  const auto child = clone(source);
  const auto grandchild = clone(child);
  EXPECT_TRUE(same_memory(source, grandchild));
  EXPECT_EQ(usage(storage_impl(grandchild)).block, usage(storage_impl(source)).block);
  EXPECT_EQ(usage(storage_impl(source)).block_sharers, 3U);
}

// Broken by: `new_sharer` without `origin->offset`; the whole block's size for a span.
TEST_F(Share, ASpanOfASpan) {
  const auto flat = numbers(100);
  const auto span = clone(flat.narrow(0, 20, 50));
  const auto inner = clone(span.narrow(0, 10, 5));
  EXPECT_TRUE(same_bits(inner, deep_copy(flat.narrow(0, 30, 5))));
  EXPECT_EQ(storage_impl(span).nbytes(), 200U);
  EXPECT_EQ(storage_impl(inner).nbytes(), 20U);
  EXPECT_EQ(usage(storage_impl(inner)).block_bytes, 400U);
  EXPECT_EQ(totals().logical_bytes, 620U);
  EXPECT_EQ(totals().unique_bytes, 400U);
}

// Broken by: a block that dies with the storage that brought the memory.
TEST_F(Share, TheSourceMayGoFirst) {
  auto source = numbers(100);
  const auto expected = deep_copy(source);
  const auto copy = clone(source);
  source.reset();
  EXPECT_TRUE(same_bits(copy, expected));
  EXPECT_EQ(totals().sharers, 1U);
}

// Broken by: a sharer that outlives its storage (no `dropped`).
TEST_F(Share, DroppedClonesLeaveTheBlock) {
  const auto source = numbers(100);
  auto copy = clone(source);
  EXPECT_EQ(totals().sharers, 2U);
  copy.reset();
  EXPECT_EQ(totals().sharers, 1U);
}

// Broken by: a call that meets a tensor twice.
TEST_F(Share, MeetsEachTensorOnce) {
  const auto source = numbers(100);
  SharingCall call;
  Reason reason;
  const auto copy = clone(call, source, reason);
  call.meet(*source.unsafeGetTensorImpl());
  EXPECT_EQ(call.met(storage_impl(source)).size(), 1U);
  const auto view = source.view({10, 10});
  call.meet(*view.unsafeGetTensorImpl());
  EXPECT_EQ(call.met(storage_impl(source)).size(), 2U);
  EXPECT_TRUE(call.met(storage_impl(copy)).empty());
  const auto stranger = numbers(100);
  call.meet(*stranger.unsafeGetTensorImpl());
  EXPECT_TRUE(call.met(storage_impl(stranger)).empty());
  SharingCall::confirm(call.made().front());
}

// Broken by: `obstacle` that answers Reason::none, or the tests in `share` before it left out.
TEST_F(Share, RefusesWhatCannotBeShownToBeSafe) {
  std::vector<float> foreign(100);
  EXPECT_EQ(refusal(at::from_blob(foreign.data(), {100})), Reason::foreign);
  EXPECT_EQ(refusal(at::empty({100}, at::kMeta)), Reason::device);
  EXPECT_EQ(refusal(at::empty({0})), Reason::tiny);

  const auto looked_into = numbers(100);
  storage_impl(looked_into).set_resizable(false);
  EXPECT_EQ(refusal(looked_into), Reason::none) << "not resizable, but nobody else refers to it";
  const auto loaded = numbers(100);
  const auto array = loaded.view({10, 10});
  storage_impl(loaded).set_resizable(false);
  EXPECT_EQ(refusal(loaded), Reason::numpy);

  const auto lazy = numbers(100);
  const auto lazily_cloned = at::_lazy_clone(lazy);
  EXPECT_EQ(refusal(lazy), Reason::hook);
  EXPECT_EQ(refusal(lazily_cloned), Reason::hook);
}

// Broken by: `bytes <= tiny_bytes`; `bytes < tiny_bytes` left out.
TEST_F(Share, TinyIsBelowTheLimit) {
  EXPECT_EQ(set_tiny_bytes(400), 0U);
  EXPECT_EQ(refusal(numbers(99)), Reason::tiny);
  EXPECT_EQ(refusal(numbers(100)), Reason::none);
  EXPECT_EQ(set_tiny_bytes(0), 400U);
}

// Broken by: probation that other calls do not look at; `confirm` that does nothing.
TEST_F(Share, ABlockOnProbationIsNotSharedByOthers) {
  const auto source = numbers(100);
  SharingCall first;
  Reason reason;
  const auto copy = clone(first, source, reason);
  ASSERT_TRUE(copy.defined());
  EXPECT_EQ(refusal(source), Reason::writing);
  EXPECT_EQ(refusal(copy), Reason::writing);
  const auto tied = clone(first, source, reason);
  EXPECT_TRUE(tied.defined()) << "its own call goes on";
  SharingCall::confirm(first.made().front());
  EXPECT_EQ(refusal(source), Reason::none);
}

// Broken by: `take_back` that forgets a clone, or that copies the source and leaves its address.
TEST_F(Share, ATakenBackShareIsAsIfItHadNotBeen) {
  const auto source = numbers(100);
  const auto* address = source.const_data_ptr();
  SharingCall call;
  Reason reason;
  const auto whole = clone(call, source, reason);
  const auto part = clone(call, source.narrow(0, 10, 20), reason);
  ASSERT_EQ(call.made().size(), 1U);
  EXPECT_EQ(call.made().front().clones.size(), 2U);
  SharingCall::take_back(call.made().front(), Reason::outside);
  EXPECT_EQ(source.const_data_ptr(), address);
  for (const auto& tensor : {source, whole, part}) EXPECT_FALSE(shared(tensor));
  EXPECT_TRUE(same_bits(whole, source));
  EXPECT_TRUE(same_bits(part, deep_copy(source.narrow(0, 10, 20))));
  const auto recorded = events(true);
  ASSERT_EQ(recorded.size(), 2U);
  for (const auto& event : recorded) {
    EXPECT_EQ(event.kind, Kind::eager);
    EXPECT_EQ(event.reason, Reason::outside);
  }
}

// Broken by: `state.add` for every share; an event per call.
TEST_F(Share, ManyInOneCall) {
  std::vector<at::Tensor> sources;
  for (int i = 1; i <= 20; ++i) sources.push_back(numbers(10 * i));
  const auto copies = clone(sources);
  for (std::size_t i = 0; i < sources.size(); ++i) EXPECT_TRUE(same_memory(sources[i], copies[i]));
  EXPECT_EQ(totals().blocks, 20U);
}

}  // namespace
