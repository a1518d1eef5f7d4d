// SPDX-License-Identifier: Apache-2.0
// Copies on devices, on a mock accelerator that checks each access (mock_accelerator.h).

#include "core/device_copy.h"

#include "core/device_kernels.h"
#include "core/stream_order.h"
#include "mock_accelerator.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

namespace {

using namespace torchcow;
namespace mock = torchcow::testing::mock;

using Lines = std::vector<std::string>;

c10::DataPtr device_memory(std::size_t bytes, char fill) {
  auto memory = c10::GetAllocator(c10::kPrivateUse1)->allocate(bytes);
  std::memset(memory.get(), fill, bytes);
  mock::writes(memory.get(), bytes, current_stream(mock::device()));
  return memory;
}

std::unique_ptr<Block> block_of(c10::DataPtr memory, std::size_t bytes) {
  auto block = std::make_unique<Block>();
  block->bytes = bytes;
  block->data = std::move(memory);
  block->order = std::make_shared<StreamOrder>(StreamOrder::record_ready(mock::device()));
  return block;
}

// Broken by: a copy that does not wait for `ready`; one that leaves no event, so that the block's memory could be
// given away under it.
TEST(DeviceCopy, WaitsForTheSourceAndLeavesAnEvent) {
  mock::install();
  auto block = block_of(device_memory(400, 5), 400);
  {
    const mock::OnStream other(2);
    const auto target = c10::GetAllocator(c10::kPrivateUse1)->allocate(400);
    mock::clear_log();
    copy_on_device({{target.get(), block->data.get(), 400, block.get()}});
    EXPECT_EQ(mock::log({"wait", "copy"}), (Lines{"wait 2 for 0", "copy 400 on 2"}));
    EXPECT_EQ(static_cast<const char*>(target.get())[399], 5);
    EXPECT_TRUE(block->order->pending(mock::stream(1))) << "a thief on another stream has to wait";
    EXPECT_FALSE(block->order->pending(mock::stream(2)));
    mock::clear_log();
    wait_on_host(mock::device());
    EXPECT_EQ(mock::log(), Lines{"synchronize 2"});
  }
  block->order->before_free(block->data);
  block.reset();
  EXPECT_EQ(mock::take_hazards(), Lines{});
}

// Broken by: work on the CPU that waits for a device.
TEST(DeviceCopy, NothingToWaitForOnTheHost) { EXPECT_NO_THROW(wait_on_host(c10::kCPU)); }

}  // namespace
