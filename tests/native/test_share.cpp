// SPDX-License-Identifier: Apache-2.0

// Sharing: what a clone is made of, who may be shared, and how a share is taken back.

#include "core/accounting.h"
#include "core/allocate.h"
#include "core/barrier.h"
#include "core/materialize.h"
#include "core/retire.h"
#include "family.h"
#include "hostile_allocator.h"

#include <ATen/ops/_lazy_clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <optional>

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
TEST_F(Share, ASpanOfASpan_I4) {
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

// Broken by: a call that answers for the blocks of others, or not for its own until they are confirmed.
TEST_F(Share, ACallAnswersForTheBlocksThatItMade) {
  const auto source = numbers(100), stranger = numbers(100);
  SharingCall call;
  Reason reason;
  EXPECT_FALSE(call.answers_for(storage_impl(source)));
  const auto copy = clone(call, source, reason);
  EXPECT_TRUE(call.answers_for(storage_impl(source)));
  EXPECT_TRUE(call.answers_for(storage_impl(copy)));
  EXPECT_FALSE(call.answers_for(storage_impl(stranger)));
  EXPECT_FALSE(SharingCall().answers_for(storage_impl(source)));
  SharingCall::confirm(*call.probations().front());
  EXPECT_FALSE(call.answers_for(storage_impl(source)));
}

// Broken by: `refusal_reason` that answers Reason::none, or the tests in `share` before it left out.
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
  SharingCall::confirm(*first.probations().front());
  EXPECT_EQ(refusal(source), Reason::none);
}

// Broken by: `confirm` that looks for the block at the source, which has left it.
TEST_F(Share, ProbationEndsAlthoughTheSourceWasWrittenMeanwhile) {
  const auto source = numbers(100);
  at::Tensor copy;
  for (int i = 0; i < 2; ++i) {
    SharingCall call;
    Reason reason;
    copy = clone(call, source, reason);
    source.fill_(i);
    SharingCall::confirm(*call.probations().front());
  }
  EXPECT_EQ(refusal(copy), Reason::none);
}

// Broken by: `take_back` that forgets a clone, or that copies the source and leaves its address.
TEST_F(Share, ATakenBackShareIsAsIfItHadNotBeen) {
  const auto source = numbers(100);
  const auto* address = source.const_data_ptr();
  SharingCall call;
  Reason reason;
  const auto whole = clone(call, source, reason);
  const auto part = clone(call, source.narrow(0, 10, 20), reason);
  ASSERT_EQ(call.probations().size(), 1U);
  EXPECT_EQ(call.probations().front()->clones.size(), 2U);
  SharingCall::take_back(*call.probations().front(), Reason::outside);
  EXPECT_EQ(source.const_data_ptr(), address);
  for (const auto& tensor : {source, whole, part}) EXPECT_FALSE(shared(tensor));
  EXPECT_TRUE(same_bits(whole, source));
  EXPECT_TRUE(same_bits(part, deep_copy(source.narrow(0, 10, 20))));
  const auto recorded = events(true);
  ASSERT_EQ(recorded.size(), 2U);
  for (const auto& event : recorded) {
    EXPECT_EQ(event.way, Way::eager);
    EXPECT_EQ(event.reason, Reason::outside);
  }
}

// The source may leave the block before the call ends: a `__deepcopy__` method that counts its calls in a buffer does
// so. Broken by: a probation that is ended through the source alone: the clones are refused ever after.
TEST_F(Share, ProbationEndsThoughTheSourceHasLeft) {
  const auto source = numbers(100);
  SharingCall call;
  Reason reason;
  const auto copy = clone(call, source, reason);
  source.fill_(7);
  SharingCall::confirm(*call.probations().front());
  EXPECT_EQ(refusal(copy), Reason::none);
  EXPECT_TRUE(same_bits(copy, numbers(100)));
}

// The call could not take its share back, and the next call lies at the same address.
// Broken by: a probation that never ends.
TEST_F(Share, ProbationOutlivesACallThatHadNoMemory) {
  const auto source = numbers(100);
  const auto* address = source.const_data_ptr();
  std::optional<SharingCall> call(std::in_place);
  Reason reason;
  {
    const auto copy = clone(*call, source, reason);
    fail_allocation(0);
    call.emplace();
    fail_allocation(-1);
    EXPECT_TRUE(shared(copy)) << "the second allocation was not to fail";
    EXPECT_FALSE(clone(*call, source, reason).defined());
    EXPECT_EQ(reason, Reason::outside);
    EXPECT_FALSE(clone(*call, copy, reason).defined());
  }
  const auto again = clone(*call, source, reason);
  ASSERT_TRUE(again.defined());
  ASSERT_EQ(call->probations().size(), 1U) << "a call that looks again";
  SharingCall::take_back(*call->probations().front(), Reason::outside);
  EXPECT_EQ(source.const_data_ptr(), address);
  EXPECT_EQ(refusal(source), Reason::none);
}

// A child of fork runs without the threads that were in a call. A new call may lie where theirs did.
// Broken by: a probation that knows its call by address: the clone would be shared, and nobody would answer for it.
TEST_F(Share, ACallThatIsGoneIsNotMistakenForAnother) {
  const auto source = numbers(100);
  Reason reason;
  alignas(SharingCall) std::byte place[sizeof(SharingCall)];
  auto* gone = new (place) SharingCall();
  const auto copy = clone(*gone, source, reason);
  ASSERT_TRUE(copy.defined());
  std::byte content[sizeof(SharingCall)];
  std::memcpy(content, place, sizeof(place));
  {
    auto* other = new (place) SharingCall();
    EXPECT_FALSE(clone(*other, source, reason).defined());
    EXPECT_EQ(reason, Reason::writing);
    EXPECT_FALSE(other->answers_for(storage_impl(source)));
    other->~SharingCall();
  }
  std::memcpy(place, content, sizeof(place));
  SharingCall::confirm(*gone->probations().front());
  gone->~SharingCall();
}

// A clone that was written before the share is taken back still counts as a reader in company.
// Broken by: `take_back` that lets readers keep the source from its own memory: who holds its address is cut off.
TEST_F(Share, ATakenBackSourceStaysWhoeverReads) {
  set_other_threads_probe([] { return true; });
  const auto source = numbers(100);
  const auto* address = source.const_data_ptr();
  SharingCall call;
  Reason reason;
  const auto copy = clone(call, source, reason);
  copy.fill_(7);
  SharingCall::take_back(*call.probations().front(), Reason::outside);
  EXPECT_EQ(source.const_data_ptr(), address);
  EXPECT_TRUE(same_bits(source, numbers(100)));
}

// Broken by: a span that is trusted although the storage may have been resized since (I4).
TEST_F(Share, ASpanBeyondTheStorageIsRefused_I4) {
  const auto source = numbers(100);
  SharingCall call;
  Reason reason;
  EXPECT_FALSE(call.share(storage_impl(source), 0, 404, reason));
  EXPECT_EQ(reason, Reason::writing);
  EXPECT_FALSE(shared(source));
}

// Broken by: `share` that waits for a claim of its own thread, for ever.
TEST_F(Share, WithinAMaterializationOfTheSameThread) {
  HostileAllocator allocator;
  const auto source = numbers(100);
  storage_impl(source).set_allocator(&allocator);
  const auto copy = clone(source);
  Reason reason = Reason::none;
  allocator.during = [&] {
    SharingCall call;
    EXPECT_FALSE(clone(call, source, reason).defined());
  };
  source.fill_(7);
  EXPECT_EQ(reason, Reason::writing);
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
