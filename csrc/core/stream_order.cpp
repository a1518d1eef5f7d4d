// SPDX-License-Identifier: Apache-2.0

#include "stream_order.h"

#include "device_kernels.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace torchcow {

namespace {

using Guard = c10::impl::VirtualGuardImpl;

std::shared_ptr<c10::Event> record_on(const c10::Stream& stream) {
  auto event = std::make_shared<c10::Event>(stream.device_type(), c10::EventFlag::PYTORCH_DEFAULT);
  event->record(stream);
  return event;
}

}  // namespace

c10::Stream current_stream(c10::Device device) { return Guard(device.type()).getStream(device); }

std::optional<c10::Stream> default_stream(c10::Device device) noexcept {
  try {
    return Guard(device.type()).getDefaultStream(device);
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

bool capturing(const c10::Stream& stream) {
  if (auto* kernels = device_kernels(stream.device_type())) return kernels->capturing(stream);
#if TORCHCOW_TORCH_HAS_MATERIALIZER
  return stream.is_capturing();
#else
  return false;
#endif
}

StreamOrder::Ready StreamOrder::record_ready(c10::Device device) { return record_on(current_stream(device)); }

void StreamOrder::before_copy(const c10::Stream& stream) {
  std::lock_guard guard(mutex_);
  if (ready_) ready_->block(stream);
}

void StreamOrder::after_copy(const c10::DataPtr& data, const c10::Stream& stream) {
  std::lock_guard guard(mutex_);
  ready_to_steal_ = false;
  Guard(stream.device_type()).recordDataPtrOnStream(data, stream);
  auto known = std::find_if(copies_.begin(), copies_.end(), [&](auto& copy) { return copy.first == stream; });
  if (known == copies_.end()) {
    copies_.emplace_back(stream, record_on(stream));
  } else {
    known->second = record_on(stream);
  }
}

void StreamOrder::record_stream(const c10::DataPtr& data, const c10::Stream& stream) {
  std::lock_guard guard(mutex_);
  ready_to_steal_ = false;
  Guard(stream.device_type()).recordDataPtrOnStream(data, stream);
  if (std::find(recorded_.begin(), recorded_.end(), stream) == recorded_.end()) recorded_.push_back(stream);
}

bool StreamOrder::pending(const c10::Stream& stream) {
  std::lock_guard guard(mutex_);
  const auto elsewhere = [&](const c10::Stream& other) { return other != stream; };
  return std::any_of(copies_.begin(), copies_.end(), [&](auto& copy) { return elsewhere(copy.first); }) ||
         std::any_of(recorded_.begin(), recorded_.end(), elsewhere);
}

void StreamOrder::before_steal(const c10::Stream& stream) {
  std::lock_guard guard(mutex_);
  if (ready_) ready_->block(stream);
  for (auto& [other, event] : copies_) event->block(stream);
  for (auto& other : recorded_) {
    if (other != stream) record_on(other)->block(stream);
  }
  ready_to_steal_ = true;
}

bool StreamOrder::ready_to_steal() {
  std::lock_guard guard(mutex_);
  return ready_to_steal_;
}

void StreamOrder::before_free(const c10::DataPtr& data) noexcept {
  try {
    std::lock_guard guard(mutex_);
    for (auto& [stream, event] : copies_) Guard(stream.device_type()).recordDataPtrOnStream(data, stream);
    for (auto& stream : recorded_) Guard(stream.device_type()).recordDataPtrOnStream(data, stream);
  } catch (...) {
    // At exit the device may be gone, and its memory with it.
  }
}

}  // namespace torchcow
