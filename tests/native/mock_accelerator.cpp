// SPDX-License-Identifier: Apache-2.0

#include "mock_accelerator.h"

#include "core/share.h"

#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

namespace torchcow::testing::mock {

namespace {

constexpr auto type = c10::DeviceType::PrivateUse1;

/// One component for each stream of each device: how much of it is known to be done.
using Clock = std::array<std::uint64_t, device_count * stream_count>;

void join(Clock& into, const Clock& from) {
  for (std::size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
}

std::size_t index_of(const c10::Stream& stream) {
  return static_cast<std::size_t>(stream.device_index()) * stream_count + static_cast<std::size_t>(stream.id());
}

std::string name_of(std::size_t index) {
  const auto id = std::to_string(index % stream_count);
  return index < stream_count ? id : std::to_string(index / stream_count) + ":" + id;
}
std::string name_of(const c10::Stream& stream) { return name_of(index_of(stream)); }

struct Access {
  std::size_t stream;
  std::uint64_t time;
};

struct Memory {
  std::size_t bytes;
  int number;
  std::size_t own_stream;
  std::vector<Access> reads;
  std::vector<Access> writes;
  std::set<std::size_t> used_on;
};

struct MockEvent {
  Clock clock;
  std::size_t stream;
};

struct Accelerator {
  std::recursive_mutex mutex;
  std::map<const char*, Memory> memories;
  std::array<Clock, device_count * stream_count> streams{};
  Clock host{};
  std::vector<std::string> log;
  std::vector<std::string> hazards;
  int next_number = 1;
  int failing = -1;
  bool capturing = false;
};

Accelerator& accelerator() {
  static auto* instance = new Accelerator();
  return *instance;
}

thread_local c10::DeviceIndex current_device = 0;
thread_local std::array<c10::StreamId, device_count> current_streams{};

c10::Stream current(c10::DeviceIndex index) {
  return c10::Stream(c10::Stream::UNSAFE, device(index), current_streams[static_cast<std::size_t>(index)]);
}

c10::DeviceIndex index_or_current(c10::Device device) { return device.has_index() ? device.index() : current_device; }

Memory* memory_of(const void* data) {
  auto& memories = accelerator().memories;
  const auto* at = static_cast<const char*>(data);
  auto found = memories.upper_bound(at);
  if (found == memories.begin()) return nullptr;
  --found;
  return at < found->first + std::max<std::size_t>(found->second.bytes, 1) ? &found->second : nullptr;
}

std::string number_of(const void* data) {
  const auto* memory = memory_of(data);
  return memory == nullptr ? "#?" : "#" + std::to_string(memory->number);
}

/// The next step of a stream: behind all that the host has waited for.
std::uint64_t step(std::size_t stream) {
  auto& clock = accelerator().streams[stream];
  join(clock, accelerator().host);
  return ++clock[stream];
}

bool ordered(const Access& access, std::size_t stream) {
  return accelerator().streams[stream][access.stream] >= access.time;
}

void check(const Memory& memory, const std::vector<Access>& accesses, std::size_t stream, const char* what) {
  for (const auto& access : accesses) {
    if (!ordered(access, stream)) {
      accelerator().hazards.push_back(std::string(what) + " of #" + std::to_string(memory.number) + " on " +
                                      name_of(stream) + ", unordered with stream " + name_of(access.stream));
    }
  }
}

void access(const void* data, const c10::Stream& on, bool writes) {
  std::lock_guard lock(accelerator().mutex);
  const auto stream = index_of(on);
  const auto time = step(stream);
  auto* memory = memory_of(data);
  if (memory == nullptr) {
    accelerator().hazards.push_back("an access to memory that is not allocated, on " + name_of(stream));
    return;
  }
  check(*memory, memory->writes, stream, writes ? "a write" : "a read");
  if (writes) check(*memory, memory->reads, stream, "a write");
  (writes ? memory->writes : memory->reads).push_back({stream, time});
}

void free_memory(void* data) {
  if (data == nullptr) return;
  auto& self = accelerator();
  std::lock_guard lock(self.mutex);
  const auto found = self.memories.find(static_cast<char*>(data));
  TORCH_INTERNAL_ASSERT(found != self.memories.end(), "the mock accelerator: freed twice");
  const auto& memory = found->second;
  join(self.streams[memory.own_stream], self.host);
  for (const auto* accesses : {&memory.reads, &memory.writes}) {
    for (const auto& access : *accesses) {
      if (!memory.used_on.contains(access.stream) && !ordered(access, memory.own_stream)) {
        self.hazards.push_back("#" + std::to_string(memory.number) + " is freed under stream " +
                               name_of(access.stream));
      }
    }
  }
  self.log.push_back("free #" + std::to_string(memory.number));
  self.memories.erase(found);
  std::free(data);
}

class MockAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    auto& self = accelerator();
    std::lock_guard lock(self.mutex);
    if (self.failing >= 0 && self.failing-- == 0) {
      TORCH_CHECK_WITH(OutOfMemoryError, false, "the mock accelerator is full");
    }
    const auto on = device(current_device);
    if (bytes == 0) return {nullptr, nullptr, &free_memory, on};
    auto* data = static_cast<char*>(std::malloc(bytes));
    const auto stream = index_of(current(current_device));
    self.memories[data] = {bytes, self.next_number++, stream, {}, {}, {}};
    self.log.push_back("allocate " + number_of(data) + " " + std::to_string(bytes) + " on " + name_of(stream));
    return {data, data, &free_memory, on};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_memory; }
  void copy_data(void*, const void*, std::size_t) const override {
    TORCH_CHECK(false, "the mock accelerator: copy_data knows no stream, and must not be called");
  }
};

struct MockGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return mock::type; }
  c10::Device exchangeDevice(c10::Device to) const override {
    const auto before = current_device;
    current_device = index_or_current(to);
    return device(before);
  }
  c10::Device getDevice() const override { return device(current_device); }
  void setDevice(c10::Device to) const override { current_device = index_or_current(to); }
  void uncheckedSetDevice(c10::Device to) const noexcept override { current_device = index_or_current(to); }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count; }

  c10::Stream getStream(c10::Device of) const override { return current(index_or_current(of)); }
  c10::Stream getDefaultStream(c10::Device of) const override { return stream(0, index_or_current(of)); }
  c10::Stream exchangeStream(c10::Stream to) const override {
    const auto before = current(to.device_index());
    current_streams[static_cast<std::size_t>(to.device_index())] = to.id();
    return before;
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& of) const override {
    auto& self = accelerator();
    std::lock_guard lock(self.mutex);
    join(self.host, self.streams[index_of(of)]);
    self.log.push_back("synchronize " + name_of(of));
  }
  // Not marked as overriding: torch 2.11 and 2.12 do not ask.
  bool isStreamCapturing(const c10::Stream&) const { return accelerator().capturing; }

  void record(void** event, const c10::Stream& on, const c10::DeviceIndex, const c10::EventFlag) const override {
    auto& self = accelerator();
    std::lock_guard lock(self.mutex);
    if (*event == nullptr) *event = new MockEvent();
    join(self.streams[index_of(on)], self.host);
    *static_cast<MockEvent*>(*event) = {self.streams[index_of(on)], index_of(on)};
    self.log.push_back("record " + name_of(on));
  }
  void block(void* event, const c10::Stream& waiting) const override {
    if (event == nullptr) return;
    auto& self = accelerator();
    std::lock_guard lock(self.mutex);
    const auto& of = *static_cast<MockEvent*>(event);
    join(self.streams[index_of(waiting)], of.clock);
    self.log.push_back("wait " + name_of(waiting) + " for " + name_of(of.stream));
  }
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<MockEvent*>(event);
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& on) const override {
    if (data.get() == nullptr) return;
    auto& self = accelerator();
    std::lock_guard lock(self.mutex);
    if (data.get_deleter() != &free_memory) {
      self.hazards.push_back(
          "recordDataPtrOnStream on a DataPtr that is not the allocator's: a real one would ignore it");
      return;
    }
    if (auto* memory = memory_of(data.get())) memory->used_on.insert(index_of(on));
    self.log.push_back("use " + number_of(data.get()) + " on " + name_of(on));
  }
};

