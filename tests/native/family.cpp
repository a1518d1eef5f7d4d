// SPDX-License-Identifier: Apache-2.0

#include "family.h"

#include "core/accounting.h"
#include "core/allocate.h"
#include "core/barrier.h"
#include "core/inter_op.h"
#include "core/materialize.h"
#include "core/retire.h"
#include "core/verify.h"

#include <ATen/core/TensorBase.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <cstring>

namespace torchcow::testing {

namespace {

at::Tensor tensor_over(c10::intrusive_ptr<c10::StorageImpl> storage, const at::Tensor& like) {
  const auto backend = c10::computeDispatchKey(like.scalar_type(), at::kStrided, like.device());
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(std::move(storage)), c10::DispatchKeySet(backend),
                                                         like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  return tensor;
}

}  // namespace

at::Tensor clone(SharingCall& call, const at::Tensor& source, Reason& reason) {
  auto shared = call.share(storage_impl(source), source.storage_offset() * source.itemsize(), source.nbytes(), reason);
  if (!shared) return {};
  return tensor_over(std::move(shared), source);
}

std::vector<at::Tensor> clone(const std::vector<at::Tensor>& sources) {
  SharingCall call;
  std::vector<at::Tensor> clones;
  for (const auto& source : sources) {
    Reason reason;
    clones.push_back(clone(call, source, reason));
    EXPECT_TRUE(clones.back().defined()) << "not shared: " << describe(reason);
  }
  for (const auto& probation : call.probations()) SharingCall::confirm(*probation);
  return clones;
}

at::Tensor clone(const at::Tensor& source) { return clone(std::vector<at::Tensor>{source}).front(); }

Reason refusal(const at::Tensor& source) {
  SharingCall call;
  Reason reason;
  clone(call, source, reason);
  for (const auto& probation : call.probations()) SharingCall::confirm(*probation);
  return reason;
}

c10::StorageImpl& storage_impl(const at::Tensor& tensor) {
  return *tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

bool shared(const at::Tensor& tensor) { return usage(storage_impl(tensor)).block != nullptr; }

bool same_memory(const at::Tensor& a, const at::Tensor& b) { return a.const_data_ptr() == b.const_data_ptr(); }

::testing::AssertionResult same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes() || a.strides() != b.strides() || a.dtype() != b.dtype()) {
    return ::testing::AssertionFailure() << "shapes, strides or types differ: " << a.sizes() << " and " << b.sizes();
  }
  const auto* left = static_cast<const char*>(a.const_data_ptr());
  const auto* right = static_cast<const char*>(b.const_data_ptr());
  for (std::size_t at = 0; at < a.nbytes(); ++at) {
    if (left[at] != right[at])
      return ::testing::AssertionFailure() << "byte " << at << " of " << a.nbytes() << " differs";
  }
  return ::testing::AssertionSuccess();
}

at::Tensor deep_copy(const at::Tensor& tensor) {
  auto copy = at::empty(tensor.sizes(), at::TensorOptions().dtype(tensor.dtype()));
  std::memcpy(copy.mutable_data_ptr(), tensor.const_data_ptr(), tensor.nbytes());
  return copy;
}

std::vector<std::string> materializations() {
  std::vector<std::string> lines;
  for (const auto& event : events(true)) {
    if (event.way == Way::eager) continue;
    lines.push_back(std::string(to_string(event.way)) + " " + event.operator_name + " " + std::to_string(event.bytes));
  }
  return lines;
}

at::Tensor numbers(std::int64_t count) { return at::arange(1, count + 1, at::kFloat); }

void EngineTest::SetUpTestSuite() {
  static const bool installed = [] {
    install_write_hook();
    inter_op::watch();
    install_barrier();
    return true;
  }();
  static_cast<void>(installed);
}

void EngineTest::SetUp() {
  set_tiny_bytes(0);
  poison_skipped(true);
  arm_fingerprints(true);
  set_other_threads_probe([] { return false; });
  events(true);
}

void EngineTest::TearDown() {
  fail_allocation(-1);
  std::size_t looked_at = 0;
  EXPECT_TRUE(verify(looked_at).empty()) << "a shared block was written";
  const auto sum = totals();
  EXPECT_EQ(sum.blocks, 0U) << "blocks outlive the test";
  EXPECT_EQ(sum.sharers, 0U) << "sharers outlive the test";
  EXPECT_EQ(sum.unique_bytes, 0U);
  EXPECT_EQ(sum.retired_blocks, 0U) << "blocks stay retired";
}

}  // namespace torchcow::testing
