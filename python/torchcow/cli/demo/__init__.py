"""The demo: many variants of one language model, cloned, written, questioned and checked.

In reading order:

- ``command``: the options, the errors, the order of the steps
- ``models``: where the prototype comes from
- ``tiny``: a small model defined here, for machines without transformers
- ``variants``: clone the prototype and write different weights into each clone
- ``evidence``: compare models bit by bit, without asking the engine
- ``report``: what is printed at the end

Only ``report`` needs rich, and only ``models`` imports transformers, when it is asked for a model of theirs.
"""
