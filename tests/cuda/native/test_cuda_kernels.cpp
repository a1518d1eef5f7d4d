// SPDX-License-Identifier: Apache-2.0

// CudaKernels over the fake driver: the tables, the kernels' indexing, and every way of being without kernels.

#include "cuda/cuda_kernels.h"
#include "cuda/job_table.h"
#include "fake_driver.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace {

using namespace torchcow;

constexpr std::size_t chunk = cuda::chunk_bytes;

struct FakeGuard final : c10::impl::NoOpDeviceGuardImpl<c10::kCUDA> {
  c10::Device getDevice() const override { return {c10::kCUDA, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return {c10::kCUDA, 0}; }
  c10::Stream getStream(c10::Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void* getStreamNativeHandle(const c10::Stream) const override { return nullptr; }
};

class CudaKernelsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!c10::impl::hasDeviceGuardImpl(c10::kCUDA)) {
      static const FakeGuard guard;
      static const c10::impl::DeviceGuardImplRegistrar registrar(c10::kCUDA, &guard);
      c10::SetAllocator(c10::kCUDA, c10::GetDefaultCPUAllocator());
    }
  }

  void SetUp() override {
#ifdef TORCHCOW_NO_FATBIN
    GTEST_SKIP() << "built without nvcc: there is nothing to load";
#endif
    fake_driver_load_error = fake_driver_launch_error = 0;
    fake_driver_capture_error = fake_driver_capture_status = 0;
    fake_driver_launches = fake_driver_copies = 0;
    ASSERT_NE(cuda::Driver::get(), nullptr) << cuda::Driver::problem();
  }

  void TearDown() override { EXPECT_EQ(fake_driver_pushed, 0); }

  /// Each test takes a device of its own: what is learnt about kernels is kept per device.
  c10::Stream stream(c10::DeviceIndex device = 0) { return c10::Stream(c10::Stream::DEFAULT, {c10::kCUDA, device}); }

  CudaKernels kernels_{*cuda::Driver::get()};
  std::mt19937_64 random_{7};

  std::vector<char> noise(std::size_t bytes) {
    std::vector<char> result(bytes);
    for (char& c : result) {
      c = static_cast<char>(random_());
    }
    return result;
  }
};

const std::vector<std::size_t> range_sizes{0,  1,   2,    7,         8,     9,         15,        16,
                                           17, 255, 4096, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk + 13};

TEST_F(CudaKernelsTest, CopiesEverySizeAtEveryAlignmentAndNothingElse) {
  std::vector<char> from = noise(3 * chunk + 64);
  std::vector<char> to(from.size());
  for (const std::size_t bytes : range_sizes) {
    for (const auto& [d, s] : {std::pair{16, 16}, {16, 8}, {4, 12}, {18, 16}, {17, 16}, {17, 17}}) {
      std::vector<char> expected = noise(to.size());
      to = expected;
      std::memcpy(expected.data() + d, from.data() + s, bytes);
      kernels_.copy(CopyJob{to.data() + d, from.data() + s, bytes}, stream());
      ASSERT_EQ(to, expected) << bytes << " bytes to +" << d << " from +" << s;
    }
  }
}

TEST_F(CudaKernelsTest, ManyJobsTakeOneLaunchPerTable) {
  std::vector<std::vector<char>> from;
  std::vector<std::vector<char>> to;
  std::vector<CopyJob> jobs;
  for (std::size_t i = 0; i < 2 * cuda::table_jobs + 1; ++i) {
    from.push_back(noise(1 + random_() % (i % 50 == 0 ? 3 * chunk : 300)));
    to.emplace_back(from.back().size());
  }
  for (std::size_t i = 0; i < from.size(); ++i) {
    jobs.push_back({to[i].data(), from[i].data(), from[i].size()});
    jobs.push_back({to[i].data(), from[i].data(), 0});
  }
  kernels_.copy(jobs, stream());
  EXPECT_EQ(to, from);
  EXPECT_EQ(fake_driver_launches, 3);
  EXPECT_EQ(fake_driver_copies, 0);
}

TEST_F(CudaKernelsTest, CompareSeesAnyOneBit) {
  for (const std::size_t bytes : range_sizes) {
    std::vector<char> a = noise(bytes + 32);
    std::vector<char> b = a;
    for (const std::size_t offset : {0, 1, 2, 4, 8, 16}) {
      const std::vector<CompareJob> jobs{{a.data(), a.data(), 5}, {a.data() + offset, b.data() + offset, bytes}};
      ASSERT_TRUE(kernels_.equal(jobs, stream()));
      for (const std::size_t at : {std::size_t{0}, bytes / 2, bytes - 1}) {
        if (bytes != 0) {
          b[offset + at] ^= 0x10;
          ASSERT_FALSE(kernels_.equal(jobs, stream())) << bytes << " bytes at +" << offset << ", byte " << at;
          b[offset + at] ^= 0x10;
        }
      }
      b[offset + bytes] ^= 1;
      ASSERT_TRUE(kernels_.equal(jobs, stream())) << "looked behind the end";
      b[offset + bytes] ^= 1;
    }
  }
}

