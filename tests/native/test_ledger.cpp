// The ledger: sums that add up, and a ring of events.

#include "core/ledger.h"

#include "core/engine_state.h"
#include "core/materialize.h"
#include "family.h"

#include <cmath>
#include <random>
#include <set>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Ledger : public EngineTest {};

/// Fair shares of the storages add up to the unique bytes, and uses to the logical bytes, whatever happened before.
void expect_adds_up(const std::vector<at::Tensor>& tensors) {
  double fair = 0;
  std::size_t logical = 0;
  std::size_t private_bytes = 0;
  std::set<const c10::StorageImpl*> seen;
  for (const auto& tensor : tensors) {
    if (!seen.insert(&storage_impl(tensor)).second) continue;
    const auto used = usage(storage_impl(tensor));
    logical += used.bytes;
    if (used.block == nullptr) {
      private_bytes += used.bytes;
    } else {
      fair += static_cast<double>(used.block_bytes) / static_cast<double>(used.block_sharers);
    }
  }
  const auto sum = totals();
  EXPECT_NEAR(fair, static_cast<double>(sum.unique_bytes), 1e-3);
  EXPECT_EQ(logical, sum.logical_bytes + private_bytes);
}

// Broken by: `sharer_count` or a block's place in the list that is wrong after any of clone, write and drop.
TEST_F(Ledger, FairSharesAddUp) {
  std::mt19937 random(0);
  std::vector<at::Tensor> tensors{numbers(100), numbers(200), numbers(300)};
  for (int step = 0; step < 500; ++step) {
    const auto victim = random() % tensors.size();
    switch (random() % 5) {
      case 0:
      case 1:
        tensors.push_back(clone(tensors[victim]));
        break;
      case 2:
        tensors.push_back(clone(tensors[victim].narrow(0, 0, tensors[victim].numel() / 2 + 1)));
        break;
      case 3:
        tensors[victim].add_(1);
        break;
      case 4:
        if (tensors.size() > 3) tensors.erase(tensors.begin() + static_cast<std::ptrdiff_t>(victim));
        break;
    }
    expect_adds_up(tensors);
    ASSERT_FALSE(HasFailure()) << "step " << step;
  }
}

// Broken by: a ring that grows without end; one that does not count what it forgets.
TEST_F(Ledger, OldEventsAreForgottenAndCounted) {
  const auto before = totals().forgotten_events;
  for (std::size_t i = 0; i < event_capacity + 3; ++i) {
    record(Kind::eager, Way::eager, Reason::tiny, "test", i, c10::kCPU);
  }
  EXPECT_EQ(totals().forgotten_events - before, 3U);
  const auto kept = events(true);
  ASSERT_EQ(kept.size(), event_capacity);
  EXPECT_EQ(kept.front().bytes, 3U);
  EXPECT_TRUE(events(false).empty());
}

// Broken by: a reason without a word or a sentence.
TEST_F(Ledger, EveryReasonHasAWordAndASentence) {
  std::set<std::string> words;
  for (int i = 1; i <= static_cast<int>(Reason::kind); ++i) {
    words.insert(to_string(static_cast<Reason>(i)));
    EXPECT_GT(std::string(explain(static_cast<Reason>(i))).size(), 10U);
  }
  EXPECT_EQ(words.size(), static_cast<std::size_t>(Reason::kind));
  EXPECT_EQ(words.count("?"), 0U);
}

// Broken by: `usage` of a storage that is no sharer.
TEST_F(Ledger, PrivateMemory) {
  const auto plain = numbers(100);
  const auto used = usage(storage_impl(plain));
  EXPECT_EQ(used.block, nullptr);
  EXPECT_EQ(used.bytes, 400U);
}

}  // namespace
