// SPDX-License-Identifier: Apache-2.0

#include "cuda_kernels.h"

#include "checksum.h"
#include "job_table.h"

#include <c10/core/Allocator.h>
#include <c10/core/StreamGuard.h>
#include <c10/util/Exception.h>

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

namespace torchcow {
namespace {

using cuda::chunk_bytes;
using cuda::Driver;
using cuda::JobTable;
using cuda::Kernel;
using cuda::table_jobs;
using cuda::threads_per_block;

/// How much of a block the host looks at in one go when there are no kernels.
constexpr std::size_t staging_bytes = std::size_t{8} << 20;

/// Collects jobs and hands over full tables; `launch(table, blocks)` returns false to stop.
template <class Launch>
class TableFiller {
 public:
  explicit TableFiller(Launch launch) : launch_(std::move(launch)) {
    table_.count = 0;
    table_.first_chunk[0] = 0;
  }

  [[nodiscard]] bool add(const void* left, const void* right, std::size_t bytes) {
    if (bytes == 0) return true;
    const std::uint64_t chunks = (bytes - 1) / chunk_bytes + 1;
    constexpr std::uint64_t most = std::numeric_limits<std::int32_t>::max();
    TORCH_CHECK(chunks <= most, "torchcow: expected a range of at most ", most * chunk_bytes, " bytes, got ", bytes);
    if ((table_.count == table_jobs || table_.first_chunk[table_.count] + chunks > most) && !flush()) return false;
    const std::uint32_t i = table_.count++;
    table_.left[i] = left;
    table_.right[i] = right;
    table_.bytes[i] = bytes;
    table_.first_chunk[i + 1] = table_.first_chunk[i] + static_cast<std::uint32_t>(chunks);
    return true;
  }

  [[nodiscard]] bool flush() {
    if (table_.count == 0) return true;
    const bool launched = launch_(table_, table_.first_chunk[table_.count]);
    table_.count = 0;
    return launched;
  }

