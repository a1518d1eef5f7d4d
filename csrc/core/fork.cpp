// SPDX-License-Identifier: Apache-2.0
#include "fork.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstddef>

namespace torchcow {

namespace {

constexpr auto stage_count = static_cast<std::size_t>(ForkStage::host_copy) + 1;

/// Initialized before any code runs: sources register in an order that nothing defines.
constinit std::array<ForkHandlers, stage_count> stages{};

void call(void (*handler)()) {
  if (handler != nullptr) handler();
}

void before_fork() {
  for (const auto& stage : stages) call(stage.before);
}

void after_fork_in_parent() {
  std::for_each(stages.rbegin(), stages.rend(), [](const auto& stage) { call(stage.in_parent); });
}

void after_fork_in_child() {
  std::for_each(stages.rbegin(), stages.rend(), [](const auto& stage) { call(stage.in_child); });
}

}  // namespace

AtFork::AtFork(ForkStage stage, const ForkHandlers& handlers) noexcept {
  [[maybe_unused]] static const int registered =
      pthread_atfork(&before_fork, &after_fork_in_parent, &after_fork_in_child);
  stages[static_cast<std::size_t>(stage)] = handlers;
}

}  // namespace torchcow
