// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

/// Stream order: on a device, work is ordered by streams, and a block is read on several of them.
///
///   1. A copy waits for what the source's stream wrote before the clone: one `ready` event for each device and call
///      of clone.
///   2. A storage that steals a block will write it, so it waits for everything that still reads the block: the copies
///      that siblings have queued (`after_copy`), and the streams that were recorded. These are the streams where
///      source and clones are at home, the stream on which a sharer was dropped, and those that the user named.
///   3. When a block is freed, its own allocator is notified of each stream that has read it, so that the memory is not
///      reused under a queued reader.
///
/// Invariant (I8): on a device, no queued work reads or writes memory that was given to another owner.
///
/// Streams: everything here only queues work; nothing waits on the host. All calls go through c10's interfaces for any
/// device, so one implementation serves CUDA and the tests' mock accelerator.
///
/// Threads: each StreamOrder has a mutex, held across calls of the device. It is taken without the engine's mutex,
/// under which no work is queued; `current_stream` only reads a thread's setting and may be called under it.
///
/// Failure: throws what the device throws, but for `before_free`, which runs in destructors and at exit.

namespace torchcow {

/// The stream that the calling thread uses on `device`.
c10::Stream current_stream(c10::Device device);

/// The stream on which memory of `device` usually lives, if the device has such a stream.
std::optional<c10::Stream> default_stream(c10::Device device) noexcept;

/// Is the stream being captured into a graph?
bool capturing(const c10::Stream& stream);

class StreamOrder {
 public:
  using Ready = std::shared_ptr<c10::Event>;

  explicit StreamOrder(Ready ready) : ready_(std::move(ready)) {}

  /// Records an event on the current stream of `device`.
  static Ready record_ready(c10::Device device);

  /// Before a copy from the block on `stream`.
  void before_copy(const c10::Stream& stream);
  /// After a copy from the block was queued on `stream`.
  void after_copy(const c10::DataPtr& data, const c10::Stream& stream);
  /// `stream` may read the block at any time: it is the home of source or clone, or the user called record_stream.
  void record_stream(const c10::DataPtr& data, const c10::Stream& stream);
  /// Must a steal on `stream` wait for something?
  [[nodiscard]] bool pending(const c10::Stream& stream);
  /// Makes `stream` wait for all readers of the block.
  void before_steal(const c10::Stream& stream);
  /// Has no reader come since `before_steal`? For checks of I8.
  [[nodiscard]] bool ready_to_steal();
  /// The block's memory is about to be freed.
  void before_free(const c10::DataPtr& data) noexcept;

 private:
  std::mutex mutex_;
  Ready ready_;
  std::vector<std::pair<c10::Stream, std::shared_ptr<c10::Event>>> copies_;
  std::vector<c10::Stream> recorded_;
  bool ready_to_steal_ = false;
};

}  // namespace torchcow
