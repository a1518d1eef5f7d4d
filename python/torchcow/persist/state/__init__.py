"""What an object is made of, for files: tensors by dotted name, and everything else as JSON-able nodes.

:func:`capture` takes an object apart, and :func:`restore` puts a state into a structure, an object of the same build.
What becomes of each part:

- Tensors, and NumPy arrays, are tensors of the state; so is a ``torch.Generator``, by its state. Names that are one
  tensor stay one. Views over common memory are refused, except among parameters, which a clone separates as well.
- Numbers, strings, bytes, ``None``, and the lists, tuples, dicts and sets that hold nothing else, are written down.
- Modules, dicts, sequences, dataclasses and other plain objects are taken apart: their class and their names are
  written down, the object itself comes from the structure.
- Objects with ``state_dict`` and ``load_state_dict`` (optimizers, schedulers, samplers, metrics; not modules) answer
  for themselves: what the one returns is what the other gets.
- Code and constants (functions, classes, dtypes, devices, enum members, paths ...) and the hooks of modules come from
  the structure. What is called by another name there is refused.
- Everything else (locks, files, objects with a state that Python cannot see) is refused, with its dotted path.
"""

from torchcow.persist.state.capture import State, capture
from torchcow.persist.state.restore import check, restore

__all__ = ["State", "capture", "check", "restore"]
