# SPDX-License-Identifier: Apache-2.0
"""Damaged delta files: whatever happens to the bytes, the answer is a clear error or the right tensors.

Catches: a flipped bit, a cut or an insertion that yields other numbers, another kind of exception, or a crash.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import torchcow
from support.oracle import assert_same, freeze
from torchcow import FileError, load_delta, save_delta
from torchcow.persist.tensor_file import TensorFile

MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


class Case:
    """A base, what the delta has to give, and the bytes of the file."""

    def __init__(self):
        torch.manual_seed(0)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "delta"
        self.base = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        clone = torchcow.clone(self.base)
        with torch.no_grad():
            clone[0].weight.add_(1)
            clone[1].num_batches_tracked.add_(1)
        save_delta(clone, self.base, self.path)
        self.want = freeze(clone)
        self.good = self.path.read_bytes()
        self.header = 8 + int.from_bytes(self.good[:8], "little")

    def check(self, data):
        self.path.write_bytes(data)
        try:
            again = load_delta(self.base, self.path)
        except FileError as error:
            assert str(self.path) in str(error)
            return False
        assert_same(self.want, again, "a file that was accepted")
        return True


@pytest.fixture
def case():
    made = Case()
    yield made
    made.folder.cleanup()
    vars(made).clear()  # pytest keeps what a fixture yields


def test_the_good_file_is_accepted(case):
    assert case.check(case.good)


def test_every_bit_counts_but_those_of_the_padding(case):
    # All bits of the header's ends and of the tensors, one of each byte between.
    for at in range(len(case.good)):
        edge = at < 32 or at >= case.header - 4
        for bit in range(8) if edge else (at % 8,):
            data = bytearray(case.good)
            data[at] ^= 1 << bit
            if case.check(bytes(data)):
                assert case.good[at : at + 1] == b" ", f"byte {at}, bit {bit}"


def test_every_cut_is_found(case):
    for length in range(len(case.good)):
        assert not case.check(case.good[:length])


@MANY
@given(
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.binary(min_size=1, max_size=9)), min_size=1)
)
def test_any_edits(edits):
    case = Case()
    data = bytearray(case.good)
    for at, kind, new in edits:
        at %= len(data) + 1
        if kind == 0:
            data[at:at] = new
        elif kind == 1:
            del data[at : at + len(new)]
        elif kind == 2:
            data[at : at + len(new)] = new
        else:
            data += new
        data = data or bytearray(new)
    accepted = case.check(bytes(data))
    assert not accepted or bytes(data)[case.header :] == case.good[case.header :]
    case.folder.cleanup()


TOKENS = [text.encode() for text in ('"', *"{}[],:09", "-1", "1e999", "NaN", "null", "true", "F64", "I8", "[" * 5000)]


@MANY
@given(at=st.integers(8, 5000), token=st.sampled_from(TOKENS), cut=st.integers(0, 12))
def test_headers_that_are_almost_right(at, token, cut):
    """The length stays right, so the header is parsed."""
    case = Case()
    at = 8 + at % (case.header - 8)
    header = case.good[8:at] + token + case.good[at + cut : case.header]
    header += b" " * (-(8 + len(header)) % 64)
    case.check(len(header).to_bytes(8, "little") + header + case.good[case.header :])
    case.folder.cleanup()


def test_a_length_that_asks_for_all_memory(case):
    assert not case.check(b"\xff" * 8 + case.good[8:])
    assert not case.check((2**40).to_bytes(8, "little") + case.good[8:])


def test_a_reader_checks_each_tensor(case):
    data = bytearray(case.good)
    data[-1] ^= 1
    case.path.write_bytes(data)
    with TensorFile(case.path, "delta") as file:
        bad = [name for name in file.entries if name == "0.weight"]
        with pytest.raises(FileError, match=r"the bytes of tensor '0\.weight' are not those that were written"):
            file.read(bad[0])
        assert file.read("1.num_batches_tracked") == 1
