// SPDX-License-Identifier: Apache-2.0

#include "driver.h"

#include <c10/util/Exception.h>

#include <dlfcn.h>

#include <type_traits>

#ifndef TORCHCOW_NO_FATBIN
extern "C" const unsigned char torchcow_cuda_fatbin[];
#endif

namespace torchcow::cuda {
namespace {

using DevicePointer = unsigned long long;

constexpr int success = 0;
constexpr int out_of_memory = 2;
constexpr int capture_implicit = 906;
constexpr int capture_mode_relaxed = 2;

constexpr std::array<const char*, 3> kernel_names{"torchcow_copy", "torchcow_compare", "torchcow_checksum"};

const void* fatbin() noexcept {
#ifdef TORCHCOW_NO_FATBIN
  return nullptr;
#else
  return torchcow_cuda_fatbin;
#endif
}

DevicePointer address(const void* pointer) noexcept { return reinterpret_cast<DevicePointer>(pointer); }

}  // namespace

struct Driver::Entries {
  int (*get_error_name)(int, const char**);
  int (*get_error_string)(int, const char**);
  int (*device_get)(int*, int);
  int (*primary_context_retain)(void**, int);
  int (*context_get)(void**);
  int (*context_push)(void*);
  int (*context_pop)(void**);
  int (*stream_is_capturing)(void*, int*);
  int (*stream_synchronize)(void*);
  int (*exchange_capture_mode)(int*);
  int (*copy_device_to_device)(DevicePointer, DevicePointer, std::size_t, void*);
  int (*copy_device_to_host)(void*, DevicePointer, std::size_t, void*);
  int (*fill)(DevicePointer, unsigned char, std::size_t, void*);
  int (*module_load)(void**, const void*);
  int (*module_get_function)(void**, void*, const char*);
  int (*launch_kernel)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                       void**);

  std::string missing;

  Entries() noexcept : missing("libcuda.so.1 cannot be opened") {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    missing.clear();
    const auto find = [&](auto& entry, const char* name) {
      entry = reinterpret_cast<std::remove_reference_t<decltype(entry)>>(dlsym(library, name));
      if (entry == nullptr) missing = std::string("libcuda.so.1 has no ") + name;
    };
    find(get_error_name, "cuGetErrorName");
    find(get_error_string, "cuGetErrorString");
    find(device_get, "cuDeviceGet");
    find(primary_context_retain, "cuDevicePrimaryCtxRetain");
    find(context_get, "cuCtxGetCurrent");
    find(context_push, "cuCtxPushCurrent_v2");
    find(context_pop, "cuCtxPopCurrent_v2");
    find(stream_is_capturing, "cuStreamIsCapturing");
    find(stream_synchronize, "cuStreamSynchronize");
    find(exchange_capture_mode, "cuThreadExchangeStreamCaptureMode");
    find(copy_device_to_device, "cuMemcpyDtoDAsync_v2");
    find(copy_device_to_host, "cuMemcpyDtoHAsync_v2");
    find(fill, "cuMemsetD8Async");
    find(module_load, "cuModuleLoadData");
    find(module_get_function, "cuModuleGetFunction");
    find(launch_kernel, "cuLaunchKernel");
  }

  static const Entries& get() noexcept {
    static const Entries* const entries = new Entries;
    return *entries;
  }
};

