#pragma once

#include "census.h"
#include "python.h"

#include "share.h"

/// One call of clone, and how nested deep copies find it.
///
/// User code that is called in the middle gets the memo, and may call `copy.deepcopy` with it. What it copies then
/// belongs to the same call and shares memory too. So a running call is found by its memo.
///
/// An object of an excluded class is copied *apart*: with everything in it that has no copy yet, and without sharing.
///
/// A call may have *reducers*: pairs of a class and a function. An object of such a class, or of a subclass of it, is
/// not asked how it is copied; the first function that fits is. It answers what `__reduce_ex__` would answer, and, as
/// pickle allows it, a sixth part: a function that puts the copied state into the copy. NotImplemented passes the
/// question on to the object.
///
/// Threads: under the interpreter lock.

namespace torchcow {

class Call {
 public:
  /// `excluded`: a tuple of classes, or nothing. `reducers`: a tuple of pairs, or nothing.
  explicit Call(bool strict, py::object excluded = {}, py::object reducers = {})
      : strict_(strict), excluded_(std::move(excluded)), reducers_(std::move(reducers)) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  SharingCall sharing;

  /// False while something is copied apart.
  [[nodiscard]] bool shares() const noexcept { return apart_ == 0; }
  [[nodiscard]] bool excludes_any() const noexcept { return static_cast<bool>(excluded_); }
  /// Must objects of this class be copied apart?
  [[nodiscard]] bool excludes(PyTypeObject* type) const noexcept;
  /// The reducer for objects of this class, borrowed, or nullptr.
  [[nodiscard]] PyObject* reducer_of(PyTypeObject* type) const noexcept {
    return reducers_ ? find_reducer(type) : nullptr;
  }

  /// Counts a tensor if its storage reads a block that this call made.
  void note_seen(c10::TensorImpl& tensor);

  /// Ends the call: confirms each block that it made, or takes the share back where something that Python cannot see
  /// may hold a pointer into the block (census.h).
  void finish();

  /// The running call with this memo, or nullptr.
  static Call* running(PyObject* memo);

 private:
  friend class Apart;
  [[nodiscard]] PyObject* find_reducer(PyTypeObject* type) const noexcept;
  [[nodiscard]] bool accounts_for(const Probation& probation) const;

  bool strict_;
  py::object excluded_;
  py::object reducers_;
  int apart_ = 0;
  Census census_;
};

/// As long as it lives, `call` copies and does not share.
class Apart {
 public:
  explicit Apart(Call& call) noexcept : call_(call) { ++call_.apart_; }
  ~Apart() { --call_.apart_; }
  Apart(const Apart&) = delete;
  Apart& operator=(const Apart&) = delete;

 private:
  Call& call_;
};

/// As long as it lives, `memo` leads to `call`. The memo must outlive it.
class Running {
 public:
  Running(PyObject* memo, Call& call);
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  PyObject* memo_;
};

}  // namespace torchcow
