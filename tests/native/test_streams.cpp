// SPDX-License-Identifier: Apache-2.0

// Stream order, on a mock accelerator that logs each step and checks each access (mock_accelerator.h).
//
// The log is compared where the promise is a certain step; in the random walk at the end the mock's vector clocks say
// whether anything was left out.

#include "core/barrier.h"
#include "core/device_kernels.h"
#include "core/materialize.h"
#include "core/reserve.h"
#include "core/reshare.h"
#include "core/verify.h"
#include "family.h"
#include "mock_accelerator.h"

#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>

#include <cstring>
#include <random>
#include <thread>

namespace {

using namespace torchcow;
using namespace torchcow::testing;
using mock::OnStream;

using Lines = std::vector<std::string>;

at::Tensor numbers_on(c10::DeviceIndex index, std::int64_t count) {
  auto tensor = at::empty({count}, at::TensorOptions().device(mock::device(index)).dtype(at::kFloat));
  tensor.copy_(numbers(count));
  return tensor;
}

at::Tensor device_numbers(std::int64_t count) { return numbers_on(0, count); }

std::string name(const at::Tensor& tensor) { return mock::name(tensor.const_data_ptr()); }

::testing::AssertionResult holds(const at::Tensor& tensor, float first) {
  const auto* data = static_cast<const float*>(tensor.const_data_ptr());
  if (data[0] == first) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "begins with " << data[0] << " and not with " << first;
}

class Streams : public EngineTest {
 protected:
  static void SetUpTestSuite() {
    mock::install();
    EngineTest::SetUpTestSuite();
  }
  void SetUp() override {
    EngineTest::SetUp();
    arm_fingerprints(false);  // checksums would be steps in the log
    mock::clear_log();
    mock::take_hazards();
  }
  void TearDown() override {
    mock::set_capturing(false);
    set_device_kernels(c10::kPrivateUse1, nullptr);
    EngineTest::TearDown();
    EXPECT_EQ(mock::take_hazards(), Lines{});
    EXPECT_EQ(mock::live_bytes(), 0U) << "memory of the device leaks";
  }
};

// Broken by: an event for each tensor; none at all; one for all devices.
TEST_F(Streams, OneReadyEventForEachDeviceAndCall) {
  std::vector<at::Tensor> sources;
  for (int i = 0; i < 5; ++i) sources.push_back(numbers_on(0, 100));
  for (int i = 0; i < 2; ++i) sources.push_back(numbers_on(1, 100));
  mock::clear_log();
  const auto copies = clone(sources);
  EXPECT_EQ(mock::log({"record", "wait", "copy", "allocate", "synchronize"}), (Lines{"record 0", "record 1:0"}));
  mock::clear_log();
  const auto again = clone(sources);
  EXPECT_EQ(mock::log({"record"}), (Lines{"record 0", "record 1:0"}));
}

// Broken by: `before_copy` without the wait; `after_copy` without the event or without the allocator's share in it;
// memory of the first write that its home stream knows nothing of.
TEST_F(Streams, AFirstWriteOnAnotherStream) {
  const auto source = device_numbers(100);
  const auto block = name(source);
  at::Tensor copy;
  {
    const OnStream on(1);
    mock::order(mock::stream(0), mock::stream(1));
    copy = clone(source);
  }
  mock::clear_log();
  {
    const OnStream on(2);
    mock::order(mock::stream(1), mock::stream(2));
    copy.add_(1);
  }
  EXPECT_EQ(mock::log(),
            (Lines{"allocate " + name(copy) + " 400 on 2", "use " + name(copy) + " on 1", "wait 2 for 1",
                   "copy 400 on 2", "use " + block + " on 2", "record 2", "write " + name(copy) + " on 2"}));
  EXPECT_TRUE(holds(source, 1));
  EXPECT_TRUE(holds(copy, 2));
}

// Broken by: a copy that does not wait for what the source's stream wrote before the clone. The clocks see it.
TEST_F(Streams, ACopySeesWhatWasWrittenBeforeTheClone) {
  const auto source = device_numbers(100);
  source.add_(1);
  const auto copy = clone(source);
  const OnStream on(3);
  copy.add_(1);
  source.add_(1);
  EXPECT_TRUE(holds(copy, 3));
  // The user did not order stream 3 behind what happened to `source` itself: a hazard of the user's, so it is not made.
}

// Broken by: `before_steal` without the siblings' events.
TEST_F(Streams, AStealWaitsForTheCopiesOfSiblings_I8) {
  auto source = device_numbers(100);
  auto sibling = clone(source);
  const auto thief = clone(source);
  const auto block = name(source);
  source.reset();
  {
    const OnStream on(2);
    sibling.add_(1);
  }
  mock::clear_log();
  thief.add_(1);
  EXPECT_EQ(mock::log({"wait", "copy", "allocate", "write"}),
            (Lines{"wait 0 for 0", "wait 0 for 2", "write " + block + " on 0"}));
  EXPECT_EQ(name(thief), block);
}

// Broken by: a `join` that does not tell the block who reads it now: on the current stream, and at home.
TEST_F(Streams, WhoSharesAgainReadsTheBlockOnItsOwnStreams) {
  auto keeper = device_numbers(100);
  const auto block = name(keeper);
  auto joiner = device_numbers(100);
  at::Tensor copy;
  {
    const OnStream on(1);
    mock::order(mock::stream(0), mock::stream(1));
    copy = clone(joiner);  // at home on stream 1
  }
  {
    const OnStream on(2);
    mock::order(mock::stream(1), mock::stream(2));
    auto clones = clone({keeper, copy});
    mock::clear_log();
    ASSERT_TRUE(join(storage_impl(copy), storage_impl(clones[1]), storage_impl(clones[0])));
    EXPECT_EQ(name(copy), block);
    const auto uses = mock::log({"use " + block});
    EXPECT_EQ(uses, (Lines{"use " + block + " on 2", "use " + block + " on 1"}));
  }
  keeper.reset();
  for (const std::size_t id : {1, 2}) mock::reads(copy.const_data_ptr(), 400, mock::stream(id));
  copy.reset();  // the block goes: a hazard if the allocator did not know of both streams
}

// Broken by: a reserved piece that is used on another stream than it was made on, without a word to the allocator.
TEST_F(Streams, AReservedPieceKnowsWhereItIsUsed) {
  const auto source = device_numbers(100);
  at::Tensor copy = clone(source);
  {
    const OnStream on(1);
    ASSERT_NE(reserve({&storage_impl(copy)}, {true}), nullptr);
  }
  mock::clear_log();
  {
    const OnStream on(2);
    mock::order(mock::stream(0), mock::stream(2));
    copy.add_(1);
  }
  EXPECT_EQ(mock::log({"allocate"}), Lines{});
  EXPECT_EQ(mock::log({"use " + name(copy)}), (Lines{"use " + name(copy) + " on 2", "use " + name(copy) + " on 0"}));
  EXPECT_TRUE(holds(copy, 2));
}

// Broken by: `before_steal` without the streams that the user named; `forward_record_stream` that does nothing.
TEST_F(Streams, RecordStreamReachesTheBlock) {
  auto source = device_numbers(100);
  const auto copy = clone(source);
  mock::clear_log();
  source.record_stream(mock::stream(4));
  EXPECT_EQ(mock::log({"use"}), Lines{"use " + name(source) + " on 4"});
  {
    const OnStream on(4);
    mock::order(mock::stream(0), mock::stream(4));
    source.sum();
  }
  source.reset();
  mock::clear_log();
  copy.add_(1);
  EXPECT_EQ(mock::log({"record", "wait", "write"}),
            (Lines{"wait 0 for 0", "record 4", "wait 0 for 4", "write " + name(copy) + " on 0"}));
}

// Broken by: `forward_record_stream` that looks at the tensor and not at its storage.
TEST_F(Streams, RecordStreamThroughATensorFromBefore) {
  const auto source = device_numbers(100);
  const auto view = source.as_strided({10}, {1});
  const auto copy = clone(source);
  mock::clear_log();
  view.record_stream(mock::stream(4));
  EXPECT_EQ(mock::log({"use"}), Lines{"use " + name(source) + " on 4"});
}

// The clone may be read at home without a word to anybody, and be dropped with the read pending.
// Broken by: a home that is not recorded on the block.
TEST_F(Streams, AStealWaitsForTheHomesOfClonesThatAreGone) {
  auto source = device_numbers(100);
  {
    const OnStream on(3);
    mock::order(mock::stream(0), mock::stream(3));
    const auto copy = clone(source);
    copy.sum();
  }
  mock::clear_log();
  source.add_(1);
  EXPECT_EQ(mock::log({"wait", "write"}), (Lines{"wait 0 for 3", "wait 0 for 3", "write " + name(source) + " on 0"}));
}

// The clone is made on another stream than the one that owns the memory: the source is at home where it was allocated.
// Broken by: an engine that takes the stream of the clone for the home of the source.
TEST_F(Streams, AStealWaitsForTheHomeOfTheSource) {
  auto source = device_numbers(100);
  const OnStream on(3);
  mock::order(mock::stream(0), mock::stream(3));
  const auto copy = clone(source);
  {
    const OnStream home(0);
    source.sum();
    source.reset();
  }
  copy.add_(1);
}

// Broken by: `after_copy` that tells the allocator nothing: the block's memory would be given away under the copy.
TEST_F(Streams, ABlockIsNotFreedUnderPendingCopies_I8) {
  auto source = device_numbers(100);
  auto copy = clone(source);
  const auto block = name(source);
  {
    const OnStream on(5);
    mock::clear_log();
    copy.add_(1);
    EXPECT_EQ(mock::log({"use " + block}), Lines{"use " + block + " on 5"});
  }
  source.reset();
  EXPECT_EQ(mock::log({"free"}), Lines{"free " + block});
}

// The streams are neither home to anybody nor named by the user: only the events of the copies tell of them.
// Broken by: `after_copy` that keeps the first event of a stream.
TEST_F(Streams, AStealWaitsForTheLastCopyOnAStream) {
  auto source = device_numbers(100);
  std::vector<at::Tensor> siblings{clone(source), clone(source)};
  const auto thief = clone(source);
  source.reset();
  const OnStream on(2);
  for (auto& sibling : siblings) {
    mock::order(mock::stream(0), mock::stream(2));
    sibling.add_(1);
  }
  const OnStream back(0);
  thief.add_(1);
}

// Broken by: `pending` that is always false.
TEST_F(Streams, AStealThatHasToWaitRaisesDuringACapture) {
  if (!TORCHCOW_TORCH_HAS_MATERIALIZER) GTEST_SKIP() << "this torch does not tell";
  auto source = device_numbers(100);
  auto sibling = clone(source);
  const auto thief = clone(source);
  source.reset();
  {
    const OnStream on(2);
    sibling.add_(1);
  }
  mock::set_capturing(true);
  EXPECT_THROW(thief.add_(1), c10::Error);
  mock::set_capturing(false);
  EXPECT_TRUE(shared(thief));
  thief.add_(1);
  EXPECT_TRUE(holds(thief, 2));
}

// Broken by: a check that comes after the allocation or the copy.
TEST_F(Streams, AFirstWriteDuringACaptureRaisesAndChangesNothing) {
  struct Capturing final : DeviceKernels {
    bool on = false;
    void copy(c10::ArrayRef<CopyJob>, const c10::Stream&) override {
      FAIL() << "a copy would become a part of the graph";
    }
    bool equal(c10::ArrayRef<CompareJob>, const c10::Stream&) override { return true; }
    std::vector<std::uint64_t> checksums(c10::ArrayRef<ByteRange>, const c10::Stream&) override { return {}; }
    bool capturing(const c10::Stream&) override { return on; }
  };
  // torch 2.13 and newer ask the stream; with kernels for the device, the kernels are asked.
  const std::vector<bool> ways =
      TORCHCOW_TORCH_HAS_MATERIALIZER ? std::vector<bool>{false, true} : std::vector<bool>{true};
  for (const bool kernels_tell : ways) {
    Capturing kernels;
    set_device_kernels(c10::kPrivateUse1, kernels_tell ? &kernels : nullptr);
    const auto capture = [&](bool on) { kernels_tell ? void(kernels.on = on) : mock::set_capturing(on); };
    const auto source = device_numbers(100);
    const auto copy = clone(source);
    const auto other = device_numbers(50);
    capture(true);
    mock::clear_log();
    for (const auto& act : std::vector<std::function<void()>>{[&] { copy.add_(1); }, [&] { copy.mutable_data_ptr(); },
                                                              [&] { copy.fill_(1); },
                                                              [&] {
                                                                at::_foreach_add_({other, copy}, 1);
                                                              }}) {
      try {
        act();
        ADD_FAILURE() << "nothing was raised";
      } catch (const c10::Error& error) {
        const std::string text = error.what();
        for (const auto* part : {"graph is being captured", "torchcow.materialize(...)", "400 bytes"}) {
          EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is missing in: " << text;
        }
      }
    }
    EXPECT_EQ(mock::log(), Lines{});
    EXPECT_TRUE(shared(copy) && shared(source) && same_memory(copy, source));
    EXPECT_EQ(refusal(other), Reason::capture);
    capture(false);
    copy.add_(1);
    EXPECT_TRUE(holds(source, 1));
    EXPECT_TRUE(holds(copy, 2));
    EXPECT_TRUE(holds(other, 1));
    set_device_kernels(c10::kPrivateUse1, nullptr);
  }
}

// Broken by: a steal that raises although nothing has to be waited for.
TEST_F(Streams, AStealWithoutReadersIsPossibleDuringACapture) {
  if (!TORCHCOW_TORCH_HAS_MATERIALIZER) GTEST_SKIP() << "this torch does not tell";
  auto source = device_numbers(100);
  const auto copy = clone(source);
  source.reset();
  mock::set_capturing(true);
  mock::clear_log();
  copy.add_(1);
  EXPECT_TRUE(holds(copy, 2));
  EXPECT_EQ(mock::log({"copy", "allocate"}), Lines{});
}

// Broken by: `raw_pointer` that is not looked at.
TEST_F(Streams, ARawPointerWaitsOnTheHost) {
  const auto source = device_numbers(100);
  const auto copy = clone(source);
  mock::clear_log();
  copy.mutable_data_ptr();
  const auto lines = mock::log({"copy", "synchronize"});
  EXPECT_EQ(lines, (Lines{"copy 400 on 0", "synchronize 0"}));
  mock::clear_log();
  auto operated = clone(source);
  operated.add_(1);
  EXPECT_EQ(mock::log({"synchronize"}), Lines{}) << "an operator is queued behind the copy";
  mock::clear_log();
  const auto thief = clone(source);
  operated.reset();
}

// Broken by: `PlainOperators` or a guard left out; copies on the device that happens to be current.
TEST_F(Streams, EachDeviceHasItsOwnStreams) {
  const auto first = numbers_on(0, 100);
  const auto second = numbers_on(1, 100);
  const auto copies = clone({first, second});
  const OnStream on_first(2, 0);
  const OnStream on_second(3, 1);
  mock::clear_log();
  const std::vector<WriteTarget> targets{{&storage_impl(copies[0])}, {&storage_impl(copies[1])}};
  materialize(targets, {"test"});
  auto lines = mock::log({"copy"});
  std::sort(lines.begin(), lines.end());
  EXPECT_EQ(lines, (Lines{"copy 400 on 1:3", "copy 400 on 2"}));
  EXPECT_EQ(storage_impl(copies[1]).device(), mock::device(1));
}

/// Counts calls, and does the copies.
struct FakeKernels final : DeviceKernels {
  std::vector<std::size_t> calls;
  void copy(c10::ArrayRef<CopyJob> jobs, const c10::Stream& stream) override {
    calls.push_back(jobs.size());
    for (const auto& job : jobs) {
      mock::reads(job.src, job.bytes, stream);
      mock::writes(job.dst, job.bytes, stream);
      std::memcpy(job.dst, job.src, job.bytes);
    }
  }
  bool equal(c10::ArrayRef<CompareJob>, const c10::Stream&) override { return true; }
  std::vector<std::uint64_t> checksums(c10::ArrayRef<ByteRange> ranges, const c10::Stream& stream) override {
    std::vector<std::uint64_t> sums;
    for (const auto& range : ranges) {
      mock::reads(range.data, range.bytes, stream);
      sums.push_back(host_checksum(range.data, range.bytes));
    }
    return sums;
  }
  bool capturing(const c10::Stream&) override { return false; }
};

// Broken by: `queue` that never asks for kernels; one that calls them once per job.
TEST_F(Streams, ManyCopiesGoInOneLaunch) {
  FakeKernels kernels;
  set_device_kernels(c10::kPrivateUse1, &kernels);
  std::vector<at::Tensor> sources;
  for (int i = 1; i <= 7; ++i) sources.push_back(device_numbers(10 * i));
  const auto copies = clone(sources);
  const OnStream on(2);
  mock::clear_log();
  at::_foreach_add_(copies, 1);
  EXPECT_EQ(kernels.calls, std::vector<std::size_t>{7});
  EXPECT_EQ(mock::log({"copy"}), Lines{});
  for (const auto& copy : copies) EXPECT_TRUE(holds(copy, 2));
  for (const auto& source : sources) EXPECT_TRUE(holds(source, 1));
}

// Broken by: L1 without multi-tensor operators; the kernel on the mock writes through const pointers, as CUDA's does.
TEST_F(Streams, AMultiTensorOperatorThatWritesThroughConstPointers) {
  const std::vector<at::Tensor> sources{device_numbers(100), device_numbers(200)};
  const auto copies = clone(sources);
  at::_foreach_add_(sources, 1);
  for (const auto& source : sources) EXPECT_TRUE(holds(source, 2));
  for (const auto& copy : copies) EXPECT_TRUE(holds(copy, 1));
}

// Broken by: a failed allocation on the device that leaves a block given up, or an event on it.
TEST_F(Streams, EveryAllocationMayFail) {
  for (int failing = 0; failing < 3; ++failing) {
    const std::vector<at::Tensor> sources{device_numbers(100), device_numbers(200), device_numbers(300)};
    const auto copies = clone(sources);
    mock::fail_allocation(failing);
    EXPECT_THROW(at::_foreach_add_(copies, 1), c10::OutOfMemoryError);
    mock::fail_allocation(-1);
    for (std::size_t i = 0; i < copies.size(); ++i)
      EXPECT_TRUE(shared(copies[i]) && same_memory(copies[i], sources[i]));
    at::_foreach_add_(copies, 1);
    for (const auto& source : sources) EXPECT_TRUE(holds(source, 1));
    for (const auto& copy : copies) EXPECT_TRUE(holds(copy, 2));
  }
}

// Broken by: `finish_skipped` that copies on the host, or unordered.
TEST_F(Streams, ASkippedWriteIsRestored) {
  const auto source = device_numbers(100);
  const auto copy = clone(source);
  std::vector<Skipped> skipped;
  const OnStream on(2);
  materialize({{&storage_impl(copy), true}}, {"test"}, &skipped);
  ASSERT_EQ(skipped.size(), 1U);
  mock::clear_log();
  finish_skipped(skipped.front(), 40);
  EXPECT_EQ(mock::log({"wait", "copy", "record"}), (Lines{"wait 2 for 0", "copy 360 on 2", "record 2"}));
  EXPECT_EQ(static_cast<const float*>(copy.const_data_ptr())[10], 11);
}

// Broken by: `verify` that reads blocks of a device without waiting for what was written before the clone.
TEST_F(Streams, VerifyLooksAtDevices) {
  FakeKernels kernels;
  for (const bool with_kernels : {false, true}) {
    set_device_kernels(c10::kPrivateUse1, with_kernels ? &kernels : nullptr);
    arm_fingerprints(true);
    const auto source = device_numbers(100);
    const auto copy = clone(source);
    const OnStream on(4);
    std::size_t looked_at = 0;
    EXPECT_TRUE(verify(looked_at).empty());
    EXPECT_EQ(looked_at, 1U);
    auto* byte = static_cast<char*>(const_cast<void*>(copy.const_data_ptr()));
    *byte ^= 1;
    EXPECT_EQ(verify(looked_at).size(), 1U);
    *byte ^= 1;
    arm_fingerprints(false);
    const OnStream back(0);
    mock::order(mock::stream(4), mock::stream(0));
  }
}

// Broken by: operators that run while the engine's mutex is held: the first one of a thread takes it again.
TEST_F(Streams, VerifyInAThreadThatNeverWrote) {
  arm_fingerprints(true);
  const auto source = device_numbers(100);
  const auto copy = clone(source);
  std::thread([] {
    std::size_t looked_at = 0;
    EXPECT_TRUE(verify(looked_at).empty());
    EXPECT_EQ(looked_at, 1U);
  }).join();
  arm_fingerprints(false);
}

/// A tensor, and the value and the stream that a user who knows nothing of torchcow has in mind for it.
struct Mine {
  at::Tensor tensor;
  float value;
  std::size_t stream;
};

// Each tensor stays on its stream; clones are handed over to another one as a deep copy would be, by waiting for the
// stream that made it. Whatever the engine shares, copies or steals below that, nothing may be unordered.
// Broken by: each single wait, event or use that stream_order.cpp makes.
TEST_F(Streams, ARandomWalk) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    const auto pick = [&](std::size_t count) { return static_cast<std::size_t>(random()) % count; };
    std::vector<Mine> tensors;
    tensors.push_back({device_numbers(64), 1, 0});
    for (int step = 0; step < 150; ++step) {
      const auto victim = pick(tensors.size());
      auto& mine = tensors[victim];
      const auto other_stream = pick(4);
      switch (pick(6)) {
        case 0: {
          const OnStream on(mine.stream);
          tensors.push_back({clone(mine.tensor), mine.value, mine.stream});
          break;
        }
        case 1: {  // made here, to be used there: the user orders the streams, and tells the allocator
          const OnStream on(mine.stream);
          const auto handed_over = clone(mine.tensor);
          mock::order(mock::stream(mine.stream), mock::stream(other_stream));
          at::Tensor(handed_over).record_stream(mock::stream(other_stream));
          tensors.push_back({handed_over, mine.value, other_stream});
          break;
        }
        case 2: {
          const OnStream on(mine.stream);
          mine.tensor.add_(1);
          mine.value += 1;
          break;
        }
        case 3: {
          const OnStream on(mine.stream);
          mine.tensor.sum();
          break;
        }
        case 4: {
          const OnStream on(mine.stream);
          mine.tensor.fill_(5);
          mine.value = 5;
          break;
        }
        case 5:
          if (tensors.size() > 1) {
            const OnStream on(pick(4));
            tensors.erase(tensors.begin() + static_cast<std::ptrdiff_t>(victim));
          }
          break;
      }
      const auto hazards = mock::take_hazards();
      ASSERT_EQ(hazards, Lines{}) << "seed " << seed << ", step " << step;
    }
    for (const auto& mine : tensors) EXPECT_TRUE(holds(mine.tensor, mine.value));
  }
}

}  // namespace
