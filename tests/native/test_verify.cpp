// SPDX-License-Identifier: Apache-2.0

// verify: damage to a shared block is found, and nothing else is called damage.

#include "core/verify.h"

#include "family.h"

namespace {

using namespace torchcow;
using namespace torchcow::testing;

class Verify : public EngineTest {};

/// What no barrier can see: an address from before the clone.
char* smuggled_address(const at::Tensor& tensor) {
  return static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
}

// Broken by: `verify` that compares nothing; a checksum of a part of the block.
TEST_F(Verify, FindsEveryDamagedByte_I1) {
  const auto source = numbers(100);
  auto* bytes = smuggled_address(source);
  const auto copy = clone(source);
  std::size_t looked_at = 0;
  for (std::size_t i = 0; i < 400; ++i) {
    bytes[i] ^= 1;
    const auto damages = verify(looked_at);
    ASSERT_EQ(damages.size(), 1U) << "byte " << i;
    EXPECT_EQ(damages.front().bytes, 400U);
    bytes[i] ^= 1;
  }
  EXPECT_TRUE(verify(looked_at).empty());
  EXPECT_EQ(looked_at, 1U);
}

// Broken by: damage that is named by another block.
TEST_F(Verify, SaysWhichBlock) {
  const std::vector<at::Tensor> sources{numbers(10), numbers(20), numbers(30)};
  auto* bytes = smuggled_address(sources[1]);
  const auto copies = clone(sources);
  bytes[3] ^= 64;
  std::size_t looked_at = 0;
  const auto damages = verify(looked_at);
  EXPECT_EQ(looked_at, 3U);
  ASSERT_EQ(damages.size(), 1U);
  EXPECT_EQ(damages.front().bytes, 80U);
  EXPECT_TRUE(damages.front().device.is_cpu());
  bytes[3] ^= 64;
}

// Broken by: checksums of private memory.
TEST_F(Verify, WritesThatTheEngineSawAreNoDamage) {
  const auto source = numbers(100);
  const auto copy = clone(source);
  source.add_(1);
  copy.add_(1);
  std::size_t looked_at = 0;
  EXPECT_TRUE(verify(looked_at).empty());
}

// Broken by: arming that looks at new blocks only.
TEST_F(Verify, ArmingTakesTheLivingBlocksIn) {
  arm_fingerprints(false);
  const auto source = numbers(100);
  auto* bytes = smuggled_address(source);
  const auto copy = clone(source);
  std::size_t looked_at = 1;
  EXPECT_TRUE(verify(looked_at).empty());
  EXPECT_EQ(looked_at, 0U);
  arm_fingerprints(true);
  bytes[0] ^= 1;
  EXPECT_EQ(verify(looked_at).size(), 1U);
  bytes[0] ^= 1;
}

}  // namespace
