// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>
#include <c10/core/StorageImpl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Events: what was copied, when, and why.
///
/// Each materialization and each eager copy is an event. The last `event_capacity` events are kept in a ring. Older
/// events are forgotten but counted, and so are events for which there is no memory.
///
/// For each live storage, the *last event* is kept: the one that gave it memory of its own.
///
/// Invariant: an event names a storage only while that address can mean no other storage.
///
/// Ownership: storages are held weakly. Threads: any; the ring has a mutex, which may be taken under the engine's.
/// Failure: `record` cannot fail.

namespace torchcow {

/// How a storage got memory of its own: by a first write, or, if `eager`, because clone copied it at once.
enum class Way : std::uint8_t { steal, copy, skip, eager };

/// Why a storage was copied when it was cloned.
enum class Reason : std::uint8_t {
  none,      ///< it was not
  tiny,      ///< a copy is cheaper than a block
  device,    ///< neither CPU nor CUDA
  foreign,   ///< not torch's own memory: NumPy, a file, shared memory, pinned memory, DLPack
  numpy,     ///< NumPy, or something like it, looks into the memory
  outside,   ///< references that are no tensors of Python: a consumer may hold a raw pointer
  strict,    ///< strict=True, and something outside of the cloned graph refers to it
  writing,   ///< an operator in another thread is writing it
  capture,   ///< a graph is being captured on its stream
  hook,      ///< torch's own copy-on-write, or another write hook, is on the storage
  layout,    ///< a parameter that deepcopy compacts (not dense), or a conjugate or negative view
  excluded,  ///< patch(exclude=...) names the class of an object that holds it
  kind,      ///< quantized, sparse, nested or a subclass that copies itself
};

const char* to_string(Way) noexcept;
const char* to_string(Reason) noexcept;
/// The reason in a sentence.
const char* describe(Reason) noexcept;

struct Event {
  Way way;
  Reason reason;
  std::string operator_name;
  std::size_t bytes;
  c10::Device device;
  const c10::StorageImpl* storage;  ///< its identity, never to be followed

  Event(Way way_, Reason reason_, std::string_view operator_name_, std::size_t bytes_, c10::Device device_,
        const c10::StorageImpl* storage_)
      : way(way_), reason(reason_), operator_name(operator_name_), bytes(bytes_), device(device_), storage(storage_) {}
};

inline constexpr std::size_t event_capacity = 1 << 16;

/// `storage`: which one has memory of its own now; null where nobody will ask for its last event.
void record(Way way, Reason reason, std::string_view operator_name, std::size_t bytes, c10::Device device,
            c10::StorageImpl* storage = nullptr) noexcept;

/// The events in the ring. The storage of an event is null unless that address can mean no other one.
std::vector<Event> events(bool clear);

/// The last event of `storage`, if it has one and that is remembered.
std::optional<Event> last_event(const c10::StorageImpl& storage);

/// Has `storage` an event, as far as there was memory to remember it? For checks of I10.
[[nodiscard]] bool has_event(const c10::StorageImpl& storage) noexcept;

/// Forgets the last events of storages that have died, now and then. Call without any lock.
void trim_last_events();

/// Tests: forgets all of them.
void forget_last_events();

/// How many events were forgotten.
[[nodiscard]] std::size_t forgotten_events();

}  // namespace torchcow
