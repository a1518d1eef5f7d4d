// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the unit tests of the engine share: a way to clone a tensor, and a fixture that checks the books.
///
/// `clone` does what the bindings do: share the tensor's own span, confirm the call.

#include "core/events.h"
#include "core/share.h"

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace torchcow::testing {

/// Clones of `sources`, made in one call. Each must be shareable.
std::vector<at::Tensor> clone(const std::vector<at::Tensor>& sources);
at::Tensor clone(const at::Tensor& source);

/// A clone made in `call`, which the caller has to confirm; an undefined tensor and the reason where nothing is shared.
at::Tensor clone(SharingCall& call, const at::Tensor& source, Reason& reason);

/// Why `source` is not shared; Reason::none if it is.
Reason refusal(const at::Tensor& source);

c10::StorageImpl& storage_impl(const at::Tensor& tensor);

/// Is the tensor's storage a sharer?
bool shared(const at::Tensor& tensor);

/// Do both read the same memory?
bool same_memory(const at::Tensor& a, const at::Tensor& b);

/// Same bits in the same order; looks through const pointers only.
::testing::AssertionResult same_bits(const at::Tensor& a, const at::Tensor& b);

/// A deep copy that the engine knows nothing of, and that wakes nothing.
at::Tensor deep_copy(const at::Tensor& tensor);

/// 'way operator bytes' of each materialization since the last call, in the order in which they happened.
std::vector<std::string> materializations();

/// Numbers that differ everywhere.
at::Tensor numbers(std::int64_t count);

/// Nothing is tiny, skipped memory is poisoned, every block has a checksum, and no other thread is inside of an
/// operator. After the test: no block was damaged, none lives, none is retired.
class EngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite();
  void SetUp() override;
  void TearDown() override;
};

}  // namespace torchcow::testing
