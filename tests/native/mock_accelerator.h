// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

/// A mock accelerator: two devices of type PrivateUse1, whose memory is the host's, and which log and check every step.
///
/// Work runs at once, in the order of the calls, so that its results are right whatever the streams say. What the
/// streams say is checked beside it: each stream has a vector clock, which events and host waits carry on. An access
/// that is not ordered behind the accesses that it conflicts with is a *hazard*: on a real device it might have read or
/// overwritten what others write or read. So is freeing memory under a reader on a stream that the allocator does not
/// know of (`recordDataPtrOnStream`), because the allocator gives the memory to the next one on its own stream.
///
/// The log has one line per step. Allocations are numbered; `name` tells a tensor's.
///
///   allocate #1 400 on 2         on the current stream, which becomes the memory's own
///   free #1
///   record 2                     an event, on stream 2
///   wait 3 for 2                 stream 3 waits for an event that was recorded on stream 2
///   use #1 on 3                  recordDataPtrOnStream
///   copy 400 on 2                a copy between or to devices
///   write #1 on 2                any other kernel that writes
///   synchronize 2                the host waits for stream 2
///
/// Threads: one lock around everything; the current device and streams are the calling thread's, as on CUDA.

namespace torchcow::testing::mock {

inline constexpr c10::DeviceIndex device_count = 2;
inline constexpr std::size_t stream_count = 8;

/// Registers guard, allocator and kernels, and lets the engine share on the device. Once.
void install();

c10::Device device(c10::DeviceIndex index = 0);
c10::Stream stream(std::size_t id, c10::DeviceIndex index = 0);

/// Makes a stream the current one of its device, until the end of the scope.
class OnStream {
 public:
  explicit OnStream(std::size_t id, c10::DeviceIndex index = 0);
  OnStream(const OnStream&) = delete;
  OnStream& operator=(const OnStream&) = delete;
  ~OnStream();

 private:
  c10::Stream before_;
};

/// `second` waits for everything that is queued on `first` now: what a careful user does.
void order(const c10::Stream& first, const c10::Stream& second);

/// While true, `isStreamCapturing` says so of every stream (torch 2.13 and newer ask).
void set_capturing(bool on);

/// What the log says since `clear_log`: all lines, or those that begin with one of `kinds`.
std::vector<std::string> log(const std::vector<std::string_view>& kinds = {});
void clear_log();

/// '#1': the allocation that an address lies in.
std::string name(const void* data);

/// Accesses without order since the last call.
std::vector<std::string> take_hazards();

/// Tells the checker of a kernel that reads or writes; for kernels that tests register themselves.
void reads(const void* data, std::size_t bytes, const c10::Stream& stream);
void writes(const void* data, std::size_t bytes, const c10::Stream& stream);
void note(std::string line);

/// Bytes allocated now, and the allocation with this number (from now on, 0-based) fails; -1 for none.
std::size_t live_bytes();
void fail_allocation(int after);

}  // namespace torchcow::testing::mock