 private:
  JobTable table_;
  Launch launch_;
};

c10::DataPtr device_memory(std::size_t bytes, const c10::Stream& stream) {
  const c10::StreamGuard guard(stream);
  return c10::GetAllocator(c10::kCUDA)->allocate(bytes);
}

}  // namespace

void CudaKernels::copy(c10::ArrayRef<CopyJob> jobs, const c10::Stream& stream) {
  const c10::DeviceIndex device = stream.device_index();
  void* const handle = stream.native_handle();
  const Driver::Scope scope(driver_, device);
  TableFiller filler([&](JobTable& table, std::uint32_t blocks) {
    void* arguments[] = {&table};
    return driver_.launch(Kernel::copy, blocks, threads_per_block, arguments, handle, device);
  });
  const bool launched = std::all_of(jobs.begin(), jobs.end(),
                                    [&](const CopyJob& job) { return filler.add(job.dst, job.src, job.bytes); }) &&
                        filler.flush();
  if (!launched) {
    // Doing a job twice is harmless: sources do not change, destinations are read by nobody yet.
    for (const CopyJob& job : jobs) {
      if (job.bytes != 0) driver_.copy(job.dst, job.src, job.bytes, handle, device);
    }
  }
}

bool CudaKernels::equal(c10::ArrayRef<CompareJob> jobs, const c10::Stream& stream) {
  const c10::DeviceIndex device = stream.device_index();
  void* const handle = stream.native_handle();
  const c10::DataPtr flag = device_memory(sizeof(unsigned), stream);
  const Driver::Scope scope(driver_, device);
  driver_.clear(flag.get(), sizeof(unsigned), handle, device);
  TableFiller filler([&](JobTable& table, std::uint32_t blocks) {
    void* differ = flag.get();
    void* arguments[] = {&table, &differ};
    return driver_.launch(Kernel::compare, blocks, threads_per_block, arguments, handle, device);
  });
  const bool launched =
      std::all_of(jobs.begin(), jobs.end(),
                  [&](const CompareJob& job) { return job.a == job.b || filler.add(job.a, job.b, job.bytes); }) &&
      filler.flush();
  if (!launched) return equal_on_host(jobs, handle, device);
  unsigned differ = 0;
  driver_.read(&differ, flag.get(), sizeof(differ), handle, device);
  return differ == 0;
}

std::vector<std::uint64_t> CudaKernels::checksums(c10::ArrayRef<ByteRange> ranges, const c10::Stream& stream) {
  if (ranges.empty()) return {};
  const c10::DeviceIndex device = stream.device_index();
  void* const handle = stream.native_handle();
  const std::size_t result_bytes = ranges.size() * sizeof(std::uint64_t);
  const c10::DataPtr memory = device_memory(result_bytes, stream);
  const Driver::Scope scope(driver_, device);
  driver_.clear(memory.get(), result_bytes, handle, device);
  TableFiller filler([&](JobTable& table, std::uint32_t blocks) {
    void* arguments[] = {&table};
    return driver_.launch(Kernel::checksum, blocks, threads_per_block, arguments, handle, device);
  });
  bool launched = true;
  for (std::size_t i = 0; launched && i < ranges.size(); ++i) {
    launched = filler.add(ranges[i].data, static_cast<std::uint64_t*>(memory.get()) + i, ranges[i].bytes);
  }
  if (!launched || !filler.flush()) return checksums_on_host(ranges, handle, device);
  std::vector<std::uint64_t> result(ranges.size());
  driver_.read(result.data(), memory.get(), result_bytes, handle, device);
  for (std::size_t i = 0; i < ranges.size(); ++i) result[i] = checksum_finish(result[i], ranges[i].bytes);
  return result;
}

bool CudaKernels::capturing(const c10::Stream& stream) {
  const Driver::Scope scope(driver_, stream.device_index());
  return driver_.capturing(stream.native_handle(), stream.device_index());
}

bool CudaKernels::equal_on_host(c10::ArrayRef<CompareJob> jobs, void* stream, c10::DeviceIndex device) {
  std::vector<char> a(staging_bytes);
  std::vector<char> b(staging_bytes);
  for (const CompareJob& job : jobs) {
    for (std::size_t at = 0; at < job.bytes; at += staging_bytes) {
      const std::size_t bytes = std::min(staging_bytes, job.bytes - at);
      driver_.read(a.data(), static_cast<const char*>(job.a) + at, bytes, stream, device);
      driver_.read(b.data(), static_cast<const char*>(job.b) + at, bytes, stream, device);
      if (std::memcmp(a.data(), b.data(), bytes) != 0) return false;
    }
  }
  return true;
}

std::vector<std::uint64_t> CudaKernels::checksums_on_host(c10::ArrayRef<ByteRange> ranges, void* stream,
                                                          c10::DeviceIndex device) {
  std::vector<char> staging(staging_bytes);
  std::vector<std::uint64_t> result;
  result.reserve(ranges.size());
  for (const ByteRange& range : ranges) {
    std::uint64_t sum = 0;
    for (std::size_t at = 0; at < range.bytes; at += staging_bytes) {
      const std::size_t bytes = std::min(staging_bytes, range.bytes - at);
      driver_.read(staging.data(), static_cast<const char*>(range.data) + at, bytes, stream, device);
      sum += checksum_span(staging.data(), bytes, at / 8);
    }
    result.push_back(checksum_finish(sum, range.bytes));
  }
  return result;
}

namespace {

/// Why nothing is registered, or nullptr. A static string, so that it may be asked for at any time.
std::atomic<const char*> not_installed{"install_cuda_kernels() was not called"};

/// ROCm's torch calls its devices CUDA, but a HIP stream is nothing that libcuda could use.
bool torch_is_rocm() noexcept {
  void* const library = dlopen("libc10_hip.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library != nullptr) dlclose(library);
  return library != nullptr;
}

}  // namespace

void install_cuda_kernels() {
  if (!c10::impl::hasDeviceGuardImpl(c10::kCUDA)) {
    not_installed = "this torch was built without CUDA";
  } else if (torch_is_rocm()) {
    not_installed = "this torch was built for ROCm";
  } else if (Driver* const driver = Driver::get(); driver == nullptr) {
    not_installed = "no usable CUDA driver";
  } else {
    static DeviceKernels* const kernels = new CudaKernels(*driver);
    set_device_kernels(c10::kCUDA, kernels);
    not_installed = nullptr;
  }
}

std::string cuda_kernels_status() {
  if (const char* const reason = not_installed.load()) {
    const std::string problem = std::strcmp(reason, "no usable CUDA driver") == 0 ? ": " + Driver::problem() : "";
    return c10::str("torch operators (", reason, problem, ")");
  }
#ifdef TORCHCOW_NO_FATBIN
  return "CUDA driver copies (built without nvcc)";
#else
  const std::string problem = Driver::get()->kernel_problem(0);
  return problem.empty() ? "CUDA kernels" : c10::str("CUDA driver copies (", problem, ")");
#endif
}

}  // namespace torchcow
