# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests of ``copy``, with ``copy.deepcopy`` replaced by ``torchcow.clone``.

Catches: any object of plain Python, memo entry, cycle or error that the wrapper around deepcopy treats otherwise.
"""

from __future__ import annotations

import copy
import unittest

import pytest

import torchcow

SUITES = ["test_copy", "test_deque", "test_ordered_dict", "test_slice", "test_weakset"]


def deepcopy(obj, memo=None, _nil=None):
    calls.append(type(obj))
    return torchcow.clone(obj, memo)


deepcopy.__module__ = "copy"  # Python 3.13 tests that what copy exports is its own
_deepcopy, calls = copy.deepcopy, []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SUITES)
def test_of_cpython(name, monkeypatch):
    suite = pytest.importorskip(f"test.{name}", reason="this Python comes without its own tests")
    for module in (copy, suite):
        if getattr(module, "deepcopy", None) is _deepcopy:
            monkeypatch.setattr(module, "deepcopy", deepcopy)
    calls.clear()
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromModule(suite).run(result)
    if name != "test_copy" and not calls:
        pytest.skip("this Python's suite copies nothing deeply")
    assert calls, "nothing was cloned: this proves nothing"
    problems = [f"{test}\n{text}" for test, text in result.failures + result.errors]
    assert not problems, "\n".join(problems)
