# SPDX-License-Identifier: Apache-2.0
"""Each error that a user can see has a place in docs/errors.md, and that page names no error that does not exist.

There a message is a line in a block of text; a word in braces stands for what is put in when the error is raised, and
``...`` for any text.

Catches: a new ``raise``, TORCH_CHECK or difference of a saved state that nobody explains; an explanation whose error is
gone or has another text.
"""

from __future__ import annotations

import re

import pytest

from support import ROOT, messages

PAGE = ROOT / "docs" / "errors.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not a checkout")

#: Errors without a place in the page.
EXCLUDED = {
    "NotImplementedError": "an abstract method",
    "NotPlainError": "caught by the caller",
    "typer.Exit": "how --version ends",
    "module 'torchcow' has no attribute {}": "Python's own, for a name that a module does not have",
    "unknown kind of value: {}": "only in a database that was written by hand, with digests that fit",
    "un(deep)copyable object of type %S{}": "copy.deepcopy's own, as the next three",
    "not enough values to unpack (expected 2, got %zd)": "copy.deepcopy's own",
    "too many values to unpack (expected 2)": "copy.deepcopy's own",
    "dictionary %s during iteration{}": "copy.deepcopy's own",
    "reducers: expected a tuple of pairs of a class and a function": "the package is the only caller",
    "torchcow: allocation failed on request of a test": "torchcow.testing.fail_allocations asked for it",
}
#: Text that is put together from others, or that stands in a report and is no error.
PARTS = {"a shared tensor", "unknown error", "CUDA driver copies ({})", "torch operators ({}{})"}
#: Said otherwise than by raising.
REPORTED = {
    "Exception ignored in: 'a callback of torchcow.on_materialize'",
    "torchcow: error: TORCHCOW_PATCH={} is ignored: expected one of {} to turn the patch on, or {} to leave it off",
}


def raised() -> dict[str, str]:
    """Where each message is made, by message; those that only repeat another error have no words of their own."""
    places_by_text = {text: where for where, text in [*messages.python(), *messages.native()]}
    return {text: where for text, where in places_by_text.items() if re.search(r"[A-Za-z]{2}", text.replace("{}", ""))}


def entries() -> list[str]:
    """The messages in the page: each line of its blocks of text."""
    blocks = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def pattern(entry: str) -> re.Pattern[str]:
    parts = re.split(r"( ?\.\.\.|\{[^{}]*\})", entry)
    return re.compile(
        "".join(".*" if p[-3:] == "..." else r"(?:\{\})+" if p[:1] == "{" else re.escape(p) for p in parts)
    )


def test_messages_are_found():
    places_by_text = raised()
    assert len(places_by_text) > 150
    assert {where.split("/")[0] for where in places_by_text.values()} >= {"python", "csrc"}


def test_each_message_has_a_place_in_the_page():
    patterns = [pattern(entry) for entry in entries()]
    missing = {
        text: where
        for text, where in raised().items()
        if text not in EXCLUDED and text not in PARTS and not any(one.fullmatch(text) for one in patterns)
    }
    assert missing == {}, "explain these in docs/errors.md"


def test_each_entry_of_the_page_is_a_message():
    texts = {*raised(), *REPORTED}
    assert [entry for entry in entries() if not any(pattern(entry).fullmatch(text) for text in texts)] == []


def test_an_entry_says_enough_to_be_recognized():
    bare = [re.sub(r"\{[^{}]*\}|\.\.\.|[^A-Za-z]", "", entry) for entry in entries()]
    assert [entry for entry, words in zip(entries(), bare, strict=True) if len(words) < 8] == []
    assert len(entries()) == len(set(entries()))


def test_nothing_is_excluded_that_does_not_exist():
    assert {*EXCLUDED, *PARTS} <= set(raised())
    assert all(EXCLUDED.values())
