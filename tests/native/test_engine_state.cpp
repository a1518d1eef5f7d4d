// SPDX-License-Identifier: Apache-2.0
// The engine state: its lists, what is freed after the mutex, and waiting for claims.

#include "core/engine_state.h"

#include "core/host_pages.h"
#include "family.h"

#include <memory>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Engine : public EngineTest {};

std::vector<const Block*> blocks_of(const Block* list) {
  std::vector<const Block*> blocks;
  for (; list != nullptr; list = list->next) blocks.push_back(list);
  return blocks;
}

// Broken by: `remove_from` that loses a neighbour or does not move the head; numbers that repeat.
TEST_F(Engine, BlocksComeAndGoInAnyOrder) {
  auto& state = engine();
  std::lock_guard lock(state.mutex);
  Block blocks[3]{};
  for (auto& block : blocks) state.add(block);
  EXPECT_EQ(blocks_of(state.blocks), (std::vector<const Block*>{&blocks[2], &blocks[1], &blocks[0]}));
  EXPECT_LT(blocks[0].id, blocks[1].id);
  EXPECT_LT(blocks[1].id, blocks[2].id);
  state.remove(blocks[1]);
  EXPECT_EQ(blocks_of(state.blocks), (std::vector<const Block*>{&blocks[2], &blocks[0]}));
  state.add_retired(blocks[1]);
  EXPECT_EQ(blocks_of(state.retired), std::vector<const Block*>{&blocks[1]});
  state.remove(blocks[2]);
  state.remove(blocks[0]);
  state.remove_retired(blocks[1]);
  EXPECT_EQ(state.blocks, nullptr);
  EXPECT_EQ(state.retired, nullptr);
  EXPECT_EQ(state.block_count, 0U);
}

// Broken by: a `Garbage` that frees where it is added to; one that forgets one of its lists.
TEST_F(Engine, GarbageIsFreedAfterTheMutex) {
  static int freed = 0;
  freed = 0;
  char memory = 0;
  {
    Garbage garbage;
    std::lock_guard lock(engine().mutex);
    auto block = std::make_unique<Block>();
    block->data = c10::DataPtr(
        &memory, &memory,
        [](void*) {
          ++freed;
          EXPECT_TRUE(engine().mutex.try_lock()) << "a deleter runs under the mutex";
          engine().mutex.unlock();
        },
        c10::kCPU);
    garbage.add(*new Sharer{block.get(), 0, 0, nullptr});
    garbage.add(*block.release());
    EXPECT_EQ(freed, 0);
  }
  EXPECT_EQ(freed, 1);
}

// Broken by: `fork_epoch` that `claimed` does not look at.
TEST_F(Engine, AClaimOfAnotherProcessIsVoid) {
  auto& state = engine();
  Sharer sharer{};
  EXPECT_FALSE(state.claimed(sharer));
  sharer.claimed = true;
  sharer.claim_epoch = state.fork_epoch;
  EXPECT_TRUE(state.claimed(sharer));
  sharer.claim_epoch = state.fork_epoch + 1;
  EXPECT_FALSE(state.claimed(sharer));
}

// Broken by: hooks that are called with the mutex held, which a thread with the interpreter lock may wait for; a token
// that is lost.
TEST_F(Engine, WaitingReleasesTheInterpreterWithoutTheMutex) {
  static std::vector<std::string> steps;
  steps.clear();
  const auto free = [] {
    const bool locked = engine().mutex.try_lock();
    if (locked) engine().mutex.unlock();
    return locked;
  };
  static const auto note = +free;
  const auto before = engine().blocking;
  engine().blocking = {[]() -> void* {
                         steps.push_back(note() ? "release" : "release under the mutex");
                         return &steps;
                       },
                       [](void* token) {
                         EXPECT_EQ(token, &steps);
                         steps.push_back(note() ? "acquire" : "acquire under the mutex");
                       }};
  {
    std::unique_lock lock(engine().mutex);
    wait_for_claims(lock);
    EXPECT_TRUE(lock.owns_lock());
  }
  engine().blocking = before;
  EXPECT_EQ(steps, (std::vector<std::string>{"release", "acquire"}));
}

}  // namespace
