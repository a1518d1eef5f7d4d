// SPDX-License-Identifier: Apache-2.0
// Memory for storages that will be written.

#include "core/allocate.h"

#include "core/host_pages.h"
#include "hostile_allocator.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

namespace {

using namespace torchcow;
using torchcow::testing::HostileAllocator;

c10::DataPtr allocate_on_host(std::size_t bytes) {
  return allocate_for(c10::kCPU, *c10::GetDefaultCPUAllocator(), bytes);
}

// Broken by: small memory in pages of its own; pages for a storage that has another allocator.
TEST(Allocate, OnlyLargeMemoryOfTheDefaultAllocatorIsPages) {
#ifndef __SANITIZE_ADDRESS__
  EXPECT_TRUE(host::are_pages(allocate_on_host(host::huge_page_bytes).get_deleter()));
#endif
  EXPECT_FALSE(host::are_pages(allocate_on_host(host::huge_page_bytes - 1).get_deleter()));
  HostileAllocator allocator;
  EXPECT_FALSE(host::are_pages(allocate_for(c10::kCPU, allocator, host::huge_page_bytes).get_deleter()));
  EXPECT_EQ(allocator.count(), 1U);
}

// Broken by: a count that begins at one; a failure that repeats.
TEST(Allocate, TheAllocationThatATestAsksForFailsOnce) {
  fail_allocation(1);
  EXPECT_NO_THROW(allocate_on_host(100));
  EXPECT_THROW(allocate_on_host(100), c10::OutOfMemoryError);
  EXPECT_NO_THROW(allocate_on_host(100));
  fail_allocation(-1);
}

#ifndef __SANITIZE_ADDRESS__

// Broken by: an allocator that is not asked again; kept pages that stay when memory is short.
TEST(Allocate, KeptPagesAreGivenBackBeforeAFailure) {
  host::keep_freed(true);
  static_cast<void>(allocate_on_host(host::huge_page_bytes));
  EXPECT_GT(host::kept_bytes(), 0U);
  HostileAllocator allocator;
  allocator.fail(0);
  EXPECT_TRUE(allocate_for(c10::kCPU, allocator, 100));
  EXPECT_EQ(host::kept_bytes(), 0U);
  allocator.fail(0);
  EXPECT_THROW(static_cast<void>(allocate_for(c10::kCPU, allocator, 100)), std::bad_alloc) << "nothing is kept";
  host::keep_freed(false);
}

#endif

}  // namespace
