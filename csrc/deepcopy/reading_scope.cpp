#include "reading_scope.h"

#include "references.h"
#include "storage.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <unordered_set>

namespace torchcow {

namespace {

using Tensors = std::unordered_map<const c10::StorageImpl*, std::vector<MetTensor>>;

void meet(Tensors& tensors, const c10::StorageImpl* storage, c10::TensorImpl& tensor) {
  const auto known = tensors.find(storage);
  if (known != tensors.end()) meet_once(known->second, tensor);
}

/// An array's base is a tensor of its own, which Python can see: after NumPy all tensors must be those of the scope.
bool has_other_tensors(c10::StorageImpl& storage, const std::vector<MetTensor>& tensors) {
  return c10::raw::intrusive_ptr::use_count(&storage) > tensors.size() + python_references(storage) + 1;
}

}  // namespace

ReadingScope::ReadingScope(py::list tensors, bool checksum) : tensors_(std::move(tensors)) {
  std::vector<c10::StorageImpl*> storages;
  for (auto object : tensors_) {
    auto* storage = storage_of(object.cast<at::Tensor>());
    storages_.push_back(storage);
    if (storage != nullptr) storages.push_back(storage);
  }
  std::sort(storages.begin(), storages.end());
  storages.erase(std::unique(storages.begin(), storages.end()), storages.end());
  reading_.emplace(storages, checksum);
}

std::vector<bool> ReadingScope::covered() const {
  const auto list = reading_->covered();
  const std::unordered_set<const c10::StorageImpl*> covered(list.begin(), list.end());
  std::vector<bool> answers;
  for (const auto* storage : storages_) answers.push_back(covered.contains(storage));
  return answers;
}

std::vector<ReadingScope::Outcome> ReadingScope::end() {
  const auto outcomes = reading_->end();
  std::unordered_map<const c10::StorageImpl*, Outcome> found;
  std::unordered_map<const c10::StorageImpl*, c10::intrusive_ptr<c10::StorageImpl>> held;
  Tensors tensors;
  for (const auto& outcome : outcomes) {
    auto storage = outcome.storage.lock();
    if (!storage) continue;
    tensors[storage.get()];
    found[storage.get()] = {outcome.stayed, outcome.damaged};
    outcomes_.emplace(storage.get(), outcome);
    held.emplace(storage.get(), std::move(storage));
  }
  for (auto object : tensors_) {
    const auto& tensor = THPVariable_Unpack(object.ptr());
    meet(tensors, storage_of(tensor), *tensor.unsafeGetTensorImpl());
  }
  std::unordered_set<const c10::StorageImpl*> doubtful;
  for (auto& [storage, outcome] : found) {
    const auto& fate = outcomes_.at(storage);
    if (fate.goes_on) continue;
    outcome.looked_into = fate.seen_by_numpy && has_other_tensors(*held.at(storage), tensors.at(storage));
    // `held` holds it once.
    if (!outcome.looked_into && !explained(*storage, tensors.at(storage), 1)) doubtful.insert(storage);
  }
  if (!doubtful.empty()) {
    visit_tracked_tensors([&](auto& tensor, auto& storage) {
      if (doubtful.contains(&storage)) meet(tensors, &storage, tensor);
    });
    for (const auto* storage : doubtful) {
      found.at(storage).looked_into = !explained(*storage, tensors.at(storage), 1);
    }
  }
  std::vector<Outcome> answers;
  for (const auto* storage : storages_) {
    const auto outcome = found.find(storage);
    answers.push_back(outcome == found.end() ? Outcome() : outcome->second);
  }
  return answers;
}

std::vector<std::size_t> ReadingScope::isolate(const std::vector<std::size_t>& indices) const {
  std::vector<c10::intrusive_ptr<c10::StorageImpl>> siblings;
  visit_tracked_tensors(
      [&](auto&, auto& storage) { siblings.push_back(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&storage)); });
  std::vector<std::size_t> stuck;
  for (const auto index : indices) {
    const auto outcome = outcomes_.find(storages_.at(index));
    if (outcome == outcomes_.end()) continue;
    const auto owner = outcome->second.storage.lock();
    if (!torchcow::isolate(outcome->second.block, siblings, owner.get())) stuck.push_back(index);
  }
  return stuck;
}

}  // namespace torchcow
