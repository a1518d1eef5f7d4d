// SPDX-License-Identifier: Apache-2.0
// torch's inter-op pool: its start is noticed. One test, as the pool starts once in a process.

#include "core/inter_op.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <future>

namespace {

using namespace torchcow;

// Broken by: a pool that counts as absent before anything watches; `put_in_front` that registers behind torch's
// creator.
TEST(InterOp, TheStartOfThePoolIsNoticed) {
  EXPECT_TRUE(inter_op::started()) << "unknown counts as started";
  inter_op::watch();
  EXPECT_FALSE(inter_op::started());
  std::promise<void> ran;
  at::launch([&] { ran.set_value(); });
  ran.get_future().wait();
  EXPECT_TRUE(inter_op::started());
}

}  // namespace
