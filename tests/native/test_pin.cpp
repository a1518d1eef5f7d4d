// SPDX-License-Identifier: Apache-2.0
// Pins: a block that is looked at is neither stolen nor freed.

#include "core/pin.h"

#include "core/accounting.h"
#include "core/engine_state.h"
#include "core/write_hook.h"
#include "family.h"

#include <optional>

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Pins : public EngineTest {};

Block& block_of(const at::Tensor& tensor) { return *write_hook::sharer_of(storage_impl(tensor))->block; }

Pin pinned(const at::Tensor& tensor) {
  std::lock_guard lock(engine().mutex);
  return Pin(block_of(tensor));
}

// Broken by: a pin that is not counted as a sharer.
TEST_F(Pins, APinnedBlockIsNotStolen) {
  auto source = numbers(100);
  clone(source);  // dies at once: the source is the last sharer
  {
    const auto pin = pinned(source);
    source.add_(1);
    EXPECT_EQ(static_cast<const float*>(pin.block().data.get())[0], 1);
  }
  EXPECT_EQ(materializations(), std::vector<std::string>{"copy aten::add_.Scalar 400"});
}

// Broken by: a block that is freed with its last storage; a pin whose destructor does not detach.
TEST_F(Pins, APinnedBlockOutlivesItsStorages) {
  std::optional<Pin> pin;
  {
    const auto source = numbers(100);
    const auto copy = clone(source);
    pin.emplace(pinned(source));
  }
  EXPECT_EQ(totals().blocks, 1U);
  EXPECT_EQ(static_cast<const float*>(pin->block().data.get())[99], 100);
  pin.reset();
  EXPECT_EQ(totals().blocks, 0U);
}

// Broken by: a pin that counts bytes; a moved pin that detaches twice.
TEST_F(Pins, APinHasNoBytesAndMoves) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  const auto before = totals().logical_bytes;
  Pin first = pinned(source);
  const Pin second(std::move(first));
  EXPECT_EQ(totals().logical_bytes, before);
  EXPECT_EQ(totals().sharers, 3U);
}

// Broken by: `taken` or the probation left out of `may_be_pinned`.
TEST_F(Pins, NotWhileABlockIsStolenOrOnProbation) {
  const auto source = numbers(100);
  SharingCall call;
  Reason reason;
  const auto copy = clone(call, source, reason);
  {
    std::lock_guard lock(engine().mutex);
    EXPECT_FALSE(may_be_pinned(block_of(source)));
  }
  for (const auto& probation : call.probations()) SharingCall::confirm(*probation);
  std::lock_guard lock(engine().mutex);
  auto& block = block_of(source);
  EXPECT_TRUE(may_be_pinned(block));
  block.taken = true;
  EXPECT_FALSE(may_be_pinned(block));
  block.taken = false;
}

}  // namespace
