#pragma once

#include "block.h"
#include "events.h"
#include "stream_order.h"

#include <c10/core/TensorImpl.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/SmallVector.h>

#include <map>
#include <unordered_map>
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
/// either confirmed them or taken the share back. Where that fails for want of memory the probation outlives the call,
/// and the next call that finds the block with a single sharer looks again.

namespace torchcow {

using MetTensor = c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

/// Holds `tensor` as one of `met`, once.
void meet_once(std::vector<MetTensor>& met, c10::TensorImpl& tensor);

class SharingCall {
 public:
  SharingCall();
  SharingCall(const SharingCall&) = delete;
  SharingCall& operator=(const SharingCall&) = delete;
  /// Blocks that nobody has confirmed by now are taken back.
  ~SharingCall();

  /// A storage over `bytes` bytes of `source`'s memory from `offset` on, or nullptr and the reason.
  c10::intrusive_ptr<c10::StorageImpl> share(c10::StorageImpl& source, std::size_t offset, std::size_t bytes,
                                             Reason& reason);

  /// Counts a tensor over a source whose block this call made.
  void meet(c10::TensorImpl& tensor);

  /// A block that this call made: its source, and the clones so far.
  struct Made {
    c10::intrusive_ptr<c10::StorageImpl> source;
    c10::SmallVector<c10::intrusive_ptr<c10::StorageImpl>, 1> clones;
    std::shared_ptr<Probation> probation;
  };
  [[nodiscard]] const std::vector<Made>& made() const noexcept { return made_; }

  /// The tensors over `source` that the call has met. They are held until the call ends.
  [[nodiscard]] const std::vector<MetTensor>& met(const c10::StorageImpl& source) const;

  /// Ends the probation of a block.
  static void confirm(const Made& made);

  /// Takes a share back: every clone in the block gets memory of its own, the source keeps its address.
  static void take_back(const Made& made, Reason reason);

 private:
  StreamOrder::Ready ready_on(c10::Device device);

  std::map<c10::DeviceIndex, StreamOrder::Ready> ready_;
  std::vector<Made> made_;
  std::unordered_map<const c10::StorageImpl*, std::vector<MetTensor>> met_;
};

/// Smaller storages on the CPU are copied. Returns the old value.
std::size_t set_tiny_bytes(std::size_t bytes) noexcept;
[[nodiscard]] bool tiny(c10::Device device, std::size_t bytes) noexcept;

/// Further device types to share on (tests: a mock accelerator).
void allow_device(c10::DeviceType type) noexcept;

}  // namespace torchcow
