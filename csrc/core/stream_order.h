#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

/// Stream order: on a device, 'before' is a matter of streams, and a block has readers on several.
///
///   1. What the source's stream wrote before the clone must be there before another stream copies it:
///      one `ready` event per device and clone call, which every copy waits for.
///   2. Who steals a block will write into it, so it waits for what still reads it: the copies that
///      siblings have queued (`after_copy`), and the streams that may read it: those where source and
///      clones are at home, where a sharer was dropped, and those that the user named.
///   3. Who frees a block must not give its memory away under a queued reader: the block's own
///      allocator is told about each stream that read it.
///
/// Streams: everything here only queues; nothing waits on the host. Everything goes through c10's
/// device-generic interfaces, so the same code serves CUDA and the tests' mock accelerator.
///
/// Threads: guarded by a mutex of its own, as device calls may not run under the engine's.

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
  /// `stream` may read the block without a word: it is at home there, or the user said so.
  void record_stream(const c10::DataPtr& data, const c10::Stream& stream);
  /// Must a steal on `stream` wait for something?
  [[nodiscard]] bool pending(const c10::Stream& stream);
  /// Makes `stream` wait for all readers of the block.
  void before_steal(const c10::Stream& stream);
  /// The last moment of the block's memory. Never throws: it runs in destructors, also at exit.
  void before_free(const c10::DataPtr& data) noexcept;

 private:
  std::mutex mutex_;
  Ready ready_;
  std::vector<std::pair<c10::Stream, std::shared_ptr<c10::Event>>> copies_;
  std::vector<c10::Stream> recorded_;
};

}  // namespace torchcow
