// SPDX-License-Identifier: Apache-2.0

#include "protocol.h"

#include <torch/csrc/autograd/python_variable.h>

#include <pybind11/eval.h>

#include <algorithm>
#include <string_view>
#include <utility>

namespace torchcow {

namespace {

/// Kept for the life of the process.
PyObject* keep(py::object object) { return object.release().ptr(); }

/// `dict.get(key)`, borrowed; runs `__hash__` of a metaclass if there is one.
PyObject* look_up(PyObject* dict, PyTypeObject* key) {
  PyObject* found = PyDict_GetItemWithError(dict, reinterpret_cast<PyObject*>(key));
  if (found == nullptr && PyErr_Occurred()) raise();
  return found;
}

/// The function must be the one in torch's sources; a patch that came before us is honoured, not taken for torch's.
PyObject* written_in(PyObject* function, std::string_view file) {
  if (function == nullptr || !PyFunction_Check(function)) return nullptr;
  auto name = borrow(function).attr("__code__").attr("co_filename").cast<std::string>();
  return name.ends_with(file) ? keep(borrow(function)) : nullptr;
}

/// The same code in another function object: replacing the code of the first one leaves it as it is.
PyObject* function_of_its_own(const py::object& function) {
  if (!PyFunction_Check(function.ptr())) return keep(function);
  const auto copy = steal(PyFunction_New(PyFunction_GET_CODE(function.ptr()), PyFunction_GET_GLOBALS(function.ptr())));
  check(PyFunction_SetDefaults(copy.ptr(), PyFunction_GET_DEFAULTS(function.ptr())));
  return keep(copy);
}

bool is_dunder(PyObject* name) {
  if (!PyUnicode_CheckExact(name)) return true;  // equal to anything, for all we know
  return PyUnicode_IS_ASCII(name) && PyUnicode_GET_LENGTH(name) > 2 && PyUnicode_1BYTE_DATA(name)[0] == '_' &&
         PyUnicode_1BYTE_DATA(name)[1] == '_';
}

bool holds_dunder(PyObject* dict) {
  PyObject *key, *value;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &key, &value)) {
    if (is_dunder(key)) return true;
  }
  return false;
}

}  // namespace

Protocol& Protocol::get() {
  static auto* protocol = new Protocol();
  return *protocol;
}

