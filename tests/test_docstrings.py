"""The examples in the docstrings run.

Catches: an example that no longer does what it says.
"""

import doctest
import importlib

import pytest
import torch

MODULES = ["clone", "ledger", "materialize", "patch", "testing"]


@pytest.mark.tiny
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    torch.manual_seed(0)
    failed, tried = doctest.testmod(importlib.import_module(f"torchcow.{name}"))
    assert tried > 0
    assert failed == 0
