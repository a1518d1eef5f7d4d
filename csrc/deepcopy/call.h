// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "census.h"
#include "python.h"

#include "share.h"

/// One call of clone, and how nested deep copies find it.
///
/// User code that runs in the middle gets the memo, and may call `copy.deepcopy` with it. What it copies then belongs
/// to the same call and shares memory too. So a running call is found by its memo.
///
/// An object of an excluded class is copied *without sharing*, with everything in it that has no copy yet.
///
/// A call may have *reducers*: pairs of a class and a function. For an object of such a class, or of a subclass of it,
/// the first function that fits replaces the object's own methods. It returns what `__reduce_ex__` would return, and,
/// as pickle allows it, a sixth part: a function that puts the copied state into the copy. If it returns
/// NotImplemented, the object's own methods are called after all.
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

  /// False while objects are copied without sharing.
  [[nodiscard]] bool shares() const noexcept { return unshared_depth_ == 0; }
  [[nodiscard]] bool excludes_any() const noexcept { return static_cast<bool>(excluded_); }
  /// Must objects of this class be copied without sharing?
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
  friend class UnsharedCopyScope;
  [[nodiscard]] PyObject* find_reducer(PyTypeObject* type) const noexcept;
  [[nodiscard]] bool accounts_for(const Probation& probation) const;

  bool strict_;
  py::object excluded_;
  py::object reducers_;
  int unshared_depth_ = 0;
  Census census_;
};

/// As long as it lives, `call` copies and does not share.
class UnsharedCopyScope {
 public:
  explicit UnsharedCopyScope(Call& call) noexcept : call_(call) { ++call_.unshared_depth_; }
  ~UnsharedCopyScope() { --call_.unshared_depth_; }
  UnsharedCopyScope(const UnsharedCopyScope&) = delete;
  UnsharedCopyScope& operator=(const UnsharedCopyScope&) = delete;

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
