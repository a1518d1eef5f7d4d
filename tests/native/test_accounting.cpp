// SPDX-License-Identifier: Apache-2.0

// Accounting: sums that add up.

#include "core/accounting.h"

#include "family.h"

#include <cmath>
#include <random>
#include <set>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Accounting : public EngineTest {};

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
TEST_F(Accounting, FairSharesAddUp_I9) {
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

// Broken by: `usage` of a storage that is no sharer.
TEST_F(Accounting, PrivateMemory) {
  const auto plain = numbers(100);
  const auto used = usage(storage_impl(plain));
  EXPECT_EQ(used.block, nullptr);
  EXPECT_EQ(used.bytes, 400U);
}

}  // namespace
