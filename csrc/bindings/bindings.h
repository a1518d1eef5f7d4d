#pragma once

#include <torch/csrc/utils/pybind.h>

/// The bindings: what Python sees of the engine. Each bind_*.cpp binds one header's verbs; module.cpp
/// calls them. Nothing is decided here.

namespace torchcow {

void bind_clone(pybind11::module_& module);
void bind_invariant(pybind11::module_& module);
void bind_ledger(pybind11::module_& module);
void bind_listener(pybind11::module_& module);
void bind_reading(pybind11::module_& module);
void bind_testing(pybind11::module_& module);

/// Throws ImportError unless the torch that is loaded is of the minor release that this was compiled with: C++
/// interfaces and layouts stay the same within a minor release only. Comes first, before anything of torch is called.
void refuse_other_torch();

/// False once the interpreter is going down: whoever asks for its lock then would hang.
bool interpreter_runs();

/// Tells the core how to wait without the interpreter lock, and whether other threads run Python.
void install_gil_hooks();

}  // namespace torchcow
