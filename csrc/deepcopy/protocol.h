// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "python.h"

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

/// What `copy`, `copyreg` and torch would do with an object, decided once for each class.
///
/// `copy.deepcopy` asks each object for its table entries and methods. Nearly always the answers are the defaults, and
/// asking is the whole cost. So a class is asked once. Its answer is kept until something changes that it depends on:
/// the class or a base of it, `copy._deepcopy_dispatch`, or `copyreg.dispatch_table` (cpython_internals.h says how
/// Python shows that). A patch at run time is noticed by the next object.
///
/// Overrides in an instance's `__dict__` are not cached: the function that copies an instance looks for them.
///
/// Threads: everything here happens under the interpreter lock.

namespace torchcow {

/// How the objects of a class are copied. All but the last two need no call of a Python function.
enum class Treatment : std::uint8_t {
  atomic,  ///< the object is its own copy
  list,
  tuple,
  dict,
  method,        ///< a bound method
  ordered_dict,  ///< exactly collections.OrderedDict
  set,           ///< exactly set
  frozenset,     ///< exactly frozenset
  instance,      ///< a Python class with a `__dict__`, no slots, and every method of the protocol as object has it
  slotted,       ///< the same, with slots instead of the `__dict__`
  module,        ///< an instance with `__getattr__`, `__getstate__` and `__setstate__` of torch.nn.Module
  parameter,     ///< torch.nn.Parameter, or a subclass that inherits all that a deep copy uses
  tensor,        ///< exactly torch.Tensor
  storage,       ///< exactly torch.UntypedStorage
  entry,         ///< an entry of copy._deepcopy_dispatch that is not copy's own
  ask,           ///< the rest: `__deepcopy__`, copyreg, `__reduce_ex__`, `__reduce__`, in that order
};

/// Names of attributes, interned.
struct Names {
  PyObject* deepcopy = intern("__deepcopy__");
  PyObject* reduce_ex = intern("__reduce_ex__");
  PyObject* reduce = intern("__reduce__");
  PyObject* getstate = intern("__getstate__");
  PyObject* setstate = intern("__setstate__");
  PyObject* getnewargs = intern("__getnewargs__");
  PyObject* getnewargs_ex = intern("__getnewargs_ex__");
  PyObject* getattribute = intern("__getattribute__");
  PyObject* getattr = intern("__getattr__");
  PyObject* dict = intern("__dict__");
  PyObject* slotnames = intern("__slotnames__");
  PyObject* new_ = intern("__new__");
  PyObject* init = intern("__init__");
  PyObject* torch_function = intern("__torch_function__");
  PyObject* data = intern("data");
  PyObject* requires_grad = intern("requires_grad");
  PyObject* parameters = intern("_parameters");
  PyObject* buffers = intern("_buffers");
  PyObject* modules = intern("_modules");
  PyObject* compiled_call = intern("_compiled_call_impl");
  PyObject* append = intern("append");
  PyObject* items = intern("items");
  PyObject* update = intern("update");
  PyObject* torch = intern("torch");
};

/// One of the classes of torch that share memory, and how a deep copy treats it.
struct TensorClass {
  PyTypeObject* type = nullptr;
  PyObject* torch_deepcopy = nullptr;  ///< its `__deepcopy__` if torch wrote that
  PyObject* entry = nullptr;           ///< ours in copy._deepcopy_dispatch, once installed
  PyObject* previous_entry = nullptr;  ///< what was in the table before, usually nothing

  /// Does a deep copy of the class reach this entry, and would torch's own method follow without it?
  [[nodiscard]] bool is_entered_as(PyObject* found) const noexcept {
    return found == entry && previous_entry == nullptr;
  }
};

class Protocol {
 public:
  /// The only one; it lives as long as the process.
  static Protocol& get();

  Treatment treatment_of(PyTypeObject* type);

