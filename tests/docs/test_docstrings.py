# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings run.

Catches: an example that no longer does what it says.
"""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import torchcow

FILES = sorted(Path(torchcow.__file__).parent.rglob("*.py"))
MODULES = [".".join(file.relative_to(Path(torchcow.__file__).parent).with_suffix("").parts) for file in FILES]
MODULES = [name for name, file in zip(MODULES, FILES, strict=True) if ">>> " in file.read_text()]


@pytest.mark.tiny
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    torch.manual_seed(0)
    failed, tried = doctest.testmod(importlib.import_module(f"torchcow.{name}"))
    assert tried > 0
    assert failed == 0
    assert torchcow.objects.adapters._registered == [], "an example leaves an adapter to all other tests"
