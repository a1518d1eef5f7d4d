// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "memo.h"
#include "protocol.h"

#include <vector>

/// The deep copy itself: what `copy.deepcopy(x, memo)` does, in its order, with its memo and its errors.
///
/// The walk keeps its own stack. A container that waits for a copy of a member is a Frame; `enter` either copies an
/// object at once or pushes a frame for it, and `resume` goes on with the frame on top. So nesting takes memory, not C
/// stack, and an object is copied at any depth that fits. Only user code that calls deepcopy again recurses, and
/// Python's limit counts that.
///
/// An object whose class is not known to have default methods (protocol.h) is asked exactly as `copy` asks it. User
/// code runs between steps. It may change containers that are being copied, the memo, or the classes. No step keeps a
/// borrowed reference over a call that can run user code, and each step reads lists and dicts again.
///
/// User code sees unfinished copies as deepcopy would show them: lists, dicts and instances are in the memo, filled as
/// far as the walk has come. An instance gets its attributes all at once at the end; a tuple does not exist before
/// that.
///
/// Every 1024 objects the walk looks for signals; every 16 of these times it lets other threads run.

namespace torchcow {

class Walk {
 public:
  explicit Walk(Memo& memo);
  ~Walk();
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;

  /// copy.deepcopy(source, memo)
  py::object deep_copy(PyObject* source);

 private:
  /// A copy under way. The comment at the function that resumes a kind of frame says what its fields hold.
  struct Frame {
    enum class Kind : std::uint8_t { list, tuple, dict, set, instance, module, slotted, method, rebuild };
    Kind kind;
    std::uint8_t phase = 0;
    Py_ssize_t position = 0;
    Py_ssize_t size = 0;
    std::size_t base = 0;  ///< where this frame's part of `values_` begins
    py::object source;
    py::object copy;
    py::object extra;
    py::object pending;

    Frame(Kind kind_, PyObject* source_) : kind(kind_), source(borrow(source_)) {}
  };

  /// A new reference to the copy, or nullptr: a frame was pushed.
  PyObject* enter(PyObject* source) {
    if (++ticks_ % objects_per_poll == 0) poll_interpreter();
    // As long as user code cannot see the memo, no atomic object is in it.
    if (memo_.hidden() && protocol_.plainly_atomic(Py_TYPE(source))) return borrow(source).release().ptr();
    return enter_compound(source);
  }
  PyObject* enter_compound(PyObject* source);
  PyObject* resume(PyObject* result);

  PyObject* enter_tuple(PyObject* source);
  PyObject* enter_set(PyObject* source);
  PyObject* enter_instance(PyObject* source, bool module);
  PyObject* enter_slotted(PyObject* source);
  PyObject* enter_ordered_dict(PyObject* source);
  PyObject* enter_tensor(PyObject* source, Treatment treatment);
  PyObject* ask(PyObject* source);
  PyObject* ask_reducer(PyObject* source, PyObject* reducer);
  PyObject* rebuild(PyObject* source, py::object reduced, Py_ssize_t most_parts = 5);

  PyObject* resume_list(PyObject* result);
  PyObject* resume_tuple(PyObject* result);
  PyObject* resume_dict(PyObject* result);
  PyObject* resume_set(PyObject* result);
  PyObject* resume_instance(PyObject* result);
  PyObject* resume_state(PyObject* result);
  PyObject* finish_instance();
  PyObject* resume_method(PyObject* result);
  PyObject* resume_rebuild(PyObject* result);
  bool rebuild_arguments(PyObject* result);
  bool rebuild_state(PyObject* result);
  bool rebuild_items(PyObject* result);
  bool rebuild_pairs(PyObject* result);

  Frame& push(Frame::Kind kind, PyObject* source);
  /// The frame on top is done. Its copy has been in the memo since it began.
  PyObject* finish_frame();
  /// The frame on top is done, and `copy` is its copy.
  PyObject* finish_frame_with(py::object copy);
  /// What deepcopy does at the end of each object: the memo gets it. Returns a new reference to the copy.
  PyObject* finish_object(PyObject* source, py::object copy);
  /// Looks for signals, and now and then lets other threads run.
  void poll_interpreter();
  /// The error of an iterator over a dict that user code has changed.
  [[noreturn]] static void raise_changed(const char* what);

  Frame& top() { return frames_.back(); }

  static constexpr std::uint32_t objects_per_poll = 1024;

  Memo& memo_;
  Protocol& protocol_;
  std::vector<Frame> frames_;
  std::vector<py::object> values_;
  std::uint32_t ticks_ = 0;
};

}  // namespace torchcow
