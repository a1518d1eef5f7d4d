// SPDX-License-Identifier: Apache-2.0
#include "reading_scope.h"

#include "census.h"
#include "storage.h"
#include "verify.h"
#include "write_hook.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <unordered_set>

namespace torchcow {

namespace {

std::vector<c10::StorageImpl*> storages_of(const py::list& tensors) {
  std::vector<c10::StorageImpl*> storages;
  for (auto object : tensors) {
    if (auto* storage = storage_of(object.cast<at::Tensor>())) storages.push_back(storage);
  }
  std::sort(storages.begin(), storages.end());
  storages.erase(std::unique(storages.begin(), storages.end()), storages.end());
  return storages;
}

std::unordered_map<std::uint64_t, std::uint64_t> checksums_of(const std::vector<CoveredStorage>& covered) {
  std::unordered_set<std::uint64_t> blocks;
  for (const auto& storage : covered) blocks.insert(storage.block);
  return checksums(blocks);
}

/// The base of an array is a tensor that Python can see. So where NumPy has looked, only tensors of the scope are known
/// not to be one.
bool has_other_tensors(c10::StorageImpl& storage, const std::vector<SeenTensor>& tensors) {
  return c10::raw::intrusive_ptr::use_count(&storage) > tensors.size() + python_references(storage) + 1;
}

}  // namespace

ReadingScope::ReadingScope(const py::list& tensors) : tensors_(tensors) {
  write_hook::sweep();
  covered_ = suspend_hooks(storages_of(tensors));
}

ReadingScope::ReadingScope(const py::list& tensors, bool checksum) : ReadingScope(tensors) {
  // From here on the destructor runs if this throws.
  for (std::size_t i = 0; i < covered_.size(); ++i) index_.emplace(covered_[i].storage._unsafe_get_target(), i);
  for (auto object : tensors_) {
    const auto index = index_.find(storage_of(THPVariable_Unpack(object.ptr())));
    covered_of_.push_back(index == index_.end() ? std::nullopt : std::optional(index->second));
  }
  if (checksum) checksums_ = checksums_of(covered_);
}

ReadingScope::~ReadingScope() {
  if (!ended_) resume_hooks(covered_);
}

std::vector<bool> ReadingScope::covered() const {
  std::vector<bool> covered;
  covered.reserve(covered_of_.size());
  for (const auto& index : covered_of_) covered.push_back(index.has_value());
  return covered;
}

std::vector<ReadingScope::Outcome> ReadingScope::end() {
  TORCH_INTERNAL_ASSERT(!ended_);
  ended_ = true;
  resume_hooks(covered_);
  std::vector<Outcome> by_storage;
  by_storage.reserve(covered_.size());
  for (const auto& storage : covered_) by_storage.push_back({.stayed = storage.stayed});
  if (checksums_) {
    const auto sums = checksums_of(covered_);
    for (std::size_t i = 0; i < covered_.size(); ++i) {
      const auto before = checksums_->find(covered_[i].block);
      const auto now = sums.find(covered_[i].block);
      by_storage[i].damaged =
          covered_[i].held && before != checksums_->end() && now != sums.end() && before->second != now->second;
    }
  }
  find_references(by_storage);
  for (auto& storage : covered_) storage.held.reset();
  std::vector<Outcome> outcomes;
  outcomes.reserve(covered_of_.size());
  for (const auto& index : covered_of_) outcomes.push_back(index ? by_storage[*index] : Outcome());
  return outcomes;
}

void ReadingScope::find_references(std::vector<Outcome>& outcomes) const {
  Census census;
  for (auto object : tensors_) {
    auto& tensor = *THPVariable_Unpack(object.ptr()).unsafeGetTensorImpl();
    if (auto* storage = storage_of(tensor); index_.contains(storage)) census.note_seen(*storage, tensor);
  }
  std::unordered_set<const c10::StorageImpl*> doubtful;
  for (std::size_t i = 0; i < covered_.size(); ++i) {
    const auto& covered = covered_[i];
    if (!covered.held || covered.still_covered) continue;
    auto& storage = *covered.held;
    outcomes[i].referenced = covered.seen_by_numpy && has_other_tensors(storage, census.seen(storage));
    // `covered_` holds it once.
    if (!outcomes[i].referenced && !census.accounts_for_all_references(storage, 1)) doubtful.insert(&storage);
  }
  if (!doubtful.empty()) {
    visit_tracked_tensors([&](auto& tensor, auto& storage) {
      if (doubtful.contains(&storage)) census.note_seen(storage, tensor);
    });
    for (const auto* storage : doubtful) {  // NOLINT(bugprone-nondeterministic-pointer-iteration-order): any order
      outcomes[index_.at(storage)].referenced = !census.accounts_for_all_references(*storage, 1);
    }
  }
  for (std::size_t i = 0; i < covered_.size(); ++i) {
    if (covered_[i].held && !covered_[i].still_covered) set_outlived(*covered_[i].exposure, outcomes[i].referenced);
  }
}

std::vector<std::size_t> ReadingScope::isolate(const std::vector<std::size_t>& indices) const {
  Storages siblings;
  visit_tracked_tensors(
      [&](auto&, auto& storage) { siblings.push_back(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&storage)); });
  std::vector<std::size_t> stuck;
  for (const auto index : indices) {
    const auto covered = covered_of_.at(index);
    if (covered && !torchcow::isolate(covered_[*covered], siblings)) stuck.push_back(index);
  }
  return stuck;
}

}  // namespace torchcow
