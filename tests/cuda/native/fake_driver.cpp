// SPDX-License-Identifier: Apache-2.0

#include "fake_driver.h"

#include <barrier>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

namespace {

struct Index {
  unsigned x;
};

thread_local Index threadIdx;
thread_local Index blockIdx;
std::barrier<>* block_barrier = nullptr;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

void __syncthreads() { block_barrier->arrive_and_wait(); }

unsigned atomicExch(unsigned* at, unsigned value) { return __atomic_exchange_n(at, value, __ATOMIC_RELAXED); }

unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

}  // namespace

#define __device__
#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(threads)
#include "cuda/kernels.cu"

int fake_driver_load_error = 0;
int fake_driver_launch_error = 0;
int fake_driver_capture_error = 0;
int fake_driver_capture_status = 0;
int fake_driver_launches = 0;
int fake_driver_copies = 0;
int fake_driver_pushed = 0;

namespace {

using torchcow::cuda::JobTable;
using torchcow::cuda::threads_per_block;

constexpr const char* kernel_names[] = {"torchcow_copy", "torchcow_compare", "torchcow_checksum"};

/// A kernel without barriers: one thread of the device after the other.
template <class Kernel>
void run_in_turn(unsigned blocks, Kernel kernel) {
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads_per_block; ++threadIdx.x) {
      kernel();
    }
  }
}

/// A kernel with barriers: a real thread for each, all of them doing block after block.
template <class Kernel>
void run_together(unsigned blocks, Kernel kernel) {
  std::barrier<> barrier(threads_per_block);
  block_barrier = &barrier;
  std::vector<std::jthread> threads;
  for (unsigned i = 0; i < threads_per_block; ++i) {
    threads.emplace_back([&, i] {
      threadIdx.x = i;
      for (unsigned block = 0; block < blocks; ++block) {
        blockIdx.x = block;
        kernel();
        barrier.arrive_and_wait();
      }
    });
  }
}

void* const primary_context = &fake_driver_pushed;
thread_local void* current = nullptr;

}  // namespace

extern "C" {

using DevicePointer = unsigned long long;

int cuGetErrorName(int, const char** name) {
  *name = "FAKE_ERROR";
  return 0;
}
int cuGetErrorString(int, const char** text) {
  *text = "the fake driver was told to fail";
  return 0;
}
int cuDeviceGet(int* handle, int ordinal) {
  *handle = ordinal;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = primary_context;
  return 0;
}
int cuCtxGetCurrent(void** context) {
  *context = current;
  return 0;
}
int cuCtxPushCurrent_v2(void* context) {
  current = context;
  ++fake_driver_pushed;
  return 0;
}
int cuCtxPopCurrent_v2(void** context) {
  *context = current;
  current = nullptr;
  --fake_driver_pushed;
  return 0;
}
int cuStreamIsCapturing(void*, int* status) {
  *status = fake_driver_capture_status;
  return fake_driver_capture_error;
}
int cuStreamSynchronize(void*) { return 0; }
int cuThreadExchangeStreamCaptureMode(int* mode) {
  thread_local int mine = 0;
  std::swap(mine, *mode);
  return 0;
}
int cuMemcpyDtoDAsync_v2(DevicePointer dst, DevicePointer src, std::size_t bytes, void*) {
  std::memcpy(reinterpret_cast<void*>(dst), reinterpret_cast<const void*>(src), bytes);
  ++fake_driver_copies;
  return 0;
}
int cuMemcpyDtoHAsync_v2(void* dst, DevicePointer src, std::size_t bytes, void*) {
  std::memcpy(dst, reinterpret_cast<const void*>(src), bytes);
  return 0;
}
int cuMemsetD8Async(DevicePointer dst, unsigned char value, std::size_t bytes, void*) {
  std::memset(reinterpret_cast<void*>(dst), value, bytes);
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  *module = const_cast<void*>(image);
  return fake_driver_load_error;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  for (const char* const& known : kernel_names) {
    if (std::strcmp(known, name) == 0) {
      *function = const_cast<char*>(known);
      return 0;
    }
  }
  return 500;
}
int cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned,
                   void*, void** arguments, void**) {
  if (fake_driver_launch_error != 0) {
    return fake_driver_launch_error;
  }
  if (threads != threads_per_block || blocks == 0) {
    return 1;
  }
  ++fake_driver_launches;
  const JobTable& table = *static_cast<const JobTable*>(arguments[0]);
  if (function == kernel_names[0]) {
    run_in_turn(blocks, [&] { torchcow_copy(table); });
  } else if (function == kernel_names[1]) {
    unsigned* const differ = *static_cast<unsigned**>(arguments[1]);
    run_in_turn(blocks, [&] { torchcow_compare(table, differ); });
  } else {
    run_together(blocks, [&] { torchcow_checksum(table); });
  }
  return 0;
}
}
