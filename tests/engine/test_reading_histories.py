# SPDX-License-Identifier: Apache-2.0
"""Random histories of overlapping ``torchcow.reading`` scopes, clones, writes and views that outlive their tensors.

A model beside it says what must hold: each tensor holds what a deep copy would, and an array shows its tensor
as long as both have one address, and else what it showed when the tensor moved away.

Catches: memory that is freed under an array, an array that writes what another tensor holds, a hook that stays
suspended, a scope that un-shares although nothing outlives it.
Breaks that were seen to fail: only the block of the beginning is isolated; DLPack consumers keep no block; spans move.
"""

from __future__ import annotations

import contextlib
import gc

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import torchcow
from support.oracle import address
from torchcow.testing import verify

SIZE = 96
MOST = 5  # tensors
index = st.integers(0, 4)


class View:
    """An array over a tensor, by way of NumPy or DLPack, and what it has to show while it is on its own."""

    def __init__(self, owner, array):
        self.owner = owner
        self.array = array
        self.alone = None
        self.writable = True

    @property
    def address(self):
        return self.array.ctypes.data


class Histories(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.tensors = {}  # by number
        self.expected = {}  # arrays of the same bytes, as deep copies hold them
        self.views = []
        self.scopes = []  # (the scope, the numbers of its tensors)
        self.count = 0

    def add(self, tensor, expected):
        self.tensors[self.count] = tensor
        self.expected[self.count] = expected
        self.count += 1

    def pick(self, index):
        return sorted(self.tensors)[index % len(self.tensors)]

    def in_scope(self, number):
        return any(number in numbers for _, numbers in self.scopes)

    def shows_its_tensor(self, view):
        tensor = self.tensors.get(view.owner)
        return tensor is not None and address(tensor) == view.address

    def remember_views(self):
        """Before a step that may move tensors: what each view shows that still shows its tensor."""
        for view in self.views:
            if self.shows_its_tensor(view):
                view.alone = self.expected[view.owner].copy()

    @initialize(spans=st.booleans(), twins=st.booleans())
    def begin(self, spans, twins):
        """A family of three, and with `twins` one of two that holds the same in other memory."""
        for size in (3, 2) if twins else (3,):
            values = np.arange(SIZE, dtype=np.float32)
            tensor = torch.from_numpy(values).clone()
            if spans:  # a parameter over a span of a larger storage
                tensor = torch.nn.Parameter(torch.cat([torch.zeros(SIZE), tensor])[SIZE:], requires_grad=False)
            self.add(tensor, values)
            for clone in torchcow.clone([tensor]) + torchcow.clone([tensor])[: size - 2]:
                self.add(clone, values.copy())

    @precondition(lambda self: self.tensors)
    @rule(which=index)
    def clone(self, which):
        self.share(self.pick(which))

    def share(self, number):
        """Makes a tensor share with a new clone, which takes the place of another tensor if there are many."""
        for other in sorted(self.tensors):
            if len(self.tensors) >= MOST and other != number and not self.in_scope(other):
                self.remember_views()
                del self.tensors[other], self.expected[other]
        self.add(torchcow.clone([self.tensors[number]])[0], self.expected[number].copy())

    @precondition(lambda self: self.tensors)
    @rule(which=index, value=st.integers(0, 9))
    def write_by_an_operator(self, which, value):
        number = self.pick(which)
        self.remember_views()
        self.tensors[number].add_(value).mul_(2)
        self.expected[number] = (self.expected[number] + value) * 2

    @precondition(lambda self: self.tensors)
    @rule(which=index, value=st.integers(0, 9))
    def write_by_a_pointer(self, which, value):
        """Outside of scopes it un-shares."""
        number = self.pick(which)
        if self.in_scope(number):
            return
        self.remember_views()
        self.tensors[number].numpy()[5] = value
        self.expected[number][5] = value

    @precondition(lambda self: self.scopes)
    @rule(which=index, dlpack=st.booleans())
    def take_a_view(self, which, dlpack):
        """Within a scope: outside it would un-share."""
        self.remember_views()
        numbers = self.scopes[which % len(self.scopes)][1]
        self.view(numbers[which % len(numbers)], dlpack)

    def view(self, number, dlpack):
        tensor = self.tensors[number]
        self.views.append(View(number, torch.from_dlpack(tensor).numpy() if dlpack else tensor.numpy()))

    @precondition(lambda self: self.views)
    @rule(which=index, value=st.integers(0, 9))
    def write_by_a_view(self, which, value):
        self.write(self.views[which % len(self.views)], value)

    def write(self, view, value):
        """Only where no scope forbids it, and torchcow has not said that it cannot isolate the view."""
        same = [other for other in self.views if other.address == view.address]
        if any(self.in_scope(other.owner) or not other.writable for other in same):
            return
        self.remember_views()
        view.array[7] = value
        for other in same:
            if other.alone is not None:
                other.alone[7] = value
        if self.shows_its_tensor(view):
            self.expected[view.owner][7] = value

    @precondition(lambda self: self.views)
    @rule(which=index)
    def drop_a_view(self, which):
        self.remember_views()
        del self.views[which % len(self.views)]

    @precondition(lambda self: len(self.tensors) > 1)
    @rule(which=index, others=st.booleans())
    def drop_tensors(self, which, others):
        """One, or all but one: only then a block is freed."""
        number = self.pick(which)
        self.remember_views()
        for one in list(self.tensors):
            if (one != number) == others and not self.in_scope(one):  # a scope would hold it
                del self.tensors[one], self.expected[one]

    @precondition(lambda self: self.tensors and len(self.scopes) < 3)
    @rule(which=st.lists(index, min_size=1, max_size=2), views=st.lists(st.booleans(), max_size=2))
    def begin_a_scope(self, which, views):
        """And take a view of each of its first tensors, of which this scope is the reason that they share."""
        numbers = sorted({self.pick(one) for one in which})
        for number in numbers:
            if number in self.tensors and not torchcow.is_shared(self.tensors[number]) and not self.in_scope(number):
                self.share(number)
        numbers = [number for number in numbers if number in self.tensors]
        self.remember_views()
        scope = torchcow.reading({f"t{number}_": self.tensors[number] for number in numbers}, checksum=True)
        scope.__enter__()
        self.scopes.append((scope, numbers))
        for number, dlpack in zip(numbers, views, strict=False):
            self.view(number, dlpack)

    @precondition(lambda self: self.scopes)
    @rule(which=index, value=st.integers(0, 9))
    def end_a_scope(self, which, value):
        """And write by all views that outlive it."""
        scope, numbers = self.scopes.pop(which % len(self.scopes))
        self.remember_views()
        self.end(scope, numbers)
        for view in self.views:
            self.write(view, value)

    def end(self, scope, numbers):
        try:
            scope.__exit__(None, None, None)
        except torchcow.IsolationError as error:
            assert "still referenced by" in str(error) and "written within" not in str(error)
            for view in self.views:
                if f"t{view.owner}_" in str(error):
                    view.writable = False

    @precondition(lambda self: self.tensors)
    @rule()
    def share_again(self):
        self.remember_views()
        torchcow.reshare(*self.tensors.values())

    @invariant()
    def everything_holds_what_it_must(self):
        for number, tensor in self.tensors.items():
            assert np.array_equal(tensor.clone().numpy(), self.expected[number]), number
        for view in self.views:
            wanted = self.expected[view.owner] if self.shows_its_tensor(view) else view.alone
            assert np.array_equal(view.array, wanted), view.owner
        verify()

    def teardown(self):
        for scope, numbers in self.scopes:
            self.end(scope, numbers)
        self.scopes.clear()
        self.tensors.clear()
        with contextlib.suppress(AttributeError):
            del self.views
        gc.collect()


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=15, deadline=None)
TestHistories = Histories.TestCase
