# SPDX-License-Identifier: Apache-2.0
"""Generated object graphs: a clone of a prototype is what two deep copies in a row are, and fails where they fail.

Catches: a difference between the snapshot and the source, anything that the search for components breaks, and a
reducer that is asked for an object that is no instance of its class.
"""

from __future__ import annotations

import copy
import copyreg
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchcow
from support.generated_objects import KINDS, Canon, Data, Plain, graph, reachable
from support.recipes import any_recipes, many, recipes
from torchcow._native import _C


def attempt(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "returned", function()
        except Exception as error:
            return "raised", error


@given(recipes)
@many
def test_a_clone_is_a_deep_copy_of_a_deep_copy(recipe):
    nodes = graph(recipe)
    sources = reachable(nodes)
    before = Canon().form(nodes)
    want = attempt(lambda: copy.deepcopy(copy.deepcopy(nodes)))
    got = attempt(lambda: torchcow.Prototype(nodes).clone())
    assert Canon().form(nodes) == before, "the source has changed"
    if want[0] == "raised":
        assert got[0] == "raised" or isinstance(want[1], RecursionError)
        return
    assert got[0] == "returned", got
    assert Canon(sources).form(got[1]) == Canon(sources).form(want[1])


@given(any_recipes)
@many
def test_what_fails_is_explained_or_raised_as_it_is(recipe):
    nodes = graph(recipe)
    before = Canon().form(nodes)
    want = attempt(lambda: copy.deepcopy(copy.deepcopy(nodes)))
    got = attempt(lambda: torchcow.Prototype(nodes))
    assert Canon().form(nodes) == before, "the source has changed"
    if want[0] == "returned" or isinstance(want[1], RecursionError):
        return
    assert got[0] == "raised"
    cause = got[1].__cause__ if isinstance(got[1], torchcow.CloneError) else got[1]
    assert type(cause) is type(want[1])


def by_the_book(obj):
    if any(str(name).startswith("__") for name in vars(obj)):
        return NotImplemented  # methods of the protocol in the instance
    return copyreg.__newobj__, (type(obj),), dict(vars(obj)), None, None, lambda new, state: vars(new).update(state)


@given(recipes, st.booleans())
@many
def test_reducers_that_say_what_the_default_is_change_nothing(recipe, with_memo):
    nodes = graph(recipe)
    sources = reachable(nodes)
    reducers = ((Plain, by_the_book), (Data, by_the_book))
    want = attempt(lambda: copy.deepcopy(nodes))
    got = attempt(lambda: _C.clone(nodes, {} if with_memo else None, False, reducers))
    if want[0] == "raised":
        assert got[0] == "raised" or isinstance(want[1], RecursionError)
        return
    assert Canon(sources).form(got[1]) == Canon(sources).form(want[1])


def test_a_reducer_goes_before_the_protocol_of_the_class():
    class Own:
        def __init__(self, value):
            self.value = value

        def __deepcopy__(self, memo):
            raise AssertionError("asked")

    class Derived(Own):
        pass

    source = [Own([1]), Derived([2]), Own]
    source.append(source[0])
    clone = _C.clone(source, None, False, ((Own, by_the_book),))
    assert [type(x) for x in clone[:2]] == [Own, Derived] and clone[2] is Own and clone[3] is clone[0]
    assert clone[0].value == [1] and clone[0].value is not source[0].value
    itself = _C.clone(source, None, False, ((Own, lambda obj: "itself"),))
    assert itself[0] is source[0]
    with pytest.raises(AssertionError, match="asked"):
        _C.clone(source, None, False, ((Own, lambda obj: NotImplemented),))


def test_a_copy_that_user_code_makes_within_the_call_asks_the_same_reducers():
    class Outer:
        def __init__(self):
            self.inner = Plain()

        def __deepcopy__(self, memo):
            new = Outer.__new__(Outer)
            new.inner = torchcow.clone(self.inner, memo)
            return new

    source = Outer()
    assert _C.clone(source, None, False, ((Plain, lambda obj: "itself"),)).inner is source.inner


def test_the_sixth_part_of_an_answer_puts_the_copied_state_into_the_copy():
    source, state = Plain(), [[1], Plain]
    source.me = source
    state.append(source)
    reducer = lambda obj: (Plain, (), state, None, None, lambda new, copied: setattr(new, "state", copied))  # noqa: E731
    clone = _C.clone(source, None, False, ((Plain, reducer),))
    assert vars(clone) == {"state": [[1], Plain, clone]}
    assert clone.state[0] is not state[0]


@pytest.mark.parametrize("reducers", [[], (1,), ((1, 2),), ((Plain,),), "x", ([Plain, by_the_book],)])
def test_bad_reducers_are_refused(reducers):
    with pytest.raises(TypeError, match="reducers: expected a tuple of pairs of a class and a function"):
        _C.clone([1], None, False, reducers)


@pytest.mark.parametrize("answer", [None, 3, (), (list,), (list, (), None, None, None, None, None), ("x", ())])
def test_a_reducer_that_answers_nonsense_raises(answer):
    with pytest.raises(TypeError):
        _C.clone([Plain()], None, False, ((Plain, lambda obj: answer),))


def test_an_error_of_a_reducer_passes_unchanged():
    def fail(obj):
        raise ZeroDivisionError("reducer")

    with pytest.raises(ZeroDivisionError, match="reducer"):
        _C.clone([Plain()], None, False, ((Plain, fail),))


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_in_a_prototype(name):
    kind = KINDS.index(name)
    nodes = graph([(KINDS.index("list"), [1, 1, 2]), (kind, [0, 3]), (KINDS.index("dict"), [1, 0, 1]), (kind, [1, 2])])
    sources = reachable(nodes)
    want = attempt(lambda: copy.deepcopy(copy.deepcopy(nodes)))
    got = attempt(lambda: torchcow.Prototype(nodes).clone())
    if want[0] == "raised":
        assert got[0] == "raised"
    else:
        assert Canon(sources).form(got[1]) == Canon(sources).form(want[1])
