// SPDX-License-Identifier: Apache-2.0

// The dispatcher barrier: which operators it sees, and what it does around them.

#include "core/barrier.h"

#include "core/materialize.h"
#include "core/operators.h"
#include "family.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/add.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include <thread>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

using Lines = std::vector<std::string>;

/// Writes where it was given an address for reading, as CUDA's multi-tensor kernels do: the write hook sees nothing.
void write_through_const(const at::Tensor& self, double value) {
  std::fill_n(static_cast<float*>(const_cast<void*>(self.const_data_ptr())), self.numel(), static_cast<float>(value));
}

void write_const_(at::Tensor& self, double value) { write_through_const(self, value); }
void write_const_list_(at::TensorList self, double value) {
  for (const auto& tensor : self) write_through_const(tensor, value);
}
/// Writes half of its target, then fails.
void fail_(at::Tensor& self) {
  write_through_const(self.narrow(0, 0, self.numel() / 2), -1);
  TORCH_CHECK(false, "failed halfway");
}

std::function<void()> while_running;
void pause_(at::Tensor& self) {
  while_running();
  write_through_const(self, 1);
}

/// Operators that are registered when the barrier is installed already.
void register_operators() {
  static auto* library = new torch::Library(torch::Library::DEF, "barrier_test", std::nullopt, __FILE__, __LINE__);
  static bool once = false;
  if (std::exchange(once, true)) return;
  const auto composite = c10::DispatchKey::CompositeExplicitAutograd;
  library->def("write_const_(Tensor(a!) self, float value) -> ()");
  library->def("write_const_list_(Tensor(a!)[] self, float value) -> ()");
  library->def("fail_(Tensor(a!) self) -> ()");
  library->def("pause_(Tensor(a!) self) -> ()");
  library->impl("write_const_", torch::dispatch(composite, TORCH_FN(write_const_)));
  library->impl("write_const_list_", torch::dispatch(composite, TORCH_FN(write_const_list_)));
  library->impl("fail_", torch::dispatch(composite, TORCH_FN(fail_)));
  library->impl("pause_", torch::dispatch(composite, TORCH_FN(pause_)));
}

template <typename Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

class Barrier : public EngineTest {
 protected:
  static void SetUpTestSuite() {
    EngineTest::SetUpTestSuite();
    register_operators();
  }
};

// Broken by: `install_barrier` without the listener (nothing is covered).
TEST_F(Barrier, CoversWhatWrites) { EXPECT_GT(covered_operators(), 1200U); }

// Broken by: `any_shared` that is always false: the write hook saves the numbers, but knows no name.
TEST_F(Barrier, AnInPlaceOperatorIsNamed) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  copy.add_(at::ones({100}));
  EXPECT_EQ(materializations(), Lines{"copy aten::add_.Tensor 400"});
  EXPECT_TRUE(same_bits(source, numbers(100)));
  EXPECT_TRUE(same_bits(copy, numbers(100).add(1)));
}

// Broken by: kernels on reads; a barrier that looks at tensors and not at storages.
TEST_F(Barrier, WritesThroughViewsAreSeenAndReadsAreFree) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  const auto row = copy.view({10, 10}).select(0, 3).detach();
  EXPECT_EQ(row.add(1).sum().item<float>(), 365);
  EXPECT_TRUE(materializations().empty());
  op<void(at::Tensor&, double)>("barrier_test::write_const_").call(const_cast<at::Tensor&>(row), 7);
  EXPECT_EQ(materializations(), Lines{"copy barrier_test::write_const_ 400"});
  EXPECT_TRUE(same_bits(source, numbers(100)));
  EXPECT_EQ(row.sum().item<float>(), 70);
}

