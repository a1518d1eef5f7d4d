# SPDX-License-Identifier: Apache-2.0
"""The demo: many variants of one language model, cloned, written and checked.

In reading order:

- ``command``: the options, the errors, the order of the steps
- ``models``: how the base model is loaded
- ``tiny``: a small model defined here, for machines without transformers
- ``variants``: clone the base model and write different weights into each clone
- ``evidence``: compare models bit by bit, without asking the engine
- ``report``: the progress bar, and the output at the end

Only ``report`` imports rich. Only ``models`` imports transformers, to load a model of that library.
"""