namespace {

/// Lets this thread do, while it lives, what would otherwise break a graph that another thread captures.
template <class Exchange>
class RelaxedCapture {
 public:
  explicit RelaxedCapture(Exchange exchange) : exchange_(exchange) { exchange_(&mode_); }
  ~RelaxedCapture() { exchange_(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  Exchange exchange_;
  int mode_ = capture_mode_relaxed;
};

}  // namespace

Driver* Driver::get() noexcept {
  static Driver* const driver = Entries::get().missing.empty() ? new Driver(Entries::get()) : nullptr;
  return driver;
}

std::string Driver::problem() { return Entries::get().missing; }

std::string Driver::describe(int error) const {
  const char* name = nullptr;
  const char* text = nullptr;
  entries_.get_error_name(error, &name);
  entries_.get_error_string(error, &text);
  return c10::str(name ? name : "unknown error", " (", text ? text : std::to_string(error), ")");
}

void Driver::check(int error, const char* what, c10::DeviceIndex device) const {
  if (C10_LIKELY(error == success)) return;
  const std::string message =
      c10::str("torchcow: cannot ", what, " on cuda:", static_cast<int>(device), ": ", describe(error));
  TORCH_CHECK_WITH(OutOfMemoryError, error != out_of_memory, message);
  TORCH_CHECK(false, message);
}

Driver::Device& Driver::at(c10::DeviceIndex device) {
  TORCH_CHECK(device >= 0 && static_cast<std::size_t>(device) < max_devices,
              "torchcow: expected a CUDA device index below ", max_devices, ", got ", static_cast<int>(device));
  return devices_[static_cast<std::size_t>(device)];
}

void* Driver::context(c10::DeviceIndex device) {
  Device& state = at(device);
  const std::scoped_lock guard(state.lock);
  if (state.context == nullptr) {
    int handle = 0;
    check(entries_.device_get(&handle, device), "find the device", device);
    check(entries_.primary_context_retain(&state.context, handle), "retain the primary context", device);
  }
  return state.context;
}

Driver::Scope::Scope(Driver& driver, c10::DeviceIndex device) {
  void* const wanted = driver.context(device);
  void* current = nullptr;
  driver.check(driver.entries_.context_get(&current), "read the current context", device);
  if (current != wanted) {
    driver.check(driver.entries_.context_push(wanted), "enter the primary context", device);
    pushed_ = &driver;
  }
}

Driver::Scope::~Scope() {
  if (pushed_ != nullptr) {
    void* popped = nullptr;
    pushed_->entries_.context_pop(&popped);
  }
}

bool Driver::capturing(void* stream, c10::DeviceIndex device) const {
  int status = 0;
  const int error = entries_.stream_is_capturing(stream, &status);
  if (error == capture_implicit) return true;
  check(error, "ask whether the stream is being captured", device);
  return status != 0;
}

void Driver::copy(void* dst, const void* src, std::size_t bytes, void* stream, c10::DeviceIndex device) const {
  check(entries_.copy_device_to_device(address(dst), address(src), bytes, stream), "copy a block", device);
}

void Driver::clear(void* dst, std::size_t bytes, void* stream, c10::DeviceIndex device) const {
  check(entries_.fill(address(dst), 0, bytes, stream), "clear memory", device);
}

void Driver::read(void* host, const void* src, std::size_t bytes, void* stream, c10::DeviceIndex device) const {
  const RelaxedCapture relaxed(entries_.exchange_capture_mode);
  check(entries_.copy_device_to_host(host, address(src), bytes, stream), "read a block", device);
  check(entries_.stream_synchronize(stream), "wait for a stream", device);
}

Driver::Function Driver::function(Kernel kernel, c10::DeviceIndex device) {
  Device& state = at(device);
  const std::scoped_lock guard(state.lock);
  if (!state.tried) {
    if (fatbin() == nullptr) {
      state.tried = true;
      state.problem = "built without nvcc";
      return nullptr;
    }
    const RelaxedCapture relaxed(entries_.exchange_capture_mode);
    void* module = nullptr;
    int error = entries_.module_load(&module, fatbin());
    std::array<Function, kernel_count> found{};
    for (std::size_t i = 0; i < kernel_count && error == success; ++i) {
      error = entries_.module_get_function(&found[i], module, kernel_names[i]);
    }
    state.tried = error != out_of_memory;
    state.problem = error == success ? std::string() : "the kernels cannot be loaded: " + describe(error);
    if (error == success) state.functions = found;
  }
  return state.functions[static_cast<std::size_t>(kernel)];
}

bool Driver::launch(Kernel kernel, std::uint32_t blocks, std::uint32_t threads, void** arguments, void* stream,
                    c10::DeviceIndex device) {
  const Function function = this->function(kernel, device);
  if (function == nullptr) return false;
  const int error = entries_.launch_kernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, nullptr);
  // A module may be loaded lazily, by the first launch, and that may find no memory left.
  if (error == out_of_memory) return false;
  check(error, kernel_names[static_cast<std::size_t>(kernel)], device);
  return true;
}

std::string Driver::kernel_problem(c10::DeviceIndex device) {
  Device& state = at(device);
  const std::scoped_lock guard(state.lock);
  return state.problem;
}

}  // namespace torchcow::cuda
