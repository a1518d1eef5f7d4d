#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

/// What an operator writes: read off its schema, corrected by a small table.
///
/// Schemas mark written arguments, `Tensor(a!)`. The table (operators.cpp) holds what they do not say:
///   unmarked writers   running statistics, collectives, cuDNN's weight flattening
///   metadata writers   marked as written, but only sizes, strides or flags change (`t_`, `set_`, ...)
///   overwriters        write every byte of their target and read none of it: the copy can be skipped. They raise
///                      before they write, or not at all
///   raw readers        ask for mutable pointers only to read; on torch 2.11 and 2.12 two threads may
///                      not do so at once, so the barrier gives them private memory first

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

/// Nothing if the operator writes no tensor's memory.
std::optional<OperatorTraits> traits_of(const c10::OperatorHandle& op);

}  // namespace torchcow
