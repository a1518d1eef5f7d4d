// SPDX-License-Identifier: Apache-2.0
// Events: a ring that forgets and counts.

#include "core/events.h"

#include "core/accounting.h"
#include "family.h"

#include <set>
#include <string>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Events : public EngineTest {};

// Broken by: a ring that grows without end; one that does not count what it forgets.
TEST_F(Events, OldEventsAreForgottenAndCounted) {
  const auto before = totals().forgotten_events;
  for (std::size_t i = 0; i < event_capacity + 3; ++i) {
    record(Way::eager, Reason::tiny, "test", i, c10::kCPU);
  }
  EXPECT_EQ(totals().forgotten_events - before, 3U);
  const auto kept = events(true);
  ASSERT_EQ(kept.size(), event_capacity);
  EXPECT_EQ(kept.front().bytes, 3U);
  EXPECT_TRUE(events(false).empty());
}

// Broken by: a reason without a word or a sentence.
TEST_F(Events, EveryReasonHasAWordAndASentence) {
  std::set<std::string> words;
  for (int i = 1; i <= static_cast<int>(Reason::kind); ++i) {
    words.insert(to_string(static_cast<Reason>(i)));
    EXPECT_GT(std::string(describe(static_cast<Reason>(i))).size(), 10U);
  }
  EXPECT_EQ(words.size(), static_cast<std::size_t>(Reason::kind));
  EXPECT_EQ(words.count("?"), 0U);
}

}  // namespace
