// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/macros/Macros.h>

#include <array>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

/// Invariant checks: the numbered sentences of DESIGN.md as statements that run.
///
///     TORCHCOW_INVARIANT(I4, sharer.bytes <= bytes - sharer.offset, sharer.offset, sharer.bytes, bytes);
///
/// The first argument is the invariant's number, the second one the condition. The others are values that a message
/// shows; they are evaluated only when the condition is false.
///
/// A check runs in builds without NDEBUG (debug, asan, tsan), and in release builds if the environment has
/// TORCHCOW_CHECKS=1 when the extension is loaded. Otherwise it costs one branch on a bool and evaluates nothing.
///
/// Failure: throws InternalError, which Python sees as torchcow.errors.InternalError. In a `noexcept` function this
/// ends the process, after the message was written to stderr: the state is broken then, and any further number could be
/// wrong.

namespace torchcow {

enum class Invariant : std::uint8_t { I1 = 1, I2, I3, I4, I5, I6, I7, I8, I9, I10, I11 };

/// A defect of the engine itself. The bindings throw a class of their own instead (`set_failure_handler`).
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

namespace invariant {

inline constexpr std::size_t count = 11;

/// What DESIGN.md says; tests/docs/test_design.py compares the two.
[[nodiscard]] const char* sentence(Invariant id) noexcept;

#ifdef NDEBUG
/// Constant-initialized, so a check that runs before this library's initializers is off.
extern bool enabled;
#else
inline constexpr bool enabled = true;
#endif

/// Where a check stands, and what it says. `names` are those of the values, as they stand in the source.
struct Check {
  Invariant id;
  const char* condition;
  const char* names;
  const char* file;
  int line;
};

/// `values`: as many as there are names.
[[noreturn]] void raise(const Check& check, const std::string* values, std::size_t size);

/// Installed by the bindings, in place of the throw of an InternalError. It must throw.
void set_failure_handler(void (*handler)(const std::string& message)) noexcept;

template <typename... Values>
[[noreturn]] C10_NOINLINE void fail(const Check& check, const Values&... values) {
  [[maybe_unused]] const auto text = [](const auto& value) {
    std::ostringstream stream;
    stream << value;
    return stream.str();
  };
  const std::array<std::string, sizeof...(Values)> texts{text(values)...};
  raise(check, texts.data(), texts.size());
}

}  // namespace invariant

#define TORCHCOW_INVARIANT(id, condition, ...)                                                                      \
  do {                                                                                                              \
    if (C10_UNLIKELY(::torchcow::invariant::enabled && !(condition))) {                                             \
      ::torchcow::invariant::fail(::torchcow::invariant::Check{::torchcow::Invariant::id, #condition, #__VA_ARGS__, \
                                                               __FILE__, __LINE__} __VA_OPT__(, ) __VA_ARGS__);     \
    }                                                                                                               \
  } while (false)

}  // namespace torchcow
