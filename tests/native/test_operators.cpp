// SPDX-License-Identifier: Apache-2.0
// Operators: what a schema says, and the tables that correct it.

#include "core/operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

namespace {

using namespace torchcow;

std::optional<OperatorTraits> traits(const char* name, const char* overload) {
  return traits_of(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

// Broken by: kernels for operators whose schema writes nothing; `written` that takes every tensor.
TEST(Operators, WhatTheSchemaSays) {
  EXPECT_FALSE(traits("aten::add", "Tensor"));
  EXPECT_FALSE(traits("aten::t_", "")) << "only sizes change";
  const auto add = traits("aten::add_", "Tensor");
  ASSERT_TRUE(add);
  ASSERT_EQ(add->written.size(), 1U);
  EXPECT_EQ(add->written.front(), 0U);
  EXPECT_FALSE(add->overwrites);
  const auto out = traits("aten::add", "out");
  ASSERT_TRUE(out);
  EXPECT_EQ(out->written.front(), out->argument_count - 1);
  EXPECT_TRUE(out->overwrites);
  EXPECT_EQ(traits("aten::_foreach_add_", "Scalar")->written, std::vector<std::uint32_t>{0});
  EXPECT_FALSE(traits("aten::set_", "source_Storage"));
  EXPECT_EQ(traits("aten::native_batch_norm", "")->only_if, 5U) << "the flag `training`";
  EXPECT_TRUE(traits("aten::resize_", "")->resizes);
  EXPECT_TRUE(traits("aten::record_stream", "")->records_stream);
}

// Broken by: an overwriter that may raise half-way; an `out=` form that reads its target.
TEST(Operators, OverwritersReadNothingAndRaiseBeforeTheyWrite) {
  EXPECT_TRUE(traits("aten::copy_", "")->overwrites);
  EXPECT_TRUE(traits("aten::bernoulli_", "float")->overwrites);
  EXPECT_FALSE(traits("aten::bernoulli_", "Tensor")->overwrites) << "stops at a probability that is none";
  EXPECT_TRUE(traits("aten::div", "out")->overwrites);
  EXPECT_FALSE(traits("aten::div", "out_mode")->overwrites) << "stops at a zero among integers";
  EXPECT_FALSE(traits("aten::addmm", "out")->overwrites) << "copies its input, and raises after that";
  EXPECT_TRUE(traits("aten::_foreach_copy_", "")->copies_pairs);
}

// Broken by: an entry of `metadata_writers` that is missing.
TEST(Operators, MetadataIsNoMemory) {
  for (const auto* name : {"aten::transpose_", "aten::swapaxes_", "aten::unsqueeze_", "aten::detach_"}) {
    EXPECT_FALSE(traits(name, "")) << name;
  }
}

}  // namespace
