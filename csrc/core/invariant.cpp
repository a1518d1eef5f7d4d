// SPDX-License-Identifier: Apache-2.0
#include "invariant.h"

#include <c10/util/StringUtil.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

namespace torchcow::invariant {

#ifdef NDEBUG
bool enabled = false;
#endif

namespace {

#ifdef NDEBUG
[[maybe_unused]] const bool asked = [] {
  const char* value = std::getenv("TORCHCOW_CHECKS");
  return enabled = value != nullptr && *value != '\0' && std::string_view(value) != "0";
}();
#endif

std::atomic<void (*)(const std::string&)> failure_handler{nullptr};

constexpr std::array<const char*, count> sentences{
    "The bytes of a block do not change while it has a sharer.",
    "A sharer's storage hands out no mutable pointer before it is materialized.",
    "A block lives as long as it has a sharer, or a former sharer may still read it.",
    "A sharer's span lies within its block.",
    "A failed materialization changes nothing: source and clones are whole, still share, and a retry works.",
    "Of two threads, one that writes a storage and one that shares it, at least one sees the other.",
    "A reader in another thread sees old, new or torn values, never memory that was freed or not yet written.",
    "On a device, no queued work reads or writes memory that was given to another owner.",
    "Fair shares add up to unique bytes.",
    "No storage stops sharing without an event.",
    "A storage joins another block only with bytes that were compared while nothing could write them.",
};

/// "a = 1, f(b, c) = 2" for the names "a, f(b, c)".
std::string with_values(std::string_view names, const std::string* values, std::size_t size) {
  std::string text;
  for (std::size_t i = 0; i < size; ++i) {
    std::size_t end = 0;
    for (int depth = 0; end < names.size() && (names[end] != ',' || depth > 0); ++end) {
      depth += (names[end] == '(' ? 1 : 0) - (names[end] == ')' ? 1 : 0);
    }
    text += (i == 0 ? "" : ", ") + std::string(names.substr(0, end)) + " = " + values[i];
    names.remove_prefix(end);
    while (!names.empty() && (names.front() == ',' || names.front() == ' ')) names.remove_prefix(1);
  }
  return text;
}

}  // namespace

const char* sentence(Invariant id) noexcept { return sentences[static_cast<std::size_t>(id) - 1]; }

void raise(const Check& check, const std::string* values, std::size_t size) {
  const auto number = static_cast<int>(check.id);
  const std::string_view path = check.file;
  const auto place = c10::str(path.substr(path.rfind('/') + 1), ":", check.line);
  const auto detail = size == 0 ? std::string() : " with " + with_values(check.names, values, size);
  const auto message = c10::str("torchcow: invariant I", number, " is broken: ", sentence(check.id), " At ", place,
                                ", (", check.condition, ") is false", detail,
                                ". This is a defect of torchcow. Do not trust the tensors of this process; "
                                "please report this message.");
  if (auto* handler = failure_handler.load()) handler(message);
  throw InternalError(message);
}

void set_failure_handler(void (*handler)(const std::string&)) noexcept { failure_handler = handler; }

}  // namespace torchcow::invariant