MockAllocator& allocator() {
  static auto* instance = new MockAllocator();
  return *instance;
}

// ---------------------------------------------------------------------------------------------------- kernels

/// The same bytes as a tensor of the host.
at::Tensor on_host(const at::Tensor& tensor, bool writes) {
  auto* data = const_cast<void*>(writes ? tensor.mutable_data_ptr() : tensor.const_data_ptr());
  return at::from_blob(data, tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

void reads_tensor(const at::Tensor& tensor, const c10::Stream& on) {
  if (tensor.device().type() == type && tensor.numel() > 0) reads(tensor.const_data_ptr(), tensor.nbytes(), on);
}

void writes_tensor(const at::Tensor& tensor, const c10::Stream& on, bool named = true) {
  if (tensor.numel() == 0) return;
  writes(tensor.mutable_data_ptr(), tensor.nbytes(), on);
  if (named) note("write " + number_of(tensor.const_data_ptr()) + " on " + name_of(on));
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> where, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(where.value_or(device(current_device)));
  return at::detail::empty_generic(size, &allocator(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   dtype.value_or(at::kFloat), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> where, std::optional<bool>) {
  const c10::DeviceGuard guard(where.value_or(device(current_device)));
  return at::detail::empty_strided_generic(
      size, stride, &allocator(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), dtype.value_or(at::kFloat));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool) {
  const auto on = current(self.device().type() == type ? self.device().index() : source.device().index());
  reads_tensor(source, on);
  const bool to_device = self.device().type() == type;
  const auto target = to_device ? on_host(self, true) : self;
  if (to_device) writes_tensor(self, on, false);
  note("copy " + std::to_string(self.nbytes()) + " on " + name_of(on));
  target.copy_(source.device().type() == type ? on_host(source, false) : source);
  if (!to_device) MockGuard().synchronizeStream(on);
  return self;
}

at::Tensor& fill_(at::Tensor& self, const at::Scalar& value) {
  writes_tensor(self, current(self.device().index()));
  on_host(self, true).fill_(value);
  return self;
}

at::Tensor& add_(at::Tensor& self, const at::Tensor& other, const at::Scalar& alpha) {
  const auto on = current(self.device().index());
  reads_tensor(self, on);
  reads_tensor(other, on);
  writes_tensor(self, on);
  on_host(self, true).add_(other.device().type() == type ? on_host(other, false) : other, alpha);
  return self;
}

at::Tensor& add_scalar_(at::Tensor& self, const at::Scalar& value, const at::Scalar&) {
  const auto on = current(self.device().index());
  reads_tensor(self, on);
  writes_tensor(self, on);
  on_host(self, true).add_(value);
  return self;
}

void foreach_add_(at::TensorList self, const at::Scalar& value) {
  // As CUDA's multi-tensor kernels: through const pointers.
  for (const auto& tensor : self) {
    const auto on = current(tensor.device().index());
    reads_tensor(tensor, on);
    writes(tensor.const_data_ptr(), tensor.nbytes(), on);
    note("write " + number_of(tensor.const_data_ptr()) + " on " + name_of(on));
    on_host(tensor, false).add_(value);
  }
}

at::Tensor sum(const at::Tensor& self, std::optional<at::ScalarType> dtype) {
  reads_tensor(self, current(self.device().index()));
  return on_host(self, false).sum(dtype);  // stays on the host: a test looks at nothing but the order
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

void record_stream(at::Tensor& self, c10::Stream on) {
  // As CUDA's: on whatever DataPtr the storage has; the allocator looks at the deleter.
  auto& storage = *self.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  const auto& data = storage._mutable_data_ptr_no_checks();
  if (data.get_deleter() == &free_memory) MockGuard().recordDataPtrOnStream(data, on);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("copy_", TORCH_FN(copy_));
  library.impl("fill_.Scalar", TORCH_FN(fill_));
  library.impl("add_.Tensor", TORCH_FN(add_));
  library.impl("add_.Scalar", TORCH_FN(add_scalar_));
  library.impl("_foreach_add_.Scalar", TORCH_FN(foreach_add_));
  library.impl("sum", TORCH_FN(sum));
  library.impl("as_strided", TORCH_FN(as_strided));
  library.impl("record_stream", TORCH_FN(record_stream));
}

void install() {
  static const bool once = [] {
    static const c10::impl::DeviceGuardImplRegistrar registrar(type, new MockGuard());
    c10::SetAllocator(type, &allocator());
    allow_device(type);
    return true;
  }();
  static_cast<void>(once);
}

c10::Device device(c10::DeviceIndex index) { return {type, index}; }

c10::Stream stream(std::size_t id, c10::DeviceIndex index) {
  return c10::Stream(c10::Stream::UNSAFE, device(index), static_cast<c10::StreamId>(id));
}

OnStream::OnStream(std::size_t id, c10::DeviceIndex index) : before_(MockGuard().exchangeStream(stream(id, index))) {}
OnStream::~OnStream() { MockGuard().exchangeStream(before_); }

void order(const c10::Stream& first, const c10::Stream& second) {
  auto& self = accelerator();
  std::lock_guard lock(self.mutex);
  join(self.streams[index_of(second)], self.streams[index_of(first)]);
}

void set_capturing(bool on) { accelerator().capturing = on; }

std::vector<std::string> log(const std::vector<std::string_view>& kinds) {
  auto& self = accelerator();
  std::lock_guard lock(self.mutex);
  if (kinds.empty()) return self.log;
  std::vector<std::string> lines;
  for (const auto& line : self.log) {
    if (std::any_of(kinds.begin(), kinds.end(), [&](auto kind) { return line.starts_with(kind); }))
      lines.push_back(line);
  }
  return lines;
}

void clear_log() {
  auto& self = accelerator();
  std::lock_guard lock(self.mutex);
  self.log.clear();
}

std::string name(const void* data) {
  std::lock_guard lock(accelerator().mutex);
  return number_of(data);
}

std::vector<std::string> take_hazards() {
  std::lock_guard lock(accelerator().mutex);
  return std::exchange(accelerator().hazards, {});
}

void reads(const void* data, std::size_t, const c10::Stream& on) { access(data, on, false); }
void writes(const void* data, std::size_t, const c10::Stream& on) { access(data, on, true); }

void note(std::string line) {
  std::lock_guard lock(accelerator().mutex);
  accelerator().log.push_back(std::move(line));
}

std::size_t live_bytes() {
  std::lock_guard lock(accelerator().mutex);
  std::size_t sum = 0;
  for (const auto& [data, memory] : accelerator().memories) sum += memory.bytes;
  return sum;
}

void fail_allocation(int after) { accelerator().failing = after; }

}  // namespace torchcow::testing::mock
