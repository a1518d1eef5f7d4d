// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

/// What an operator writes: read off its schema, corrected by small tables.
///
/// Schemas mark written arguments, `Tensor(a!)`. The tables (operators.cpp) hold what schemas do not say:
///   unmarked writers   running statistics, collectives, cuDNN's weight flattening
///   metadata writers   marked as written, but only sizes, strides or flags change (`t_`, `set_`, ...)
///   overwriters        write every byte of their target and read none of it, so the copy can be skipped. They raise
///                      before they write, or not at all
///   raw readers        ask for mutable pointers only to read. On torch 2.11 and 2.12 two threads may not do so at
///   once,
///                      so the barrier gives them private memory first
///
/// Threads: any; the tables are constant. Failure: may throw std::bad_alloc.

namespace torchcow {

struct OperatorTraits {
  std::string name;
  std::vector<std::uint32_t> written;    ///< indices of arguments
  std::optional<std::uint32_t> only_if;  ///< a flag without which nothing is written (`training`)
  std::uint32_t argument_count = 0;
  bool overwrites = false;
  bool copies_pairs = false;    ///< _foreach_copy_: overwrites, unless a later pair can raise
  bool resizes = false;         ///< resize_ and its kin: written only if it grows
  bool records_stream = false;  ///< record_stream
};

/// Empty if the operator writes the memory of no tensor.
std::optional<OperatorTraits> traits_of(const c10::OperatorHandle& op);

}  // namespace torchcow
