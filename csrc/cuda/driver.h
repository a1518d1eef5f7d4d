// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

/// The few functions of the CUDA driver that the kernels need, found at run time.
///
/// Why at run time: one extension serves CPU and CUDA builds of torch. It is built without CUDA headers, linked to no
/// CUDA library, and on a machine without the driver nothing of it is ever called. The driver and not the runtime
/// library, because each torch brings a runtime of its own, sometimes linked statically, while the driver of a process
/// is one.
///
/// Contexts: torch works in each device's primary context. A `Scope` makes that context current for the calling thread
/// and puts back what was current before; a thread that never touched the device has none. The primary context is
/// retained once per device and never released: blocks are materialized until the process ends, and torch keeps it as
/// long.
///
/// Ownership: one Driver per process, never destroyed. The kernels' module is loaded at their first use on a device and
/// stays loaded.
///
/// Threads: all members may be called from any thread. A device's context and kernels are looked up under that device's
/// lock, which is held across the driver only the first time, while they are made.
///
/// Streams: a stream is the driver's CUstream, which is c10::Stream::native_handle(); nullptr is the legacy default
/// stream. `copy`, `clear` and `launch` enqueue; `read` waits on the host. Loading a module allocates
/// device memory and may wait for the device; it is allowed while another thread captures a graph.
///
/// Failure: c10::Error with the driver's own name of the error, c10::OutOfMemoryError when it has no memory. Kernels
/// that cannot be loaded are no error: `launch` returns false and the caller does the same work by other means. Lack of
/// memory is forgotten, so that the next use tries again; any other reason is final for the device.

namespace torchcow::cuda {

/// The kernels of kernels.cu; the order is that of the names in driver.cpp.
enum class Kernel : std::uint8_t { copy, compare, checksum };

class Driver {
 public:
  /// The process's driver, or nullptr where there is none; `problem` then says why.
  [[nodiscard]] static Driver* get() noexcept;
  [[nodiscard]] static std::string problem();

  /// Makes a device's primary context current on this thread while it lives.
  class Scope {
   public:
    Scope(Driver& driver, c10::DeviceIndex device);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Driver* pushed_ = nullptr;
  };

  // The members below expect a Scope of the stream's device.

  /// Whether the stream is being captured, or may not be used because another capture is under way.
  [[nodiscard]] bool capturing(void* stream, c10::DeviceIndex device) const;

  void copy(void* dst, const void* src, std::size_t bytes, void* stream, c10::DeviceIndex device) const;
  void clear(void* dst, std::size_t bytes, void* stream, c10::DeviceIndex device) const;
  /// Copies device memory to the host and waits for it.
  void read(void* host, const void* src, std::size_t bytes, void* stream, c10::DeviceIndex device) const;

  /// Enqueues a kernel, or returns false when it cannot be had on this device.
  [[nodiscard]] bool launch(Kernel kernel, std::uint32_t blocks, std::uint32_t threads, void** arguments, void* stream,
                            c10::DeviceIndex device);

  /// Why kernels cannot be had on this device, or an empty string when they can or were not tried yet.
  [[nodiscard]] std::string kernel_problem(c10::DeviceIndex device);

 private:
  using Function = void*;
  static constexpr std::size_t kernel_count = 3;
  static constexpr std::size_t max_devices = 64;

  struct Device {
    std::mutex lock;  // guards all below
    void* context = nullptr;
    bool tried = false;
    std::array<Function, kernel_count> functions{};
    std::string problem;
  };

  struct Entries;

  explicit Driver(const Entries& entries) : entries_(entries) {}
  Device& at(c10::DeviceIndex device);
  void* context(c10::DeviceIndex device);
  Function function(Kernel kernel, c10::DeviceIndex device);
  std::string describe(int error) const;
  void check(int error, const char* what, c10::DeviceIndex device) const;

  const Entries& entries_;
  std::array<Device, max_devices> devices_;
};

}  // namespace torchcow::cuda