// Broken by: operators registered after `install_barrier` are not covered (no listener).
TEST_F(Barrier, OperatorsRegisteredLater) {
  auto source = numbers(100);
  auto copy = clone(source);
  op<void(at::Tensor&, double)>("barrier_test::write_const_").call(copy, 7);
  EXPECT_TRUE(same_bits(source, numbers(100)));
  EXPECT_EQ(copy.sum().item<float>(), 700);
  op<void(at::Tensor&, double)>("barrier_test::write_const_").call(source, 8);
  EXPECT_EQ(materializations(), (Lines{"copy barrier_test::write_const_ 400", "steal barrier_test::write_const_ 400"}));
}

// Broken by: a kernel that survives the operator it was made for, or is missing on the one that replaces it.
TEST_F(Barrier, AnOperatorThatComesAndGoes) {
  for (int round = 0; round < 3; ++round) {
    torch::Library library(torch::Library::DEF, "barrier_test_brief", std::nullopt, __FILE__, __LINE__);
    library.def("write_const_(Tensor(a!) self, float value) -> ()");
    library.impl("write_const_", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(write_const_)));
    const auto source = numbers(100);
    auto copy = clone(source);
    op<void(at::Tensor&, double)>("barrier_test_brief::write_const_").call(copy, 7);
    EXPECT_TRUE(same_bits(source, numbers(100)));
  }
}

// Broken by: an empty table of unmarked writers.
TEST_F(Barrier, RunningStatistics) {
  const std::vector<at::Tensor> sources{at::ones({4}), at::ones({4})};
  const auto copies = clone(sources);
  at::batch_norm(numbers(12).view({3, 4}), {}, {}, copies[0], copies[1], true, 0.1, 1e-5, false);
  for (const auto& source : sources) EXPECT_TRUE(same_bits(source, at::ones({4})));
  EXPECT_EQ(materializations(), (Lines{"copy aten::native_batch_norm 16", "copy aten::native_batch_norm 16"}));
}

// Broken by: a barrier that materializes the tensors of a list one operator call at a time.
TEST_F(Barrier, MultiTensorOperatorsFirstMaterializeAll) {
  std::vector<at::Tensor> sources;
  for (int i = 0; i < 5; ++i) sources.push_back(numbers(100));
  const auto copies = clone(sources);
  at::_foreach_add_(copies, 1);
  EXPECT_EQ(materializations(), Lines(5, "copy aten::_foreach_add_.Scalar 400"));
  for (const auto& source : sources) EXPECT_TRUE(same_bits(source, numbers(100)));
  for (const auto& copy : copies) EXPECT_TRUE(same_bits(copy, numbers(100).add(1)));
}

// A tensor that was made before the clone, and that nobody met, lies on a sharer's storage like any other.
// Broken by: a barrier that goes by marks on tensors.
TEST_F(Barrier, SeesWritesThroughAliasesFromBefore) {
  const auto source = numbers(100);
  auto view_from_before = source.view({10, 10});
  auto copy = clone(source);
  op<void(at::TensorList, double)>("barrier_test::write_const_list_").call({view_from_before}, 7);
  EXPECT_TRUE(same_bits(copy, numbers(100)));
  EXPECT_EQ(source.sum().item<float>(), 700);
  auto adopter = at::empty({0});
  const auto third = clone(source);
  adopter.set_(source);
  op<void(at::Tensor&, double)>("barrier_test::write_const_").call(adopter, 8);
  EXPECT_EQ(third.sum().item<float>(), 700);
  EXPECT_EQ(source.sum().item<float>(), 800);
}

// Broken by: `overwrites` that is not looked at (copy instead of skip).
TEST_F(Barrier, OverwritersSkipTheCopy) {
  const auto source = numbers(100);
  clone(source).fill_(1);
  clone(source).zero_();
  clone(source).copy_(numbers(100));
  auto out = clone(source);
  at::add_out(out, numbers(100), numbers(100));
  EXPECT_EQ(materializations(), (Lines{"skip aten::fill_.Scalar 400", "skip aten::zero_ 400", "skip aten::copy_ 400",
                                       "skip aten::add.out 400"}));
  EXPECT_TRUE(same_bits(out, numbers(100).mul(2)));
  const std::vector<at::Tensor> list{clone(source), clone(source)};
  at::_foreach_zero_(list);
  EXPECT_EQ(materializations(), Lines(2, "skip aten::_foreach_zero_ 400"));
}