Protocol::Protocol() {
  empty_tuple = keep(steal(PyTuple_New(0)));

  const auto copy = py::module_::import("copy");
  const auto copyreg = py::module_::import("copyreg");
  const auto attribute = [](const py::object& object, const char* name) { return keep(object.attr(name)); };
  dispatch_ = attribute(copy, "_deepcopy_dispatch");
  copy_atomic_ = keep(py::getattr(copy, "_deepcopy_atomic", py::none()));
  copy_list_ = attribute(copy, "_deepcopy_list");
  copy_tuple_ = attribute(copy, "_deepcopy_tuple");
  copy_dict_ = attribute(copy, "_deepcopy_dict");
  copy_method_ = attribute(copy, "_deepcopy_method");
  python_deepcopy = function_of_its_own(copy.attr("deepcopy"));
  call_reconstruct =
      keep(py::eval("lambda source, memo, reduced: _reconstruct(source, memo, *reduced)", copy.attr("__dict__")));
  error = attribute(copy, "Error");
  dispatch_table = attribute(copyreg, "dispatch_table");
  table_changes_.emplace(dispatch_, dispatch_table);

  object_reduce_ex_ = find_in_class(&PyBaseObject_Type, names.reduce_ex);
  object_reduce_ = find_in_class(&PyBaseObject_Type, names.reduce);
  object_getstate_ = find_in_class(&PyBaseObject_Type, names.getstate);  // nullptr before Python 3.11
  object_getattribute_ = find_in_class(&PyBaseObject_Type, names.getattribute);

  const auto torch = py::module_::import("torch");
  const auto module_class = torch.attr("nn").attr("Module");
  module_type = reinterpret_cast<PyTypeObject*>(keep(module_class));
  parameter.type = reinterpret_cast<PyTypeObject*>(keep(torch.attr("nn").attr("Parameter")));
  tensor.type = reinterpret_cast<PyTypeObject*>(THPVariableClass);
  storage.type = reinterpret_cast<PyTypeObject*>(keep(torch.attr("UntypedStorage")));
  device_mode_type =
      reinterpret_cast<PyTypeObject*>(keep(py::module_::import("torch.utils._device").attr("DeviceContext")));
  module_getattr_ = written_in(find_in_class(module_type, names.getattr), "torch/nn/modules/module.py");
  module_getstate_ = written_in(find_in_class(module_type, names.getstate), "torch/nn/modules/module.py");
  module_setstate_ = written_in(find_in_class(module_type, names.setstate), "torch/nn/modules/module.py");
  parameter.torch_deepcopy = written_in(find_in_class(parameter.type, names.deepcopy), "torch/nn/parameter.py");
  tensor.torch_deepcopy = written_in(find_in_class(tensor.type, names.deepcopy), "torch/_tensor.py");
  storage.torch_deepcopy = written_in(find_in_class(storage.type, names.deepcopy), "torch/storage.py");
  const auto enum_type = py::module_::import("enum").attr("Enum");
  enum_deepcopy_ =
      written_in(find_in_class(reinterpret_cast<PyTypeObject*>(enum_type.ptr()), names.deepcopy), "enum.py");
  parameter_new_ = find_in_class(parameter.type, names.new_);
  parameter_init_ = find_in_class(parameter.type, names.init);
  parameter_torch_function_ = find_in_class(parameter.type, names.torch_function);
  tensor_data_ = find_in_class(tensor.type, names.data);
  tensor_requires_grad_ = find_in_class(tensor.type, names.requires_grad);

  const auto blank = steal(PyBaseObject_Type.tp_new(module_type, empty_tuple, nullptr));
  if (module_setstate_ != nullptr) borrow(module_setstate_)(blank, py::dict());
  if (module_getstate_ != nullptr) {
    // The state is a copy of __dict__ without this attribute; if it is anything else, modules are asked for it.
    const auto probe = steal(PyBaseObject_Type.tp_new(module_type, empty_tuple, nullptr));
    auto attributes = py::reinterpret_borrow<py::dict>(probe.attr("__dict__"));
    attributes[names.compiled_call] = 1;
    attributes["a"] = 2;
    py::dict expected;
    expected["a"] = 2;
    const auto state = borrow(module_getstate_)(probe);
    if (!state.equal(expected) || py::len(attributes) != 2) module_getstate_ = nullptr;
  }
  module_attributes_ = keep(py::tuple(blank.attr("__dict__")));

  const auto usual = py::tuple(module_class().attr("__dict__"));
  for (const auto name : usual) {
    PyObject* kept = name.inc_ref().ptr();
    usual_module_.push_back({kept, kept == names.parameters || kept == names.buffers || kept == names.modules});
  }
  const auto complete = [&](PyObject* name) { return usual.contains(py::handle(name)); };
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(module_attributes_); ++i) {
    if (!complete(PyTuple_GET_ITEM(module_attributes_, i))) usual_module_.push_back({Py_None, false});  // never found
  }

  for (const char* name :
       {"NoneType", "EllipsisType", "NotImplementedType", "CodeType", "BuiltinFunctionType", "FunctionType"}) {
    const auto types = py::module_::import("types");
    if (py::hasattr(types, name)) atomic_types_.push_back(reinterpret_cast<PyTypeObject*>(attribute(types, name)));
  }
  for (PyTypeObject* type : {&PyLong_Type, &PyFloat_Type, &PyBool_Type, &PyComplex_Type, &PyBytes_Type, &PyUnicode_Type,
                             &PyType_Type, &PyRange_Type, &PyProperty_Type, weak_reference_type()}) {
    atomic_types_.push_back(type);
  }
}

void Protocol::begin_epoch(std::uint64_t table_changes) {
  if (++epoch_ == 0) {  // the numbers begin again
    answers_.fill({});
    epoch_ = 1;
  }
  atomic_types_are_plain_ = copy_atomic_ != Py_None && std::ranges::all_of(atomic_types_, [&](PyTypeObject* type) {
                              return look_up(dispatch_, type) == copy_atomic_;
                            });
  seen_table_changes_ = table_changes;  // as it was before the tables were read, which may run Python
}

PyObject* Protocol::entry_of(PyTypeObject* type) { return look_up(dispatch_, type); }

