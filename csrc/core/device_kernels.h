// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/DeviceType.h>
#include <c10/core/Stream.h>
#include <c10/util/ArrayRef.h>

#include <cstddef>
#include <cstdint>
#include <vector>

/// The few bulk operations on device memory that torch has no operator for: copy many ranges in one launch, compare
/// ranges bit by bit, sum their checksums, and ask whether a stream is being captured into a graph.
///
/// Why a seam: the core knows no CUDA. Whoever knows a device type registers a `DeviceKernels` for it, once, when the
/// extension is loaded; where none is registered the core does the same work through torch operators, more slowly. A
/// test registers one of its own and sees every call.
///
/// Ownership: nobody owns the registered object; it lives as long as the process, because blocks are materialized until
/// the very end of it. Jobs and ranges are read during the call only; the memory they point to belongs to the caller.
///
/// Threads: every member may be called from any thread, several at a time, with or without the GIL; none takes it.
/// Registration happens before use; a reader sees either no kernels or complete ones.
///
/// Streams: everything is ordered on the stream that is passed. `copy` returns before its work is done. `equal` and
/// `checksums` wait on the host for their own work. None records events or tells an allocator about the stream: the
/// caller keeps the memory alive until the stream is past the call.
///
/// Failure: c10::Error, with the device and the device's own words. A `copy` that threw may have written to any of its
/// destinations, and to nothing else.

namespace torchcow {

/// Copy `bytes` bytes; the two ranges lie on the stream's device and do not overlap.
struct CopyJob {
  void* dst;
  const void* src;
  std::size_t bytes;
};

/// Compare `bytes` bytes of two ranges on the stream's device; they may overlap.
struct CompareJob {
  const void* a;
  const void* b;
  std::size_t bytes;
};

/// `bytes` bytes on the stream's device, at any alignment.
struct ByteRange {
  const void* data;
  std::size_t bytes;
};

class DeviceKernels {
 public:
  virtual ~DeviceKernels() = default;

  /// Enqueue all jobs, in no particular order, in as few launches as possible. Destinations do not overlap.
  virtual void copy(c10::ArrayRef<CopyJob> jobs, const c10::Stream& stream) = 0;

  /// Whether every job's ranges hold the same bits (so NaN equals itself and 0.0 differs from -0.0). Waits on the host.
  [[nodiscard]] virtual bool equal(c10::ArrayRef<CompareJob> jobs, const c10::Stream& stream) = 0;

  /// One checksum per range, equal to `host_checksum` of the same bytes. Waits on the host.
  [[nodiscard]] virtual std::vector<std::uint64_t> checksums(c10::ArrayRef<ByteRange> ranges,
                                                             const c10::Stream& stream) = 0;

  /// Whether work enqueued on the stream now would be recorded into a graph, or would break a graph being recorded.
  [[nodiscard]] virtual bool capturing(const c10::Stream& stream) = 0;
};

/// Registers `kernels` for devices of this type; nullptr takes them away again.
void set_device_kernels(c10::DeviceType type, DeviceKernels* kernels);

/// The kernels for devices of this type, or nullptr: use torch operators.
[[nodiscard]] DeviceKernels* device_kernels(c10::DeviceType type) noexcept;

/// The checksum (checksum.h) of CPU memory.
[[nodiscard]] std::uint64_t host_checksum(const void* data, std::size_t bytes) noexcept;

}  // namespace torchcow
