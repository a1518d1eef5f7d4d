// SPDX-License-Identifier: Apache-2.0

#include "stack.h"

#include "python.h"

#include <pthread.h>

#include <algorithm>
#include <cstdint>

namespace torchcow {

namespace {

struct Bounds {
  std::uintptr_t low = 0;
  std::uintptr_t high = 0;
  std::uintptr_t margin = 0;

  Bounds() {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
    void* address = nullptr;
    std::size_t size = 0;
    if (pthread_attr_getstack(&attributes, &address, &size) == 0) {
      low = reinterpret_cast<std::uintptr_t>(address);
      high = low + size;
      // What one more level takes, user code included, with room to report the error.
      margin = std::min(size / 4, std::size_t{256} * 1024);
    }
    pthread_attr_destroy(&attributes);
  }
};

}  // namespace

void check_stack() {
  thread_local const Bounds bounds;
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  // A coroutine library may have moved us to a stack of its own, of which nothing is known.
  if (here < bounds.low || here >= bounds.high || here - bounds.low > bounds.margin) return;
  PyErr_SetString(PyExc_RecursionError, "the C stack is nearly used up in a deep copy");
  raise();
}

}  // namespace torchcow
