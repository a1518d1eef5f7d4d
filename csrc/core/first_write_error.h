// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

#include <array>
#include <string>
#include <string_view>

/// The error of a first write that failed, in words.
///
/// What the message needs is noted where the failure happens. It is worded only after the claims were given back, as
/// names of tensors come from Python, where anything may run meanwhile.
///
/// Threads: any; without the engine's mutex.

namespace torchcow {

/// What is known at the moment of the failure. The storages are identities and are never followed.
struct FailureContext {
  const c10::StorageImpl* storage;
  std::size_t bytes;
  c10::Device device;
  std::size_t sharers;
  bool capture;                                     ///< a graph was being captured; otherwise there was no memory
  std::array<const c10::StorageImpl*, 8> others{};  ///< some that share the block
};

/// The context of a failure of `sharer`, which the caller has claimed, over `storage`.
[[nodiscard]] FailureContext failure_context(const Sharer& sharer, const c10::StorageImpl* storage, bool capture);

/// The message, for the first write by `operator_name`.
[[nodiscard]] std::string describe(const FailureContext& context, std::string_view operator_name);

/// Installed by the bindings: the dotted name of the tensor over a storage with this identity; may be empty. Called on
/// failures only, without any lock.
void set_name_resolver(std::string (*resolve)(const c10::StorageImpl* storage)) noexcept;

}  // namespace torchcow
