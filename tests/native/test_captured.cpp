// SPDX-License-Identifier: Apache-2.0
// Captured graphs: storages that existed when a graph was captured are not shared.

#include "core/captured.h"

#include "core/engine_state.h"
#include "family.h"

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Captured : public EngineTest {};

bool is_marked(const at::Tensor& tensor) {
  std::lock_guard lock(engine().mutex);
  return captured::is_marked(storage_impl(tensor));
}

// Broken by: a note that is never taken; one that is taken twice.
TEST_F(Captured, ANoteIsTakenOnce) {
  EXPECT_FALSE(captured::take_note());
  captured::note();
  captured::note();
  EXPECT_TRUE(captured::take_note());
  EXPECT_FALSE(captured::take_note());
}

// Broken by: `is_marked` that is not asked when a storage is shared.
TEST_F(Captured, AMarkedStorageIsNotShared) {
  const auto tensor = numbers(100);
  EXPECT_EQ(refusal(tensor), Reason::none);
  const auto other = numbers(100);
  captured::mark(storage_impl(other));
  captured::mark(storage_impl(other));
  EXPECT_EQ(refusal(other), Reason::capture);
  EXPECT_EQ(refusal(tensor), Reason::none);
}

// Broken by: a table of bare addresses, which the next storage at that address would inherit.
TEST_F(Captured, AMarkEndsWithItsStorage) {
  for (int i = 0; i < 1000; ++i) {
    const auto tensor = numbers(10);
    ASSERT_FALSE(is_marked(tensor)) << "tensor " << i;
    captured::mark(storage_impl(tensor));
    ASSERT_TRUE(is_marked(tensor));
  }
}

}  // namespace