Treatment Protocol::treatment_of(PyTypeObject* type) {
  refresh();
  auto& [newer, older] = answers_[hash_of(type) >> (64 - answer_bits)];
  const auto holds = [&](const Answer& answer) {
    return answer.type == type && answer.epoch == epoch_ && answer.version != 0 && answer.version == version_of(type);
  };
  if (holds(newer)) return newer.treatment;
  if (holds(older)) return older.treatment;
  find_in_class(type, names.dict);  // gives the class a version, if it had none
  const auto version = version_of(type);
  const auto epoch = epoch_;
  const auto treatment = decide(type);
  // To decide may run Python, which may change the class or the tables, or come here again.
  if (version == version_of(type) && epoch == epoch_) older = std::exchange(newer, {type, version, epoch, treatment});
  return treatment;
}

Treatment Protocol::decide(PyTypeObject* type) {
  PyObject* entry = entry_of(type);
  if (entry == nullptr) return decide_without_entry(type);
  if (entry == copy_atomic_) return Treatment::atomic;
  if (entry == copy_list_ && type == &PyList_Type) return Treatment::list;
  if (entry == copy_tuple_ && type == &PyTuple_Type) return Treatment::tuple;
  if (entry == copy_dict_ && type == &PyDict_Type) return Treatment::dict;
  if (entry == copy_method_ && type == &PyMethod_Type) return Treatment::method;
  const auto inherits = [&](const TensorClass& tensor_class) {
    return find_in_class(type, names.deepcopy) == tensor_class.torch_deepcopy;
  };
  if (parameter.is_entered_as(entry) && inherits_parameter(type)) return Treatment::parameter;
  if (tensor.is_entered_as(entry) && inherits(tensor)) return Treatment::tensor;
  if (storage.is_entered_as(entry) && inherits(storage)) return Treatment::storage;
  return Treatment::entry;
}

Treatment Protocol::decide_without_entry(PyTypeObject* type) {
  if (PyType_IsSubtype(type, &PyType_Type)) return Treatment::atomic;
  if (look_up(dispatch_table, type) != nullptr) return Treatment::ask;
  // Not by name: members that are strings or numbers as well find that of str or int, which is the same.
  if (enum_deepcopy_ != nullptr && find_in_class(type, names.deepcopy) == enum_deepcopy_ &&
      type->tp_getattro == &PyObject_GenericGetAttr)
    return Treatment::atomic;
  if (type == &PyODict_Type) return Treatment::ordered_dict;
  if (type == &PySet_Type) return Treatment::set;
  if (type == &PyFrozenSet_Type) return Treatment::frozenset;
  if (PyType_IsSubtype(type, parameter.type)) {
    return inherits_parameter(type) ? Treatment::parameter : Treatment::ask;
  }
  if (!builds_like_object(type)) return Treatment::ask;
  PyObject* getattr = find_in_class(type, names.getattr);
  PyObject* setstate = find_in_class(type, names.setstate);
  PyObject* getstate = find_in_class(type, names.getstate);
  // As copyreg finds them; it writes them into the class, the first time.
  const auto slots = steal(PyObject_CallMethod(py::module_::import("copyreg").ptr(), "_slotnames", "O", type));
  if (!PyList_Check(slots.ptr())) return Treatment::ask;
  if (PyList_GET_SIZE(slots.ptr()) > 0) {
    const bool only = type->tp_dictoffset == 0 && find_in_class(type, names.slotnames) == slots.ptr();
    return only && getattr == nullptr && setstate == nullptr && getstate == object_getstate_ ? Treatment::slotted
                                                                                             : Treatment::ask;
  }
  if (type->tp_dictoffset == 0) return Treatment::ask;
  if (getattr == nullptr && setstate == nullptr && getstate == object_getstate_) return Treatment::instance;
  const bool of_torch = module_getattr_ != nullptr && module_getstate_ != nullptr && module_setstate_ != nullptr;
  return of_torch && getattr == module_getattr_ && getstate == module_getstate_ && setstate == module_setstate_
             ? Treatment::module
             : Treatment::ask;
}

