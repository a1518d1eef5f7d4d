// SPDX-License-Identifier: Apache-2.0

// Writes in progress: who is announced, and when.

#include "core/writing.h"

#include "core/engine_state.h"
#include "family.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <thread>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Writing : public EngineTest {};

bool written(const at::Tensor& tensor) {
  std::lock_guard lock(engine().mutex);
  return being_written(storage_impl(tensor));
}

// Broken by: slots that are not given back; `being_written` that looks at the caller's slots only.
TEST_F(Writing, AnnouncementsNest) {
  const std::vector<at::Tensor> tensors{numbers(1), numbers(2)};
  const WriteTarget outer{&storage_impl(tensors[0])};
  const WriteTarget inner{&storage_impl(tensors[1])};
  EXPECT_FALSE(written(tensors[0]));
  {
    const WritingScope first({&outer, 1});
    {
      const WritingScope second({&inner, 1});
      std::thread([&] { EXPECT_TRUE(written(tensors[0]) && written(tensors[1])); }).join();
    }
    EXPECT_TRUE(written(tensors[0]));
    EXPECT_FALSE(written(tensors[1]));
  }
  EXPECT_FALSE(written(tensors[0]));
}

// Broken by: an operator with more targets than a thread has slots that announces none, or some.
TEST_F(Writing, ListsAreAnnouncedWhole) {
  std::vector<at::Tensor> tensors;
  std::vector<WriteTarget> targets;
  for (int i = 0; i < 50; ++i) {
    tensors.push_back(numbers(1));
    targets.push_back({&storage_impl(tensors.back())});
  }
  {
    const WritingScope all(targets);
    const WritingScope nested(targets);
    for (const auto& tensor : tensors) EXPECT_TRUE(written(tensor));
  }
  for (const auto& tensor : tensors) EXPECT_FALSE(written(tensor));
}

// Broken by: slots that outlive their thread.
TEST_F(Writing, AThreadThatEndsLeavesNothing) {
  const auto tensor = numbers(1);
  const WriteTarget target{&storage_impl(tensor)};
  for (int i = 0; i < 20; ++i) std::thread([&] { const WritingScope scope({&target, 1}); }).join();
  EXPECT_FALSE(written(tensor));
}

/// Forks in a thread that has not written yet, runs `in_child` there, and says whether the child ended well in time.
bool child_ends_well(const std::function<bool()>& in_child) {
#ifdef __SANITIZE_THREAD__
  // ThreadSanitizer does not support the child of a process with several threads: it hangs inside of the runtime.
  static_cast<void>(in_child);
  return true;
#endif
  bool well = false;
  std::thread([&] {
    const auto child = fork();
    if (child == 0) _exit(in_child() ? 0 : 1);
    int status = 0;
    for (int wait = 0; wait < 500; ++wait) {
      if (waitpid(child, &status, WNOHANG) == child) {
        well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    ADD_FAILURE() << "the child hangs";
  }).join();
  return well;
}

// Broken by: a handler of fork that takes the engine's mutex a second time, to make slots for a thread that has none.
TEST_F(Writing, AThreadThatNeverWroteMayFork) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  EXPECT_TRUE(child_ends_well([&] {
    copy.fill_(1);
    return copy[0].item<float>() == 1 && source[0].item<float>() == 1 && source[1].item<float>() == 2;
  }));
}

// Broken by: no handler in writing.cpp: in the child the parent's other writers write for ever.
TEST_F(Writing, WritersOfTheParentDoNotExistInTheChild) {
  const auto tensor = numbers(100);
  const WriteTarget target{&storage_impl(tensor)};
  const WritingScope scope({&target, 1});
  EXPECT_EQ(refusal(tensor), Reason::writing);
  EXPECT_TRUE(child_ends_well([&] { return refusal(tensor) == Reason::none; }));
}

// Broken by: announcements of the thread that forks forgotten with those of all others; a list of announcements that
// still leads to stacks of threads which the child does not have.
TEST_F(Writing, TheThreadThatForksGoesOnWritingInTheChild) {
  std::vector<at::Tensor> mine;
  std::vector<at::Tensor> others;
  std::vector<WriteTarget> my_targets;
  std::vector<WriteTarget> other_targets;
  for (int i = 0; i < 20; ++i) {
    mine.push_back(numbers(1));
    others.push_back(numbers(1));
    my_targets.push_back({&storage_impl(mine.back())});
    other_targets.push_back({&storage_impl(others.back())});
  }
  const WritingScope elsewhere(other_targets);
  EXPECT_TRUE(child_ends_well([&] { return !written(others[3]); }));
  std::thread([&] {
    std::optional<WritingScope> outer(std::in_place, my_targets);
    bool well = false;
    std::thread([&] {
      const WritingScope scope(my_targets);  // between the two in the list
      well = written(mine[3]);
    }).join();
    EXPECT_TRUE(well);
#ifndef __SANITIZE_THREAD__
    const auto child = fork();
    if (child == 0) {
      well = written(mine[3]) && !written(others[3]);
      outer.reset();
      _exit(well && !written(mine[3]) ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
  }).join();
}

}  // namespace
