#pragma once

#include "block.h"
#include "ledger.h"
#include "stream_order.h"

#include <map>
#include <vector>

/// Sharing: a new storage that reads the memory of another one.
///
/// The first share of a storage moves its memory into a new block and makes the storage a sharer of
/// it, at the same address: pointers that exist stay valid. Then the clone's storage becomes a sharer of
/// the whole block or of a span.
///
/// Where sharing cannot be shown to be safe, nothing is shared and the answer is a Reason; the caller
/// copies, which is always right.
///
/// One SharingCall is one call of clone. It carries what belongs to all storages of the call: the
/// `ready` event of each device, and the blocks that the call made. Those are *on probation*: other
/// calls do not share them until this one has looked for raw pointers that left the process's view
/// before (a consumer holds a reference, which shows as one more than the tensors account for), and has
/// either confirmed them or taken the share back.

namespace torchcow {

class SharingCall {
 public:
  SharingCall() = default;
  SharingCall(const SharingCall&) = delete;
  SharingCall& operator=(const SharingCall&) = delete;

  /// A storage over `bytes` bytes of `source`'s memory from `offset` on, or nullptr and the reason.
  c10::intrusive_ptr<c10::StorageImpl> share(
      c10::StorageImpl& source, std::size_t offset, std::size_t bytes, Reason& reason);

  /// Tells the engine of a tensor over a sharer, and puts the barrier's dispatch key on it.
  static void meet(c10::TensorImpl& tensor);

  /// A block that this call made: its source, and the clones so far.
  struct Made {
    c10::intrusive_ptr<c10::StorageImpl> source;
    c10::SmallVector<c10::intrusive_ptr<c10::StorageImpl>, 1> clones;
  };
  [[nodiscard]] const std::vector<Made>& made() const noexcept { return made_; }

  /// Ends the probation of a block.
  static void confirm(const Made& made);

  /// Takes a share back: every clone in the block gets memory of its own, the source keeps its address.
  static void take_back(const Made& made, Reason reason);

 private:
  StreamOrder::Ready ready_on(c10::Device device);

  std::map<c10::DeviceIndex, StreamOrder::Ready> ready_;
  std::vector<Made> made_;
};

/// The tensors over `storage` that the engine has met and that are alive.
std::vector<c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>> met_tensors(const c10::StorageImpl& storage);

/// Smaller storages on the CPU are copied. Returns the old value.
std::size_t set_tiny_bytes(std::size_t bytes) noexcept;

/// Further device types to share on (tests: a mock accelerator).
void allow_device(c10::DeviceType type) noexcept;

}  // namespace torchcow