// Broken by: `covers` that is always true; `references` that is not looked at. The poison would show.
TEST_F(Barrier, SkipsOnlyIfEveryByteIsOverwrittenAndNoneRead) {
  const auto source = numbers(100);
  const auto part = clone(source);
  part.narrow(0, 0, 50).zero_();
  EXPECT_TRUE(same_bits(part.narrow(0, 50, 50), source.narrow(0, 50, 50)));
  const auto itself = clone(source);
  itself.fill_(itself.select(0, 4));
  EXPECT_EQ(itself.sum().item<float>(), 500);
  auto out = clone(source);
  at::add_out(out, out, numbers(100));
  EXPECT_TRUE(same_bits(out, numbers(100).mul(2)));
  auto strided = clone(source);
  auto every_other = strided.as_strided({50}, {2});
  every_other.zero_();
  EXPECT_EQ(strided.sum().item<float>(), 2550);
  for (const auto& line : materializations()) {
    EXPECT_TRUE(line.starts_with("copy aten::")) << line;
  }
}

// Broken by: `finish_skipped(skip, 0)` left out in the handler of exceptions.
TEST_F(Barrier, AFailedOperatorLeavesWhatWasThere) {
  const auto source = numbers(100);
  auto copy = clone(source);
  EXPECT_THROW(copy.copy_(numbers(99)), c10::Error);
  EXPECT_TRUE(same_bits(copy, source));
  EXPECT_FALSE(shared(copy));
  copy = clone(source);
  EXPECT_THROW(op<void(at::Tensor&)>("barrier_test::fail_").call(copy), c10::Error);
  EXPECT_TRUE(same_bits(source, numbers(100))) << "the failed operator wrote into the block";
  EXPECT_TRUE(same_bits(copy.narrow(0, 50, 50), source.narrow(0, 50, 50)));
}

// The same for two relatives in one call: the first one skips, the second one is the last sharer.
// Broken by: a steal from under a skipped sibling.
TEST_F(Barrier, AFailedOperatorOnTwoRelatives) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  const std::vector<at::Tensor> both{source, copy};
  const std::vector<at::Tensor> values{at::full({100}, -1.0F), numbers(99)};
  EXPECT_THROW(at::_foreach_copy_(both, values), c10::Error);
  // The list is not atomic, with us or without: what was written before the failure may stay.
  for (const auto& tensor : both) {
    const auto first = tensor[0].item<float>();
    EXPECT_TRUE(same_bits(tensor, numbers(100)) || same_bits(tensor, at::full({100}, -1.0F)))
        << "begins with " << first;
  }
}

// Broken by: an `out=` of another size, of which only the written bytes are counted.
TEST_F(Barrier, AnOutOfAnotherSize) {
  for (const int size : {10, 1000}) {
    const auto source = numbers(100);
    auto out = clone(source);
    at::add_out(out, numbers(size), numbers(size));
    EXPECT_TRUE(same_bits(out, numbers(size).mul(2)));
    EXPECT_TRUE(same_bits(source, numbers(100)));
    const auto* bytes = static_cast<const float*>(storage_impl(out).data());
    if (size == 10) {
      EXPECT_EQ(bytes[50], 51) << "what the operator did not write is what was there";
    }
  }
}

// Broken by: `being_written` that is always false.
TEST_F(Barrier, WhatIsBeingWrittenIsNotShared_I6) {
  const auto source = numbers(100);
  auto copy = clone(source);
  while_running = [&] {
    std::thread([&] {
      EXPECT_EQ(refusal(copy), Reason::writing);
      EXPECT_EQ(refusal(source), Reason::none);
    }).join();
  };
  op<void(at::Tensor&)>("barrier_test::pause_").call(copy);
  EXPECT_EQ(refusal(copy), Reason::none);
}

}  // namespace
