// SPDX-License-Identifier: Apache-2.0

// The registry of DeviceKernels and the checksum on CPU memory.

#include "core/checksum.h"
#include "core/device_kernels.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <random>
#include <set>

namespace {

using namespace torchcow;

std::vector<unsigned char> noise(std::size_t bytes) {
  std::mt19937 random(static_cast<unsigned>(bytes));
  std::vector<unsigned char> result(bytes);
  for (unsigned char& c : result) {
    c = static_cast<unsigned char>(random());
  }
  return result;
}

std::uint64_t sum(const std::vector<unsigned char>& data) { return host_checksum(data.data(), data.size()); }

TEST(HostChecksum, IsTheDefinitionSpelledOut) {
  for (const std::size_t bytes : {0, 1, 7, 8, 9, 64, 1001, 4099}) {
    const auto data = noise(bytes);
    std::uint64_t expected = 0;
    for (std::size_t i = 0; 8 * i < bytes; ++i) {
      std::uint64_t word = 0;
      for (std::size_t k = 0; k < 8 && 8 * i + k < bytes; ++k) {
        word |= std::uint64_t{data[8 * i + k]} << (8 * k);
      }
      expected += checksum_word(word, i);
    }
    EXPECT_EQ(sum(data), checksum_finish(expected, bytes)) << bytes;
  }
}

TEST(HostChecksum, CanBeSummedInPieces) {
  const auto data = noise(1000);
  std::uint64_t pieces = 0;
  for (const std::size_t at : {640, 0, 320, 960}) {
    pieces += checksum_span(data.data() + at, std::min<std::size_t>(320, data.size() - at), at / 8);
  }
  EXPECT_EQ(checksum_finish(pieces, data.size()), sum(data));
}

TEST(HostChecksum, DoesNotDependOnAlignment) {
  const auto data = noise(501);
  std::vector<unsigned char> shifted(data.size() + 8);
  for (std::size_t offset = 0; offset < 8; ++offset) {
    std::memcpy(shifted.data() + offset, data.data(), data.size());
    EXPECT_EQ(host_checksum(shifted.data() + offset, data.size()), sum(data));
  }
}

TEST(HostChecksum, NoticesEveryBit) {
  auto data = noise(133);
  const std::uint64_t before = sum(data);
  for (std::size_t bit = 0; bit < 8 * data.size(); ++bit) {
    data[bit / 8] ^= static_cast<unsigned char>(1U << (bit % 8));
    EXPECT_NE(sum(data), before) << "bit " << bit;
    data[bit / 8] ^= static_cast<unsigned char>(1U << (bit % 8));
  }
}

TEST(HostChecksum, NoticesPairsOfSignsSwapsAndLengths) {
  std::vector<float> data(64);
  std::iota(data.begin(), data.end(), 1.0F);
  const auto checksum = [&] { return host_checksum(data.data(), data.size() * sizeof(float)); };
  std::set<std::uint64_t> seen{checksum()};
  std::size_t cases = 1;
  for (std::size_t i = 0; i < data.size(); ++i) {
    for (std::size_t j = i + 1; j < data.size(); ++j, cases += 2) {
      data[i] = -data[i], data[j] = -data[j];
      seen.insert(checksum());
      data[i] = -data[i], data[j] = -data[j];
      std::swap(data[i], data[j]);
      seen.insert(checksum());
      std::swap(data[i], data[j]);
    }
  }
  EXPECT_EQ(seen.size(), cases);

  const std::vector<unsigned char> zeros(64);
  std::set<std::uint64_t> lengths;
  for (std::size_t bytes = 0; bytes <= zeros.size(); ++bytes) {
    lengths.insert(host_checksum(zeros.data(), bytes));
  }
  EXPECT_EQ(lengths.size(), zeros.size() + 1);
}

struct NoKernels final : DeviceKernels {
  void copy(c10::ArrayRef<CopyJob>, const c10::Stream&) override {}
  bool equal(c10::ArrayRef<CompareJob>, const c10::Stream&) override { return true; }
  std::vector<std::uint64_t> checksums(c10::ArrayRef<ByteRange>, const c10::Stream&) override { return {}; }
  bool capturing(const c10::Stream&) override { return false; }
};

TEST(DeviceKernelsRegistry, HoldsOnePerDeviceType) {
  NoKernels kernels;
  EXPECT_EQ(device_kernels(c10::kPrivateUse1), nullptr);
  set_device_kernels(c10::kPrivateUse1, &kernels);
  EXPECT_EQ(device_kernels(c10::kPrivateUse1), &kernels);
  EXPECT_EQ(device_kernels(c10::kMeta), nullptr);
  set_device_kernels(c10::kPrivateUse1, nullptr);
  EXPECT_EQ(device_kernels(c10::kPrivateUse1), nullptr);
}

}  // namespace
