// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "storage.h"

#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <thread>

/// Blocks and sharers: who reads which bytes.
///
/// A *block* is one allocation whose bytes nobody may change while two or more sharers read it. A
/// *sharer* is one torch storage that reads a block or a span of it; the storage that was cloned
/// becomes a sharer like its clones. What a feature knows of a block or a sharer is in a type of its own (exposure.h,
/// probation.h, reserve.h), to which these structs only refer: it moves with them, in steps that cannot fail.
///
/// Invariants (numbered as in DESIGN.md)
///   I1  The bytes of a block do not change while it has a sharer.
///   I2  A sharer's storage hands out no mutable pointer before it is materialized.
///   I3  A block lives as long as it has a sharer, or a storage that left it may still be read there (retire.h).
///   I4  A sharer's span lies within its block.
///
/// Ownership: a block owns the original DataPtr unchanged, so the memory's own deleter frees it and its own allocator
/// understands `record_stream`. The sharers own the block together. A sharer belongs to its storage: it ends when the
/// storage is materialized, is resized or dies.
///
/// Threads: the engine's mutex (engine_state.h) guards all fields that change.

namespace torchcow {

struct Block;
struct Exposure;
struct Probation;
class Reserve;
class StreamOrder;

/// One storage that reads `bytes` bytes of `block`, from `offset` on.
struct Sharer {
  Block* block;
  std::size_t offset;
  std::size_t bytes;
  c10::StorageImpl* storage;                       ///< nullptr: the storage left while a materialization was under way
  std::optional<c10::Stream> home = std::nullopt;  ///< the stream on which the clone was made; none on the CPU
  bool claimed = false;                            ///< a materialization is under way (materialize.h)
  std::thread::id claimant = {};
  std::uint64_t claim_epoch = 0;                 ///< fork epoch of the claim (engine_state.h)
  std::shared_ptr<Exposure> exposure = nullptr;  ///< raw pointers were handed out within torchcow.reading (exposure.h)
  std::shared_ptr<Reserve> reserve = nullptr;    ///< memory for the first write; belongs to the claimant (reserve.h)
  Sharer* next = nullptr;                        ///< the block's list, or the garbage
  Sharer* previous = nullptr;

  [[nodiscard]] const void* data() const noexcept;
};

/// A storage that has moved away from a block, and may still be read there by an operator that
/// started before the move.
struct FormerSharer {
  WeakStorage storage;
  double left_at = 0;                            ///< seconds, steady clock
  std::shared_ptr<Exposure> exposure = nullptr;  ///< the storage's, when it moved away
};

/// A list, so that a former sharer can be made before the move, and added in a step that cannot fail.
using FormerSharers = std::list<FormerSharer>;

/// One allocation that several sharers read.
struct Block {
  c10::DataPtr data;
  std::size_t bytes;
  c10::Allocator* allocator;  ///< of the storage that brought the memory
  std::uint64_t id;
  std::size_t sharer_count = 0;
  Sharer* sharers = nullptr;
  FormerSharers former_sharers;              ///< but for those that read here no more (retire.h)
  std::size_t prune_former_sharers_at = 8;   ///< how many there may be until they are looked at again
  std::shared_ptr<StreamOrder> order;        ///< nullptr on the CPU
  std::optional<std::uint64_t> fingerprint;  ///< verify.h
  std::shared_ptr<Probation> probation;      ///< with the call that made it (probation.h)
  bool taken = false;                        ///< a steal is under way: no further sharers
  Block* next = nullptr;                     ///< one of the engine's lists, or the garbage
  Block* previous = nullptr;

  [[nodiscard]] c10::Device device() const noexcept { return data.device(); }
  [[nodiscard]] bool on_probation() const noexcept;
  void link(Sharer& sharer) noexcept;
  void unlink(Sharer& sharer) noexcept;
};

inline const void* Sharer::data() const noexcept { return static_cast<const char*>(block->data.get()) + offset; }

}  // namespace torchcow