  /// Is `type` one of the most common atomic types, and are all atomic types of `copy` still registered as atomic?
  bool plainly_atomic(PyTypeObject* type) {
    const bool atomic = type == &PyUnicode_Type || type == &PyLong_Type || type == &PyBool_Type ||
                        type == &PyFloat_Type || type == Py_TYPE(Py_None) || type == &PyFunction_Type ||
                        type == &PyType_Type;
    if (!atomic) return false;
    refresh();
    return atomic_types_are_plain_;
  }

  /// The entry of copy._deepcopy_dispatch, borrowed, or nullptr.
  PyObject* entry_of(PyTypeObject* type);

  /// The names of a slotted class's slots, a list, borrowed.
  PyObject* slots_of(PyTypeObject* type) const { return find_in_class(type, names.slotnames); }

  /// Is the constructor of torch.nn.Parameter still torch's?
  [[nodiscard]] bool constructs_parameters() const;

  /// Does this `__dict__` of an instance override none of the methods that a deep copy asks for?
  bool plain_attributes(PyObject* dict) const;
  /// The same for a module, whose tables of children answer too; and torch.nn.Module.__setstate__ would add nothing.
  /// Adds the names and values in `dict` to `state`, all of them if the answer is yes.
  bool plain_module(PyObject* dict, std::vector<py::object>& state) const;

  /// Puts entries for parameters, tensors and storages into copy._deepcopy_dispatch.
  void install(py::object parameter_entry, py::object tensor_entry, py::object storage_entry);
  /// What a deep copy of these did before there were such entries, and does without a running clone.
  py::object inherited(PyObject* source, PyObject* memo);

  Names names;
  TensorClass parameter, tensor, storage;
  PyTypeObject *module_type, *device_mode_type;
  PyObject *error, *dispatch_table;  // of copy and copyreg
  PyObject* python_deepcopy;         // copy.deepcopy as written in Python
  PyObject* call_reconstruct;        // (source, memo, reduced) -> copy._reconstruct(source, memo, *reduced)
  PyObject* empty_tuple;

 private:
  Protocol();

  /// How a class is treated: as long as it has this version, and the tables are those of this epoch.
  struct Answer {
    PyTypeObject* type = nullptr;
    std::uint32_t version = 0;
    std::uint32_t epoch = 0;
    Treatment treatment = Treatment::ask;
  };
  Treatment decide(PyTypeObject* type);
  Treatment decide_without_entry(PyTypeObject* type);
  [[nodiscard]] bool builds_like_object(PyTypeObject* type) const;
  [[nodiscard]] bool inherits_parameter(PyTypeObject* type) const;
  /// Brings what is kept about the tables up to date: a change of them begins a new epoch.
  void refresh() {
    if (const auto changes = table_changes_->count(); changes != seen_table_changes_) begin_epoch(changes);
  }
  void begin_epoch(std::uint64_t table_changes);

  PyObject* dispatch_;  // copy._deepcopy_dispatch
  PyObject *copy_atomic_, *copy_list_, *copy_tuple_, *copy_dict_, *copy_method_;
  PyObject *object_reduce_ex_, *object_reduce_, *object_getstate_, *object_getattribute_;
  PyObject *module_getattr_, *module_getstate_, *module_setstate_;
  PyObject *parameter_new_, *parameter_init_, *parameter_torch_function_, *tensor_data_, *tensor_requires_grad_,
      *enum_deepcopy_;
  PyObject* module_attributes_;  // a tuple of what Module.__setstate__ adds
  struct UsualAttribute {
    PyObject* name;
    bool holds_children;
  };
  std::vector<UsualAttribute> usual_module_;  // what Module.__init__ sets, in order

  static constexpr int answer_bits = 9;
  std::array<std::array<Answer, 2>, 1 << answer_bits> answers_{};  ///< by the hash of the class; the newer one first
  std::uint32_t epoch_ = 0;
  std::optional<DictChanges> table_changes_;  ///< of copy._deepcopy_dispatch and copyreg.dispatch_table
  std::uint64_t seen_table_changes_ = ~0ULL;
  std::vector<PyTypeObject*> atomic_types_;
  bool atomic_types_are_plain_ = false;
};

}  // namespace torchcow
