// SPDX-License-Identifier: Apache-2.0

#include "bindings.h"

#include <c10/util/StringUtil.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/version.h>

#define TORCHCOW_TEXT(token) #token
#define TORCHCOW_TEXT_OF(macro) TORCHCOW_TEXT(macro)

namespace torchcow {

namespace {

/// `torchcow._native` looks for this in the file before it loads it: with another torch, loading alone may do harm.
[[gnu::used]] const char stamp[] =
    "torchcow was built for torch " TORCHCOW_TORCH_VERSION " with C++11 ABI " TORCHCOW_TEXT_OF(_GLIBCXX_USE_CXX11_ABI);

constexpr std::uint64_t minor_release(std::uint64_t abi_version) { return abi_version >> 48; }

}  // namespace

void refuse_other_torch() {
  const std::uint64_t running = aoti_torch_abi_version();
  if (minor_release(running) == minor_release(TORCH_ABI_VERSION)) return;
  throw py::import_error(c10::str("torchcow was built for torch ", TORCHCOW_TORCH_VERSION,
                                  ", and the torch that is loaded is release ", running >> 56, ".",
                                  running >> 48 & 0xff, ". Build torchcow again, against this torch"));
}

}  // namespace torchcow
