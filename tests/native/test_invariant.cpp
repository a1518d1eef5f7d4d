// SPDX-License-Identifier: Apache-2.0
// The checks themselves: what a failure says, where it goes, and that checks which are off evaluate nothing.

#include "core/invariant.h"

#include "core/block.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>

namespace {

using namespace torchcow;

/// Checks are on for the length of a scope, also in a release build.
struct Checks {
#ifdef NDEBUG
  Checks() : before(std::exchange(invariant::enabled, true)) {}
  ~Checks() { invariant::enabled = before; }
  bool before;
#else
  Checks() {}
#endif
};

std::string message_of(void (*check)()) {
  const Checks on;
  try {
    check();
  } catch (const InternalError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

// Broken by: values that are printed in another order, or split at a comma within a call; the path of the build in the
// message.
TEST(Invariant, AFailureNamesItsNumberSentenceConditionAndValues) {
  const auto message = message_of([] {
    const int offset = 8, bytes = 4;
    TORCHCOW_INVARIANT(I4, offset <= bytes, offset, std::max(bytes, 1));
  });
  EXPECT_NE(message.find("torchcow: invariant I4 is broken: A sharer's span lies within its block."), message.npos)
      << message;
  EXPECT_NE(message.find("At test_invariant.cpp:"), message.npos) << message;
  EXPECT_NE(message.find("(offset <= bytes) is false with offset = 8, std::max(bytes, 1) = 4."), message.npos)
      << message;
}

// Broken by: no text for a check without values.
TEST(Invariant, ValuesMayBeLeftOut) {
  const auto message = message_of([] { TORCHCOW_INVARIANT(I11, 1 > 2); });
  EXPECT_NE(message.find("invariant I11 "), message.npos) << message;
  EXPECT_NE(message.find("(1 > 2) is false. This is a defect"), message.npos) << message;
}

// Broken by: a condition or a value that is evaluated before the switch is looked at.
TEST(Invariant, WhatHoldsOrIsOffCostsNoValues) {
  int evaluated = 0;
  [[maybe_unused]] const auto count = [&] { return ++evaluated; };
  {
    const Checks on;
    TORCHCOW_INVARIANT(I1, true, count());
    EXPECT_EQ(evaluated, 0);
  }
#ifdef NDEBUG
  const bool before = std::exchange(invariant::enabled, false);
  TORCHCOW_INVARIANT(I1, count() < 0, count());
  invariant::enabled = before;
  EXPECT_EQ(evaluated, 0);
#endif
}

// Broken by: a handler that is not called, or whose exception is replaced.
TEST(Invariant, AHandlerThrowsInstead) {
  const Checks on;
  invariant::set_failure_handler([](const std::string& message) { throw message.size(); });
  EXPECT_THROW(TORCHCOW_INVARIANT(I1, false), std::size_t);
  invariant::set_failure_handler(nullptr);
  EXPECT_THROW(TORCHCOW_INVARIANT(I1, false), InternalError);
}

// Broken by: a message that a noexcept function swallows.
TEST(InvariantDeathTest, WhereNothingMayBeThrownTheProcessEnds) {
  const Checks on;
  const auto check = []() noexcept { TORCHCOW_INVARIANT(I8, false); };
  EXPECT_DEATH(check(), "torchcow: invariant I8 is broken: On a device,");
}

// Broken by: `link` without its check; a check that adds offset and bytes, which may overflow.
TEST(InvariantDeathTest, ASpanBeyondItsBlockIsNotLinked_I4) {
  const Checks on;
  for (const auto& [offset, bytes] : {std::pair<std::size_t, std::size_t>{5, 4}, {9, 0}, {4, ~std::size_t{0}}}) {
    Block block{};
    block.bytes = 8;
    Sharer sharer{&block, offset, bytes, nullptr};
    EXPECT_DEATH(block.link(sharer), "invariant I4");
  }
}

}  // namespace
