// SPDX-License-Identifier: Apache-2.0
#include "first_write_error.h"

#include "engine_state.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

namespace torchcow {

namespace {

std::string (*resolve_name)(const c10::StorageImpl*) = nullptr;

std::string name_of(const c10::StorageImpl* storage) {
  return resolve_name != nullptr && storage != nullptr ? resolve_name(storage) : std::string();
}

/// ", among them A.weight, B.weight", or nothing.
std::string others_of(const FailureContext& context) {
  std::vector<std::string> names;
  for (const auto* storage : context.others) {
    auto name = name_of(storage);
    if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
    if (names.size() == 3) break;
  }
  std::string text;
  for (const auto& name : names) text += (text.empty() ? ", among them " : ", ") + name;
  return text;
}

}  // namespace

FailureContext failure_context(const Sharer& sharer, const c10::StorageImpl* storage, bool capture) {
  const Block& block = *sharer.block;
  std::lock_guard lock(engine().mutex);
  FailureContext context{storage, sharer.bytes, block.device(), block.sharer_count, capture};
  std::size_t count = 0;
  for (auto* other = block.sharers; other != nullptr && count < context.others.size(); other = other->next) {
    if (other != &sharer && other->storage != nullptr) context.others[count++] = other->storage;
  }
  return context;
}

std::string describe(const FailureContext& context, std::string_view operator_name) {
  const auto name = name_of(context.storage);
  const auto tensor =
      c10::str(name.empty() ? "a shared tensor" : name, " (", context.bytes, " bytes on ", context.device, ")");
  if (context.capture) {
    return c10::str("torchcow: ", operator_name, " makes the first write to ", tensor,
                    " while a graph is being captured. The copy would become a part of the graph. "
                    "Call torchcow.materialize(...) on what the graph writes before the capture.");
  }
  return c10::str("torchcow: no memory for the first write to ", tensor, " by ", operator_name, ". It is shared by ",
                  context.sharers, " tensors", others_of(context),
                  ". Nothing was changed: all still share and hold what they held. "
                  "Free memory (torchcow.materialize takes it earlier) and try again.");
}

void set_name_resolver(std::string (*resolve)(const c10::StorageImpl*)) noexcept { resolve_name = resolve; }

}  // namespace torchcow
