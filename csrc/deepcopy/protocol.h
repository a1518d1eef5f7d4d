#pragma once

#include "python.h"

#include <array>
#include <cstdint>
#include <vector>

/// What `copy`, `copyreg` and torch would do with an object, decided once for each class.
///
/// `copy.deepcopy` asks each object for its table entries and methods. Nearly always the answers are the
/// defaults, and asking is the whole cost. So a class is asked once, and the answer is kept as long as Python's own
/// version numbers say that nothing it depends on has changed: the class or a base of it (the type's version
/// tag), `copy._deepcopy_dispatch`, or `copyreg.dispatch_table` (the dicts' version tags). A patch at run time is
/// noticed by the next object.
///
/// What an instance can override by itself (a method in its `__dict__`) is the affair of who copies it.
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

class Protocol {
 public:
  /// The only one; it lives as long as the process.
  static Protocol& get();

  Treatment treatment_of(PyTypeObject* type);

  /// Is `type` one of the atomic types of `copy`, and has nobody registered anything else for those?
  bool plainly_atomic(PyTypeObject* type) {
    const bool atomic = type == &PyUnicode_Type || type == &PyLong_Type || type == &PyBool_Type ||
                        type == &PyFloat_Type || type == Py_TYPE(Py_None) || type == &PyFunction_Type ||
                        type == &PyType_Type;
    if (!atomic) return false;
    forget_if_tables_changed();
    return atomic_types_are_plain_;
  }

  /// The entry of copy._deepcopy_dispatch, borrowed, or nullptr.
  PyObject* entry_of(PyTypeObject* type);

  /// The names of a slotted class's slots, a list, borrowed.
  PyObject* slots_of(PyTypeObject* type) const { return _PyType_Lookup(type, names.slotnames); }

  /// Is the constructor of torch.nn.Parameter still torch's?
  bool constructs_parameters() const;

  /// Has an instance with this `__dict__` none of the methods that a deep copy asks for, as far as it is up to the
  /// instance?
  bool plain_attributes(PyObject* dict) const;
  /// The same for a module, whose tables of children answer too; and torch.nn.Module.__setstate__ would add nothing.
  /// Adds the names and values in `dict` to `state`, all of them if the answer is yes.
  bool plain_module(PyObject* dict, std::vector<py::object>& state) const;

  /// Puts entries for parameters, tensors and storages into copy._deepcopy_dispatch.
  void install(py::object parameter, py::object tensor, py::object storage);
  /// What a deep copy of these did before there were such entries, and does without a running clone.
  py::object inherited(PyObject* source, PyObject* memo);

  Names names;
  PyTypeObject *module_type, *parameter_type, *tensor_type, *storage_type, *device_mode_type;
  PyObject *error, *dispatch_table;  // of copy and copyreg
  PyObject* copys_deepcopy;          // copy.deepcopy as written in Python
  PyObject* call_reconstruct;        // (source, memo, reduced) -> copy._reconstruct(source, memo, *reduced)
  PyObject* empty_tuple;

 private:
  Protocol();

  struct Known {
    PyTypeObject* type = nullptr;
    std::uint64_t version = 0;
    Treatment treatment = Treatment::ask;
  };
  Treatment decide(PyTypeObject* type);
  Treatment decide_without_entry(PyTypeObject* type);
  bool builds_like_object(PyTypeObject* type) const;
  bool inherits_parameter(PyTypeObject* type) const;
  void forget_if_tables_changed() {
    if (version_of(dispatch_) != dispatch_version_ || version_of(dispatch_table) != copyreg_version_) forget();
  }
  void forget();

  PyObject* dispatch_;  // copy._deepcopy_dispatch
  PyObject *copy_atomic_, *copy_list_, *copy_tuple_, *copy_dict_, *copy_method_;
  PyObject *object_reduce_ex_, *object_reduce_, *object_getstate_, *object_getattribute_;
  PyObject *module_getattr_, *module_getstate_, *module_setstate_, *parameter_deepcopy_, *tensor_deepcopy_,
      *storage_deepcopy_;
  PyObject *parameter_new_, *parameter_init_, *parameter_torch_function_, *tensor_data_, *tensor_requires_grad_,
      *enum_deepcopy_;
  PyObject* module_attributes_;  // a tuple of what Module.__setstate__ adds
  struct UsualAttribute {
    PyObject* name;
    bool holds_children;
  };
  std::vector<UsualAttribute> usual_module_;  // what Module.__init__ sets, in order
  PyObject *our_parameter_ = nullptr, *our_tensor_ = nullptr, *our_storage_ = nullptr;
  PyObject *old_parameter_ = nullptr, *old_tensor_ = nullptr, *old_storage_ = nullptr;

  static constexpr int known_bits = 9;
  std::array<std::array<Known, 2>, 1 << known_bits> known_{};  ///< by the hash of the class; the newer answer first
  std::uint64_t dispatch_version_ = ~0ULL, copyreg_version_ = ~0ULL;
  std::vector<PyTypeObject*> atomic_types_;
  bool atomic_types_are_plain_ = false;
};

}  // namespace torchcow