TEST_F(CudaKernelsTest, ChecksumsEqualTheHosts) {
  const std::vector<char> data = noise(3 * chunk + 64);
  std::vector<ByteRange> ranges;
  std::vector<std::uint64_t> expected;
  for (const std::size_t bytes : range_sizes) {
    for (const std::size_t offset : {0, 1, 4, 8}) {
      ranges.push_back({data.data() + offset, bytes});
      expected.push_back(host_checksum(data.data() + offset, bytes));
    }
  }
  EXPECT_EQ(kernels_.checksums(ranges, stream()), expected);
  EXPECT_EQ(fake_driver_launches, 1);
  EXPECT_TRUE(kernels_.checksums({}, stream()).empty());
}

/// The same three operations when there are no kernels.
void expect_the_same_without_kernels(CudaKernels& kernels, const c10::Stream& stream, const std::vector<char>& data) {
  std::vector<char> copy(data.size());
  const std::vector<CopyJob> jobs{{copy.data(), data.data(), 100},
                                  {copy.data() + 100, data.data() + 100, data.size() - 100}};
  kernels.copy(jobs, stream);
  EXPECT_EQ(copy, data);
  EXPECT_EQ(fake_driver_copies, 2);
  const std::vector<CompareJob> compare{{copy.data(), data.data(), data.size()}};
  EXPECT_TRUE(kernels.equal(compare, stream));
  copy.back() ^= 1;
  EXPECT_FALSE(kernels.equal(compare, stream));
  EXPECT_EQ(kernels.checksums(ByteRange{data.data(), data.size()}, stream).at(0),
            host_checksum(data.data(), data.size()));
  EXPECT_EQ(fake_driver_launches, 0);
}

TEST_F(CudaKernelsTest, KernelsThatDoNotLoadAreReplacedForGood) {
  fake_driver_load_error = 209;
  const std::vector<char> data = noise((std::size_t{8} << 20) + 13);
  expect_the_same_without_kernels(kernels_, stream(1), data);
  EXPECT_NE(cuda::Driver::get()->kernel_problem(1).find("cannot be loaded"), std::string::npos);
  fake_driver_load_error = 0;
  std::vector<char> copy(10);
  kernels_.copy(CopyJob{copy.data(), data.data(), 10}, stream(1));
  EXPECT_EQ(fake_driver_launches, 0);
}

TEST_F(CudaKernelsTest, KernelsThatFoundNoMemoryAreTriedAgain) {
  fake_driver_load_error = 2;
  const std::vector<char> data = noise(chunk);
  expect_the_same_without_kernels(kernels_, stream(2), data);
  fake_driver_load_error = 0;
  fake_driver_launch_error = 2;
  std::vector<char> copy(10);
  kernels_.copy(CopyJob{copy.data(), data.data(), 10}, stream(2));
  EXPECT_EQ(fake_driver_launches, 0);
  fake_driver_launch_error = 0;
  kernels_.copy(CopyJob{copy.data(), data.data(), 10}, stream(2));
  EXPECT_EQ(fake_driver_launches, 1);
}

TEST_F(CudaKernelsTest, AFailedLaunchNamesTheDeviceAndTheError) {
  fake_driver_launch_error = 700;
  std::vector<char> data = noise(20);
  try {
    kernels_.copy(CopyJob{data.data(), data.data() + 10, 10}, stream());
    FAIL() << "no error";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::strstr(error.what(), "torchcow_copy on cuda:0: FAKE_ERROR"), nullptr) << error.what();
  }
}

TEST_F(CudaKernelsTest, CapturingNeedsNoKernels) {
  fake_driver_load_error = 209;
  EXPECT_FALSE(kernels_.capturing(stream(3)));
  fake_driver_capture_status = 1;
  EXPECT_TRUE(kernels_.capturing(stream(3)));
  fake_driver_capture_status = 0;
  fake_driver_capture_error = 906;
  EXPECT_TRUE(kernels_.capturing(stream(3))) << "another stream's capture forbids the legacy stream";
  fake_driver_capture_error = 700;
  EXPECT_THROW((void)kernels_.capturing(stream(3)), c10::Error);
}

TEST_F(CudaKernelsTest, InstallRegistersThem) {
  set_device_kernels(c10::kCUDA, nullptr);
  install_cuda_kernels();
  EXPECT_NE(device_kernels(c10::kCUDA), nullptr) << cuda_kernels_status();
  EXPECT_NE(cuda_kernels_status().find("CUDA"), std::string::npos);
  set_device_kernels(c10::kCUDA, nullptr);
}

}  // namespace
