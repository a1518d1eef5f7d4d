// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "device_kernels.h"
#include "driver.h"

#include <string>

/// DeviceKernels for CUDA: the kernels of kernels.cu, or, where these cannot be had, the driver's own copies.
///
/// There are two reasons to be without kernels (the extension was built without nvcc; the embedded code does not fit
/// the device or the driver) and neither takes an operation away: `copy` then enqueues one driver copy per job, `equal`
/// and `checksums` bring the bytes to the host piece by piece. The answers are the same, and `capturing` never needed a
/// kernel. Only without libcuda.so.1, or on a torch that has no CUDA, is nothing registered.
///
/// Ownership, threads, streams and failure are those of core/device_kernels.h. Two additions:
/// - `equal` and `checksums` take a few bytes of device memory from torch's allocator, on the given stream, for their
///   results; `copy` allocates nothing, because it must work when memory is short (job_table.h).
/// - They wait with whatever locks the caller holds, the GIL included.

namespace torchcow {

class CudaKernels final : public DeviceKernels {
 public:
  /// `driver` outlives this object.
  explicit CudaKernels(cuda::Driver& driver) : driver_(driver) {}

  void copy(c10::ArrayRef<CopyJob> jobs, const c10::Stream& stream) override;
  [[nodiscard]] bool equal(c10::ArrayRef<CompareJob> jobs, const c10::Stream& stream) override;
  [[nodiscard]] std::vector<std::uint64_t> checksums(c10::ArrayRef<ByteRange> ranges,
                                                     const c10::Stream& stream) override;
  [[nodiscard]] bool capturing(const c10::Stream& stream) override;

 private:
  bool equal_on_host(c10::ArrayRef<CompareJob> jobs, void* stream, c10::DeviceIndex device);
  std::vector<std::uint64_t> checksums_on_host(c10::ArrayRef<ByteRange> ranges, void* stream, c10::DeviceIndex device);

  cuda::Driver& driver_;
};

/// Registers CudaKernels for c10::kCUDA if this torch and this machine have CUDA; otherwise leaves torch operators in
/// place. Initializes nothing: no context is made and no device memory is touched.
void install_cuda_kernels();

/// One line for diagnostics: what serves CUDA devices, and why not the kernels if it is not they.
[[nodiscard]] std::string cuda_kernels_status();

}  // namespace torchcow
