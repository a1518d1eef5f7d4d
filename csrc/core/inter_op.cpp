// SPDX-License-Identifier: Apache-2.0

#include "inter_op.h"

#include <ATen/PTThreadPool.h>

#include <atomic>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

namespace torchcow::inter_op {

namespace {

std::atomic<bool> watched{false};
std::atomic<bool> pool_started{false};

std::shared_ptr<c10::TaskThreadPoolBase> start(int, int size, bool) {
  pool_started = true;
  return std::make_shared<at::PTThreadPool>(size);
}

/// Has this process a thread with the name that at::PTThreadPool gives?
bool found_among_threads() {
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(thread.path() / "comm");
    std::string name;
    if (std::getline(file, name) && name == "PTThreadPool") return true;
  }
  return false;
}

/// False if somebody else has put a creator in front.
bool put_in_front() {
  auto* creators = c10::ThreadPoolRegistry();
  creators->SetTerminate(false);
  bool done = true;
  try {
    creators->Register("C10", &start, c10::REGISTRY_PREFERRED);
  } catch (const std::exception&) {
    done = false;
  }
  creators->SetTerminate(true);
  return done;
}

}  // namespace

void watch() {
  // In front first: a start in between is noticed by one of the two.
  if (!put_in_front()) return;
  try {
    if (found_among_threads()) pool_started = true;
    watched = true;
  } catch (const std::exception&) {
    // Nobody knows, so it counts as started.
  }
}

bool started() noexcept { return !watched || pool_started; }

}  // namespace torchcow::inter_op
