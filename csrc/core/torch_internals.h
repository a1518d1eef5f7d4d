// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/impl/COWDeleter.h>

#if !TORCHCOW_TORCH_HAS_MATERIALIZER
#include <c10/util/UniqueVoidPtr.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#endif

/// The private parts of torch that the core uses, all of them.
///
/// A private member is named in an explicit instantiation, which is legal C++ and involves no copy of a layout: if
/// torch renames the member or changes its type, this file does not compile. What a member *means* can change silently;
/// the test that would fail then is named with each entry. Entries that are needed for old releases only end with them.
///
///   entry                    torch                why                                         noticed by
///   operator_definition      2.11 and newer       a listener of the dispatcher may not take   test_barrier.cpp,
///                                                 the lock that the public registration takes OperatorsRegisteredLater
///   is_torch_copy_on_write   2.11 and newer       c10::impl::cow is no public namespace       test_share.cpp,
///                                                                                             RefusesWhatCannotBe...
///   memory_of, count_of,     2.11 and 2.12;       torch has no write hook of its own there    test_write_hook.cpp
///   mutex_of, flag_of,       they end with        (write_hook_cow.cpp)
///   address_of               support for 2.12
///
/// Two more assumptions are no names, and stand where they are made: the table of virtual functions of a StorageImpl is
/// its first word (write_hook_cow.cpp), and threads of the inter-op pool are called PTThreadPool (inter_op.cpp).
///
/// Threads, ownership: as for the object that is passed.

namespace torchcow::torch_internals {

/// Memory that torch's own copy-on-write shares.
[[nodiscard]] inline bool is_torch_copy_on_write(c10::DeleterFnPtr deleter) noexcept {
  return deleter == &c10::impl::cow::cow_deleter;
}

// An explicit instantiation may appear once in a program, so each source has its own.
namespace {

/// A friend function, found by its argument, returns the pointer to the member.
template <typename Tag, auto Member>
struct Expose {
  friend constexpr auto member_of(Tag) { return Member; }
};

struct OperatorDefinition {
  friend constexpr auto member_of(OperatorDefinition);
};
template struct Expose<OperatorDefinition, &c10::OperatorHandle::operatorDef_>;

/// The entry of an operator in the dispatcher's tables.
[[maybe_unused]] auto operator_definition(const c10::OperatorHandle& op) { return op.*member_of(OperatorDefinition{}); }

#if !TORCHCOW_TORCH_HAS_MATERIALIZER

using CowContext = c10::impl::cow::COWDeleterContext;

struct CowMemory {
  friend constexpr auto member_of(CowMemory);
};
struct CowCount {
  friend constexpr auto member_of(CowCount);
};
struct CowMutex {
  friend constexpr auto member_of(CowMutex);
};
struct MutableDataFlag {
  friend constexpr auto member_of(MutableDataFlag);
};
struct Pointer {
  friend constexpr auto member_of(Pointer);
};
struct Address {
  friend constexpr auto member_of(Address);
};
template struct Expose<CowMemory, &CowContext::data_>;
template struct Expose<CowCount, &CowContext::refcount_>;
template struct Expose<CowMutex, &CowContext::mutex_>;
template struct Expose<MutableDataFlag, &c10::StorageImpl::has_mutable_data_ptr_check_>;
template struct Expose<Pointer, &c10::DataPtr::ptr_>;
template struct Expose<Address, &c10::detail::UniqueVoidPtr::data_>;

/// What the storages that share a context read.
[[maybe_unused]] std::unique_ptr<void, c10::DeleterFnPtr>& memory_of(CowContext& context) {
  return context.*member_of(CowMemory{});
}
/// How many DataPtrs refer to the context.
[[maybe_unused]] std::atomic<std::int64_t>& count_of(CowContext& context) { return context.*member_of(CowCount{}); }
/// Held shared while a storage gives up the context.
[[maybe_unused]] std::shared_mutex& mutex_of(CowContext& context) { return context.*member_of(CowMutex{}); }
/// Does a request for a mutable pointer look at the deleter?
[[maybe_unused]] bool& flag_of(c10::StorageImpl& storage) { return storage.*member_of(MutableDataFlag{}); }
/// The address alone, without deleter and context.
[[maybe_unused]] void*& address_of(c10::DataPtr& data) { return (data.*member_of(Pointer{})).*member_of(Address{}); }

#endif

}  // namespace

}  // namespace torchcow::torch_internals
