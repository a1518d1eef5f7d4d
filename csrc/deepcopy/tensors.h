// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "memo.h"

/// Copies of parameters, tensors and storages that share the memory of their sources.
///
/// Each function does what torch's `__deepcopy__` of that class does, without a call of Python, or it does nothing and
/// returns a null object: then the caller must call torch's method. It does nothing for tensors that are not dense
/// memory on a device that shares (sparse, quantized, nested, meta, fake and functorch tensors, named, conjugate and
/// negative views), where torch would raise an error, and while a mode or a tracer of torch watches operators.
///
/// A tensor that is copied instead of shared is recorded with the reason.

namespace torchcow {

/// For torch.nn.Parameter and subclasses with Treatment::parameter: the data over its own span, in a new parameter.
py::object copy_parameter(Memo& memo, PyObject* source);

/// For exactly torch.Tensor: the whole storage, once for each memo; `.grad` and `__dict__` as deepcopy keeps them.
py::object copy_tensor(Memo& memo, PyObject* source);

/// For exactly torch.UntypedStorage.
py::object copy_storage(Memo& memo, PyObject* source);

/// After torch's own method has copied a plain tensor: counts it among those over sources of the call, or records it.
void note_seen_or_record(Memo& memo, PyObject* source, PyObject* copy);

/// Records that `tensor`, a tensor of some kind that copies itself, shares nothing with its source.
void record_if_copied(PyObject* tensor);

}  // namespace torchcow
