// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <functional>
#include <new>
#include <utility>

namespace torchcow::testing {

/// A CPU allocator that counts, and whose n-th allocation throws. What it hands out is torch's own memory.
class HostileAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (left_ >= 0 && left_-- == 0) throw std::bad_alloc();
    ++count_;
    if (const auto act = std::exchange(during, nullptr)) act();
    bytes_ += bytes;
    return inner().allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return inner().raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

  /// Lets allocation number `after` (from now on, 0-based) fail once.
  void fail(std::int64_t after) { left_ = after; }
  [[nodiscard]] std::size_t count() const { return count_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

  /// Runs once, inside of the next allocation: in a materialization that is after the claim and before the copy.
  std::function<void()> during;

 private:
  static c10::Allocator& inner() { return *c10::GetCPUAllocator(); }
  std::int64_t left_ = -1;
  std::size_t count_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace torchcow::testing
