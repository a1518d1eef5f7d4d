# SPDX-License-Identifier: Apache-2.0
"""The state of an object, for files: tensors by dotted name, and everything else as JSON-able nodes.

:func:`capture` returns the state of an object, and :func:`restore` puts a state into a structure, an object of the
same build. The kinds of parts are treated as follows.

- Tensors and NumPy arrays are tensors of the state; so is a ``torch.Generator``, by its state. A tied tensor is stored
  once. Views over common memory are refused, except among parameters, which a clone separates as well.
- Numbers, strings, bytes, ``None``, and the lists, tuples, dicts and sets that hold nothing else, are stored.
- Of modules, dicts, sequences, dataclasses and other plain objects, the class and the names of the parts are stored.
  The object itself comes from the structure.
- Objects with ``state_dict`` and ``load_state_dict`` (optimizers, schedulers, samplers, metrics; not modules) describe
  themselves: the result of the one is stored, and the other gets it.
- Code and constants (functions, classes, dtypes, devices, enum members, paths ...) and the hooks of modules come from
  the structure. If one has another name there, it is refused.
- Everything else (locks, files, objects with a state that Python cannot see) is refused, with its dotted path.
"""

from torchcow.persist.state.capture import State, capture
from torchcow.persist.state.restore import check, restore

__all__ = ["State", "capture", "check", "restore"]