bool Protocol::builds_like_object(PyTypeObject* type) const {
  if (type->tp_new != PyBaseObject_Type.tp_new || type->tp_itemsize != 0) return false;
  if (Py_TYPE(type)->tp_getattro != PyType_Type.tp_getattro) return false;
  const PyObject* order = type->tp_mro;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(order); ++i) {
    auto* base = reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(order, i));
    if (base != &PyBaseObject_Type && !PyType_HasFeature(base, Py_TPFLAGS_HEAPTYPE)) return false;
  }
  PyObject* dict = find_in_class(type, names.dict);
  if (dict != nullptr && Py_TYPE(dict) != &PyGetSetDescr_Type) return false;
  for (PyObject* name : {names.deepcopy, names.getnewargs, names.getnewargs_ex}) {
    if (find_in_class(type, name) != nullptr) return false;
  }
  return find_in_class(type, names.reduce_ex) == object_reduce_ex_ &&
         find_in_class(type, names.reduce) == object_reduce_ &&
         find_in_class(type, names.getattribute) == object_getattribute_;
}

bool Protocol::inherits_parameter(PyTypeObject* type) const {
  return parameter.torch_deepcopy != nullptr && find_in_class(type, names.deepcopy) == parameter.torch_deepcopy &&
         find_in_class(type, names.torch_function) == parameter_torch_function_ &&
         find_in_class(type, names.data) == tensor_data_ &&
         find_in_class(type, names.requires_grad) == tensor_requires_grad_ &&
         find_in_class(type, names.getattribute) == object_getattribute_ &&
         find_in_class(type, names.getattr) == nullptr;
}

bool Protocol::constructs_parameters() const {
  return find_in_class(parameter.type, names.new_) == parameter_new_ &&
         find_in_class(parameter.type, names.init) == parameter_init_;
}

bool Protocol::plain_attributes(PyObject* dict) const { return !holds_dunder(dict); }

bool Protocol::plain_module(PyObject* dict, std::vector<py::object>& state) const {
  const auto plain_children = [](PyObject* children) {
    return PyDict_Check(children) && (PyDict_GET_SIZE(children) == 0 || !holds_dunder(children));
  };
  // Nearly always the attributes begin as Module.__init__ made them, the very same strings.
  PyObject *key, *value;
  Py_ssize_t position = 0;
  std::size_t usual = 0;
  while (PyDict_Next(dict, &position, &key, &value)) {
    if (usual < usual_module_.size() && key == usual_module_[usual].name) {
      if (usual_module_[usual].holds_children && !plain_children(value)) return false;
      ++usual;
    } else if (is_dunder(key) || key == names.compiled_call) {
      return false;
    }
    state.push_back(borrow(key));
    state.push_back(borrow(value));
  }
  if (usual == usual_module_.size()) return true;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(module_attributes_); ++i) {
    if (!check(PyDict_Contains(dict, PyTuple_GET_ITEM(module_attributes_, i)))) return false;
  }
  if (check(PyDict_Contains(dict, names.compiled_call))) return false;
  for (PyObject* name : {names.parameters, names.buffers, names.modules}) {
    PyObject* children = PyDict_GetItemWithError(dict, name);
    if (children == nullptr && PyErr_Occurred()) raise();
    if (children != nullptr && !plain_children(children)) return false;
  }
  return true;
}

void Protocol::install(py::object parameter_entry, py::object tensor_entry, py::object storage_entry) {
  const auto put = [&](TensorClass& tensor_class, py::object entry) {
    tensor_class.previous_entry = entry_of(tensor_class.type);
    Py_XINCREF(tensor_class.previous_entry);
    tensor_class.entry = keep(std::move(entry));
    check(PyDict_SetItem(dispatch_, reinterpret_cast<PyObject*>(tensor_class.type), tensor_class.entry));
  };
  put(parameter, std::move(parameter_entry));
  put(tensor, std::move(tensor_entry));
  put(storage, std::move(storage_entry));
}

py::object Protocol::inherited(PyObject* source, PyObject* memo) {
  for (const auto* tensor_class : {&parameter, &tensor, &storage}) {
    if (tensor_class->type != Py_TYPE(source) || tensor_class->previous_entry == nullptr) continue;
    return steal(PyObject_CallFunctionObjArgs(tensor_class->previous_entry, source, memo, nullptr));
  }
  return steal(PyObject_CallMethodObjArgs(source, names.deepcopy, memo, nullptr));
}

}  // namespace torchcow
