// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"
#include "events.h"
#include "probation.h"
#include "stream_order.h"

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

/// Sharing: a new storage that reads the memory of another one.
///
/// The first share of a storage moves its memory into a new block and makes the storage a sharer of it, at the same
/// address: pointers that exist stay valid. Then the clone's storage becomes a sharer of the whole block or of a span.
///
/// Where sharing cannot be shown to be safe, nothing is shared and the answer is a Reason; the caller copies, which is
/// always right.
///
/// One SharingCall is one call of clone. It carries what belongs to all storages of the call: the `ready` event of each
/// device, and the blocks that the call made. Those are on *probation* (probation.h): at the end the caller looks for
/// raw pointers that left the process's view before (a holder shows as one reference more than the tensors account
/// for), and either confirms the block or takes the share back. If that fails for want of memory, the probation
/// outlives the call, and the next call that finds the block with a single sharer looks again.
///
/// The steps of a share, and their order: look at what needs no lock (`preflight`); under the engine's mutex decide by
/// what the source is now (`classify`); make all that is needed (`make`); and only then change storages and the block
/// (`publish`), where nothing can fail. A source that becomes a sharer is armed first and asked for writers then
/// (writing.h); if it has one, it gets its memory back.
///
/// Invariants: I4, a span lies within its block. A share that fails or is refused has changed nothing.
///
/// Threads: any; one call is used by one thread at a time.
///
/// Streams: a clone is at home on the stream that is current when it is made, and waits for nothing there.
///
/// Failure: throws what torch throws for a storage that must not be read, and std::bad_alloc for bookkeeping.

namespace torchcow {

class SharingCall {
 public:
  SharingCall();
  SharingCall(const SharingCall&) = delete;
  SharingCall& operator=(const SharingCall&) = delete;
  /// Takes back each share that is neither confirmed nor taken back by now.
  ~SharingCall();

  /// A storage over `bytes` bytes of `source`'s memory from `offset` on, or nullptr and the reason.
  c10::intrusive_ptr<c10::StorageImpl> share(c10::StorageImpl& source, std::size_t offset, std::size_t bytes,
                                             Reason& reason);

  /// The blocks that this call has to answer for.
  [[nodiscard]] const std::vector<std::shared_ptr<Probation>>& probations() const noexcept { return probations_; }

  /// Does `storage` read a block that this call has to answer for?
  [[nodiscard]] bool answers_for(const c10::StorageImpl& storage) const;

  /// Ends the probation of a block.
  static void confirm(Probation& probation);

  /// Takes a share back: every clone in the block gets memory of its own, and the source keeps its address.
  static void take_back(Probation& probation, Reason reason);

 private:
  struct Origin;
  struct Draft;

  [[nodiscard]] std::shared_ptr<StreamOrder> new_order(c10::Device device);
  [[nodiscard]] Origin classify(c10::StorageImpl& source, std::unique_lock<std::mutex>& lock) const;
  void make(Draft& draft, const Origin& origin, c10::StorageImpl& source, std::size_t offset, std::size_t bytes);

  std::uint64_t number_;
  std::map<c10::DeviceIndex, StreamOrder::Ready> ready_;
  std::vector<std::shared_ptr<Probation>> probations_;
};

/// Smaller storages on the CPU are copied. Returns the old value.
std::size_t set_tiny_bytes(std::size_t bytes) noexcept;
[[nodiscard]] bool tiny(c10::Device device, std::size_t bytes) noexcept;

/// Further device types to share on (tests: a mock accelerator).
void allow_device(c10::DeviceType type) noexcept;

}  // namespace torchcow
