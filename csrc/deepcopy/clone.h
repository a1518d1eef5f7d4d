// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "python.h"

/// `torchcow.clone`: one walk, one call.

namespace torchcow {

/// What `copy.deepcopy(source, memo)` returns or raises, with tensor memory shared. `memo` is None or the caller's.
/// With the memo of a running clone this is a part of that clone, whose `strict` counts. `reducers` (call.h) is
/// None or a tuple of pairs of a class and a function.
py::object clone(const py::object& source, const py::object& memo, bool strict, const py::object& reducers);

/// What copy.deepcopy itself does while `patch` is on: clone, but objects of the excluded classes are copied without
/// sharing. Without a patch, and for `torchcow.deepcopy`: an ordinary deep copy.
py::object patched_deepcopy(const py::object& source, const py::object& memo);
py::object ordinary_deepcopy(const py::object& source, const py::object& memo);

/// Turns the patch on, with a tuple of classes, or off, with None.
void set_patch(const py::object& excluded);

/// Puts entries for parameters, tensors and storages into copy._deepcopy_dispatch, so that user code
/// that calls `copy.deepcopy` with the memo of a running clone shares memory too. With any other memo they do what was
/// done before.
void install_entries();

/// From now on, calls `remember(object)` for each object of one of these classes that is cloned, by itself or directly
/// within another one, and for its copy. Errors and reports look there for the names of tensors.
void set_remember(const py::function& remember, const py::tuple& classes);

}  // namespace torchcow
