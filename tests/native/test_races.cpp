// SPDX-License-Identifier: Apache-2.0

// Racing threads: for ThreadSanitizer above all, which sees at once what a plain run meets once in a thousand.
//
// What relatives in different threads do must not be seen by others. What two threads do to one tensor may tear values,
// as it does without us, but never touch freed memory.

#include "core/accounting.h"
#include "core/allocate.h"
#include "core/materialize.h"
#include "core/retire.h"
#include "core/verify.h"
#include "family.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sum.h>

#include <atomic>
#include <thread>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

constexpr int threads = 8;

/// Runs all at once, each in a thread of its own.
void together(const std::vector<std::function<void()>>& bodies) {
  std::atomic<std::size_t> waiting{bodies.size()};
  std::vector<std::thread> running;
  for (const auto& body : bodies) {
    running.emplace_back([&] {
      --waiting;
      while (waiting > 0) std::this_thread::yield();
      body();
    });
  }
  for (auto& thread : running) thread.join();
}

std::vector<std::function<void()>> each(const std::function<void(int)>& body) {
  std::vector<std::function<void()>> bodies;
  for (int i = 0; i < threads; ++i) bodies.emplace_back([&body, i] { body(i); });
  return bodies;
}

/// All elements of `tensor`, read as an operator does, through a const pointer.
double total(const at::Tensor& tensor) {
  const auto* data = static_cast<const float*>(tensor.const_data_ptr());
  double result = 0;
  for (std::int64_t i = 0; i < tensor.numel(); ++i) result += data[i];
  return result;
}

class Races : public EngineTest {
 protected:
  void SetUp() override {
    EngineTest::SetUp();
    at::set_num_threads(1);
    arm_fingerprints(false);
    set_other_threads_probe([] { return true; });
  }
  void TearDown() override {
    set_other_threads_probe([] { return false; });
    EngineTest::TearDown();
  }
};

// First wrap of the source, materialization of clones, and drops, in eight threads.
// Broken by: the list of sharers without the mutex; a steal that looks at `sharer_count` before it has the mutex.
TEST_F(Races, WrapMaterializeAndDropInOneFamily) {
  for (int round = 0; round < 30; ++round) {
    const auto source = numbers(500);
    std::atomic<int> shared_count{0};
    together(each([&](int i) {
      for (int step = 0; step < 10; ++step) {
        SharingCall call;
        Reason reason;
        auto mine = clone(call, source, reason);
        for (const auto& probation : call.probations()) SharingCall::confirm(*probation);
        if (!mine.defined()) {
          EXPECT_EQ(reason, Reason::writing);  // on probation in another thread
          continue;
        }
        ++shared_count;
        EXPECT_EQ(total(mine), 125250);
        switch ((i + step) % 4) {
          case 0:
            mine.fill_(i);
            EXPECT_EQ(total(mine), 500.0 * i);
            break;
          case 1:
            mine.add_(1);
            EXPECT_EQ(total(mine), 125750);
            break;
          case 2:
            static_cast<float*>(storage_impl(mine).mutable_data())[0] = 2;
            EXPECT_EQ(total(mine), 125251);
            break;
          case 3:
            break;
        }
      }
    }));
    EXPECT_GT(shared_count, 0);
    EXPECT_EQ(total(source), 125250);
  }
}

// Every relative leaves at the same moment: the last one steals, and nobody reads what another wrote.
// Broken by: a steal of what others still copy.
TEST_F(Races, AllRelativesWriteAtOnce) {
  for (int round = 0; round < 50; ++round) {
    std::vector<at::Tensor> family{numbers(2000)};
    for (int i = 1; i < threads; ++i) family.push_back(clone(family[0]));
    together(each([&](int i) { family[i].add_(i); }));
    for (int i = 0; i < threads; ++i) EXPECT_EQ(total(family[i]), 2001000.0 + 2000.0 * i);
    materializations();
  }
}

// Broken by: claims that nobody waits for.
TEST_F(Races, ManyFirstWritesToOneTensorAreOneEvent) {
  for (int round = 0; round < 50; ++round) {
    const auto source = numbers(threads * 100);
    const auto copy = clone(source);
    materializations();
    together(each([&](int i) { copy.narrow(0, 100 * i, 100).fill_(i); }));
    EXPECT_EQ(materializations().size(), 1U);
    for (int i = 0; i < threads; ++i) EXPECT_EQ(total(copy.narrow(0, 100 * i, 100)), 100.0 * i);
    EXPECT_EQ(total(source), total(numbers(threads * 100)));
  }
}

// Broken by: the same; batches that claim in the order of their arguments wait for each other for ever, once a third
// thread has made them wait in the middle.
TEST_F(Races, BatchesInOppositeOrder) {
  for (int round = 0; round < 30; ++round) {
    std::vector<at::Tensor> sources;
    for (int i = 0; i < 6; ++i) sources.push_back(numbers(50000));
    const auto copies = clone(sources);
    const std::vector<at::Tensor> backwards(copies.rbegin(), copies.rend());
    materializations();
    together(
        {[&] { at::_foreach_add_(copies, 1); }, [&] { at::_foreach_add_(backwards, 1); }, [&] { copies[3].add_(1); }});
    EXPECT_EQ(materializations().size(), 6U);
    for (const auto& source : sources) EXPECT_TRUE(same_bits(source, numbers(50000)));
  }
}

