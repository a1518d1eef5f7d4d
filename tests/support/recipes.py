# SPDX-License-Identifier: Apache-2.0
"""Strategies for generated object graphs: TORCHCOW_GRAPHS says how many graphs each test draws."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from support.generated_objects import FATAL, KINDS

GRAPHS = int(os.environ.get("TORCHCOW_GRAPHS", "700"))
MILD = [index for index, name in enumerate(KINDS) if name not in FATAL]

many = settings(
    max_examples=GRAPHS, deadline=None, derandomize="TORCHCOW_GRAPHS" not in os.environ,
    suppress_health_check=list(HealthCheck), database=None,
)  # fmt: skip
references = st.lists(st.integers(0, 30), max_size=4)
recipes = st.lists(st.tuples(st.sampled_from(MILD), references), min_size=1, max_size=14)
any_recipes = st.lists(st.tuples(st.integers(0, len(KINDS) - 1), references), min_size=1, max_size=6)
