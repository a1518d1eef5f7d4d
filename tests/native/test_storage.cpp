// SPDX-License-Identifier: Apache-2.0
// Storages: which one a tensor has, and a table whose entries end with them.

#include "core/storage.h"

#include "core/storage_table.h"
#include "family.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

// Broken by: a tensor without a storage that is asked for one.
TEST(Storage, NotEachTensorHasOne) {
  const auto tensor = numbers(10);
  EXPECT_EQ(storage_of(tensor), &storage_impl(tensor));
  EXPECT_EQ(storage_of(tensor.narrow(0, 3, 4)), storage_of(tensor));
  EXPECT_EQ(storage_of(at::Tensor()), nullptr);
  EXPECT_EQ(storage_of(at::eye(3).to_sparse()), nullptr);
}

// Broken by: an offset, a gap or a size that `covers_storage` does not look at.
TEST(Storage, CoversOnlyIfNoByteIsLeftOut) {
  const auto tensor = numbers(12);
  EXPECT_TRUE(covers_storage(tensor));
  EXPECT_TRUE(covers_storage(tensor.view({3, 4}).t()));
  EXPECT_FALSE(covers_storage(tensor.narrow(0, 0, 11)));
  EXPECT_FALSE(covers_storage(tensor.narrow(0, 1, 11)));
  EXPECT_FALSE(covers_storage(tensor.as_strided({6}, {2})));
  EXPECT_FALSE(covers_storage(tensor.as_strided({12, 2}, {1, 0})));
}

// Broken by: entries that hold their storages; a second insert that replaces the first.
TEST(StorageTable, EntriesHoldTheirStoragesWeakly) {
  StorageTable<int> table;
  auto tensor = numbers(10);
  auto& storage = storage_impl(tensor);
  table.insert(storage, 1);
  table.insert(storage, 2);
  ASSERT_NE(table.find(&storage), nullptr);
  EXPECT_EQ(*table.find(&storage), 1);
  EXPECT_EQ(c10::raw::intrusive_ptr::use_count(&storage), 1U);
  EXPECT_TRUE(table.remove_dead().empty()) << "too early to look";
  EXPECT_EQ(table.find(nullptr), nullptr);
}

// Broken by: dead entries that stay; live ones that go; a table that is searched at each insert.
TEST(StorageTable, DeadEntriesAreRemovedWhenTheTableHasDoubled) {
  StorageTable<int> table;
  std::vector<at::Tensor> alive;
  std::size_t removed = 0;
  std::size_t removals = 0;
  for (int i = 0; i < 2000; ++i) {
    const auto tensor = numbers(1);
    if (i % 10 == 0) alive.push_back(tensor);
    const auto dead = table.remove_dead();
    removed += dead.size();
    removals += dead.empty() ? 0 : 1;
    table.insert(storage_impl(tensor), i);
  }
  EXPECT_GT(removed, 1400U);
  EXPECT_LT(removals, 12U);
  for (std::size_t i = 0; i < alive.size(); ++i) {
    ASSERT_NE(table.find(&storage_impl(alive[i])), nullptr);
    EXPECT_EQ(*table.find(&storage_impl(alive[i])), static_cast<int>(10 * i));
  }
}

}  // namespace
