// SPDX-License-Identifier: Apache-2.0

// Reserves: what a first write takes instead of an allocation, and what becomes of the rest.

#include "core/reserve.h"

#include "core/allocate.h"
#include "core/engine_state.h"
#include "core/materialize.h"
#include "family.h"

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Reserves : public EngineTest {};

std::size_t reserved() {
  std::lock_guard lock(engine().mutex);
  return reserved_bytes();
}

std::shared_ptr<Reserve> reserve_all(const std::vector<at::Tensor>& tensors) {
  std::vector<c10::StorageImpl*> storages;
  for (const auto& tensor : tensors) storages.push_back(&storage_impl(tensor));
  return reserve(storages, std::vector<bool>(storages.size(), true));
}

void write(const at::Tensor& tensor) { materialize({{&storage_impl(tensor)}}, {"a test"}); }

// Broken by: `allocate` that does not look into the reserve.
TEST_F(Reserves, AFirstWriteTakesThePieceOfItsSize) {
  const auto source = numbers(1000);
  const auto copy = clone(source);
  const std::weak_ptr<Reserve> reserve = reserve_all({copy});
  EXPECT_EQ(reserved(), 4000U);
  fail_allocation(0);
  EXPECT_NO_THROW(write(copy));
  fail_allocation(-1);
  EXPECT_EQ(reserved(), 0U);
  EXPECT_TRUE(reserve.expired()) << "it belongs to its sharers";
  EXPECT_TRUE(same_bits(source, copy));
}

// Broken by: `release_claims` that does not put back.
TEST_F(Reserves, AFailedBatchPutsItBack) {
  const auto sources = std::vector{numbers(1000), numbers(500)};
  const auto copies = clone(sources);
  const auto reserve = reserve_all({copies[0]});
  fail_allocation(0);
  EXPECT_ANY_THROW(materialize({{&storage_impl(copies[0])}, {&storage_impl(copies[1])}}, {"a test"}));
  fail_allocation(-1);
  EXPECT_EQ(reserved(), 4000U);
  fail_allocation(0);
  EXPECT_NO_THROW(write(copies[0]));
  fail_allocation(-1);
}

// Broken by: a `take` that gives back nothing, or everything.
TEST_F(Reserves, WhereNoPieceFitsEnoughIsGivenBack) {
  const auto sources = std::vector{numbers(1000), numbers(900), numbers(500)};
  const auto copies = clone(sources);
  std::vector<c10::StorageImpl*> storages;
  for (const auto& copy : copies) storages.push_back(&storage_impl(copy));
  const auto reserve = torchcow::reserve(storages, {true, true, false});
  write(copies[2]);
  EXPECT_EQ(reserved(), 4000U);
  write(copies[1]);
  EXPECT_EQ(reserved(), 0U);
}

// Broken by: a reserve that holds on to itself, or whose bytes are not counted off.
TEST_F(Reserves, EndsWithTheClone) {
  const auto source = numbers(1000);
  {
    const auto copy = clone(source);
    reserve_all({copy});
    EXPECT_EQ(reserved(), 4000U);
  }
  EXPECT_EQ(reserved(), 0U);
}

// Broken by: pieces that stay when making a later one fails.
TEST_F(Reserves, AllOrNothing) {
  const auto sources = std::vector{numbers(1000), numbers(500)};
  const auto copies = clone(sources);
  fail_allocation(1);
  EXPECT_ANY_THROW(reserve_all(copies));
  fail_allocation(-1);
  EXPECT_EQ(reserved(), 0U);
  fail_allocation(0);
  EXPECT_ANY_THROW(write(copies[0]));
  fail_allocation(-1);
}

TEST_F(Reserves, NothingForWhatIsNotShared) { EXPECT_EQ(reserve_all({numbers(1000)}), nullptr); }

}  // namespace
