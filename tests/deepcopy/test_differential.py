# SPDX-License-Identifier: Apache-2.0
"""Thousands of generated object graphs: ``clone`` and ``copy.deepcopy`` must agree in everything.

Structure, types, values, the bytes of tensors, which objects are one, which are the source's own, what user methods
were called in which order, what is in the caller's memo afterwards, and every error with its words.

TORCHCOW_GRAPHS says how many graphs each test draws (``support.recipes``).
"""

from __future__ import annotations

import copy
import gc
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchcow
from support import TESTS
from support.generated_objects import KINDS, LOG, Canon, graph, reachable
from support.oracle import STARTS_PROCESSES, run_script
from support.recipes import MILD, any_recipes, many, recipes


def attempt(function, *args):
    LOG.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "returned", function(*args), list(LOG)
        except Exception as error:
            return "raised", (type(error), re.sub("0x[0-9a-f]+", "0x", str(error))), list(LOG)


def memo_of(nodes, seeded):
    """A caller's memo, with some nodes copied to something else already."""
    if seeded is None:
        return None
    return {id(nodes[i % len(nodes)]): nodes[j % len(nodes)] for i, j in seeded}


def compare(recipe, seeded=None):
    nodes = graph(recipe)
    if len(nodes) % 2:
        nodes.reverse()  # a tuple is then met before the list that it is in a cycle with
    sources = reachable(nodes)
    before = Canon().form(nodes)
    memos = memo_of(nodes, seeded), memo_of(nodes, seeded)
    want = attempt(copy.deepcopy, nodes, memos[0])
    got = attempt(torchcow.clone, nodes, memos[1])
    assert Canon().form(nodes) == before, "the source has changed"
    if want[0] == "raised" and want[1][0] is RecursionError:
        return  # raised by the clone as well, or, better, not
    assert got[0] == want[0], (want, got)
    assert got[2] == want[2], "the protocol was asked otherwise"
    if want[0] == "raised":
        assert got[1] == want[1]
    else:
        assert Canon(sources).form(got[1]) == Canon(sources).form(want[1])
    if seeded is not None:
        for obj in sources:
            assert (id(obj) in memos[0]) == (id(obj) in memos[1]), f"memo of {type(obj)}"
        kept = [sorted(id(x) for x in memo.get(id(memo), ()) if id(x) in set(map(id, sources))) for memo in memos]
        assert kept[0] == kept[1], "the keep-alive list"


@given(recipes)
@many
def test_clone_is_deepcopy(recipe):
    compare(recipe)


@given(recipes, st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=2))
@many
def test_with_the_callers_memo(recipe, seeded):
    compare(recipe, seeded)


@given(any_recipes)
@many
def test_with_objects_that_fail(recipe):
    compare(recipe)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind(name):
    """Alone, twice, within a container, and with something of every other kind behind it."""
    kind = KINDS.index(name)
    compare([(kind, [])])
    compare([(KINDS.index("list"), [1, 1, 2]), (kind, [0, 3]), (KINDS.index("dict"), [1, 0, 1]), (kind, [1, 2])])
    compare([(kind, [0, 0])], seeded=[])
    compare([(kind, [0, 1]), (KINDS.index("Plain"), [0, 1])], seeded=[(0, 1)])


def test_while_every_allocation_collects():
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for kind in MILD:
            compare([(kind, [1, 2]), (KINDS.index("list"), [0, 2]), (kind, [0, 1]), (KINDS.index("Net"), [2, 0])])
    finally:
        gc.set_threshold(*threshold)


@pytest.mark.parametrize("inner", ["list", "dict", "Plain", "Slots", "deque", "OrderedDict", "WithReduce", "Net"])
@pytest.mark.parametrize("outer", ["tuple", "tuple subclass", "namedtuple", "frozen dataclass", "partial"])
def test_cycles_through_what_cannot_be_filled(outer, inner):
    """The outer object is met first, and has been copied already when its members are done."""
    compare([(KINDS.index(inner), [1]), (KINDS.index(outer), [0]), (KINDS.index("int"), [])])


@STARTS_PROCESSES
def test_in_development_mode():
    """Python then checks what its allocator handed out, and stops at a call that leaves an error set or loses one."""
    out = run_script(
        """
import copy, random, sys, warnings
sys.path.insert(0, sys.argv[1])
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from support import generated_objects
    from support.oracle import attempt, raised_alike
import torchcow

rng = random.Random(0)
returned = 0
for _ in range(400):
    kinds = [rng.randrange(len(generated_objects.KINDS)) for _ in range(6)]
    recipe = [(kind, [rng.randrange(30) for _ in range(rng.randrange(4))]) for kind in kinds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = generated_objects.graph(recipe)
    want, got = attempt(copy.deepcopy, nodes), attempt(torchcow.clone, nodes)
    if want[1] is not RecursionError and not raised_alike(want, got, recipe):
        assert type(got[1]) is type(want[1])
        returned += 1
print("returned:", returned)
""",
        str(TESTS),
        options=("-X", "dev", "-W", "error"),
    )
    assert int(out.rpartition(":")[2]) > 100