// Some of several first writers run out of memory: the others do not mind.
// Broken by: claims that are not given back after an exception.
TEST_F(Races, FirstWritersWhileMemoryRunsOut) {
  for (int round = 0; round < 50; ++round) {
    const auto source = numbers(100);
    const auto copy = clone(source);
    fail_allocation(0);
    std::atomic<int> failed{0};
    together(each([&](int) {
      try {
        materialize({{&storage_impl(copy)}}, {"test"});
      } catch (const c10::OutOfMemoryError&) {
        ++failed;
      }
    }));
    EXPECT_EQ(failed, 1);
    EXPECT_FALSE(shared(copy));
    EXPECT_EQ(total(copy), 5050);
  }
}

// Readers hold a tensor each and sum it, again and again, while its owner writes, clones and drops. Under the
// sanitizers a freed block is seen at once; without them a sum that no value ever gave shows it. Broken by: `retire`
// that frees at once; a steal although a former sharer reads.
TEST_F(Races, ReadersNeverSeeFreedMemory_I7) {
  const auto source = at::full({4096}, 1.0F);
  std::atomic<bool> done{false};
  const auto read = [&] {
    while (!done) {
      const auto seen = at::sum(source).item<double>();
      EXPECT_TRUE(0 <= seen && seen <= 3 * 4096) << seen;
    }
  };
  const auto write = [&] {
    for (int step = 0; step < 200; ++step) {
      const auto copy = clone(source);
      source.fill_(static_cast<float>(1 + step % 3));
      EXPECT_TRUE(total(copy) <= 3 * 4096);
    }
    done = true;
  };
  const auto churn = [&] {
    while (!done) at::full({4096}, 1e30);
  };
  together({read, read, write, churn});
}

// A clone is taken while an operator writes: it is whole, before or after, or it is refused.
// Broken by: `being_written` that is always false, or asked before the storage is armed.
TEST_F(Races, CloneWhileWriting_I6) {
  const auto source = at::full({20000}, 1.0F);
  std::atomic<bool> done{false};
  int taken = 0;
  const auto write = [&] {
    for (int step = 0; step < 400; ++step) source.fill_(static_cast<float>(step % 2));
    done = true;
  };
  const auto take = [&] {
    while (!done) {
      SharingCall call;
      Reason reason;
      const auto copy = clone(call, source, reason);
      for (const auto& probation : call.probations()) SharingCall::confirm(*probation);
      if (!copy.defined()) continue;
      ++taken;
      const auto first = total(copy);
      EXPECT_EQ(first, total(copy)) << "a clone changed after it was made";
      EXPECT_TRUE(first == 0 || first == 20000) << first;
    }
  };
  together({write, take});
  RecordProperty("clones_taken", taken);
}

// The books are read while everything moves.
// Broken by: two locks that are taken in either order (a deadlock); a ledger without the mutex.
TEST_F(Races, TheLedgerWhileEverythingMoves) {
  std::atomic<bool> done{false};
  const auto move = [&] {
    for (int step = 0; step < 200; ++step) {
      const auto source = numbers(100);
      auto copy = clone(source);
      copy.add_(1);
      const auto other = clone(source);
      auto& storage = storage_impl(other);
      storage.set_data_ptr_noswap(storage.allocator()->allocate(0));  // leaves without a word, as a resize does
      storage.set_nbytes(0);
    }
  };
  const auto look = [&] {
    std::size_t looked_at = 0;
    while (!done) {
      const auto now = totals();
      EXPECT_LE(now.unique_bytes, now.blocks * 400);
      EXPECT_TRUE(verify(looked_at).empty());
      events(true);
    }
  };
  std::thread looker(look);
  together({move, move, move});
  done = true;
  looker.join();
}

// A batch takes the memory of one block while it copies another.
// Broken by: `verify` that holds on to a block which is being stolen: it sums memory that is gone, or written.
TEST_F(Races, VerifyWhileABatchSteals) {
  arm_fingerprints(true);
  std::atomic<bool> done{false};
  std::thread verifier([&] {
    std::size_t looked_at = 0;
    while (!done) EXPECT_TRUE(verify(looked_at).empty());
  });
  const auto big = numbers(1 << 18);
  for (int round = 0; round < 100; ++round) {
    const auto sole = numbers(100);
    clone(sole);
    const auto copy = clone(big);
    materialize({{&storage_impl(sole)}, {&storage_impl(copy)}}, {"test"});
    sole.fill_(1);
  }
  done = true;
  verifier.join();
  materializations();
}

// Broken by: a storage that dies while a sibling is being materialized takes the block with it.
TEST_F(Races, SiblingsDieWhileOthersCopy) {
  for (int round = 0; round < 50; ++round) {
    std::vector<at::Tensor> family{numbers(2000)};
    for (int i = 1; i < threads; ++i) family.push_back(clone(family[0]));
    together(each([&](int i) {
      if (i % 2 == 0) {
        family[i].reset();
      } else {
        family[i].add_(i);
      }
    }));
    for (int i = 1; i < threads; i += 2) EXPECT_EQ(total(family[i]), 2001000.0 + 2000.0 * i);
    materializations();
  }
}

}  // namespace
