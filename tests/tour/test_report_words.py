import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maypole.core.statistics import Interval
from maypole.tour.report.words import bounds, cell, counted, duration, memory, number, split_at, visible, word_changes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("\x1b[31m", "⟨U+001B⟩[31m"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\ud800", "⟨U+D800⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("\uffff", "⟨U+FFFF⟩"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("naïve 語", "naïve 語"),
    ],
)
def test_hidden_characters_become_codes_and_writing_stays(text, shown):
    assert visible(text) == shown


@given(st.text())
def test_what_is_visible_can_always_be_written_as_utf8(text):
    assert visible(visible(text)) == visible(text)
    visible(text).encode()


@given(st.text("ab \n,", max_size=40), st.text("ab \n,", max_size=40), st.integers(-1, 50))
def test_runs_give_their_texts_back_also_when_split(before, after, size):
    left, right = word_changes(before, after)
    for text, runs in ((before, left), (after, right)):
        assert "".join(t for _, t in runs) == text
        head, tail = split_at(runs, size)
        assert "".join(t for _, t in head) == text[: max(size, 0)]
        assert "".join(t for _, t in tail) == text[max(size, 0) :]


def test_changes_are_whole_words():
    left, right = word_changes("the cat sat", "the car sat")
    assert left == [("same", "the "), ("removed", "cat"), ("same", " sat")]
    assert right == [("same", "the "), ("added", "car"), ("same", " sat")]


def test_numbers_read_well():
    assert number(-4.44, 1) == "−4.4"
    assert number(0.02, 2, signed=True) == "+0.02"
    assert number(-0.001, 2, signed=True) == "0.00"
    assert number(1234567, 0) == "1,234,567"
    assert number(math.nan, 2) == "not a number"
    assert bounds(Interval(-0.01, 0.05, 0.02), 2) == "[−0.01, +0.05]"
    assert bounds(Interval(-math.inf, math.inf, 0), 2) == bounds(None, 2) == ""


def test_one_thing_is_not_several():
    assert [counted(n, "answer") for n in (0, 1, 45, 1200)] == ["0 answers", "1 answer", "45 answers", "1,200 answers"]


def test_cells_read_well():
    assert [cell(v) for v in (None, "x", 12345, 14.2, -0.5, 0.0, 1e-7)] == [
        "–", "x", "12,345", "14.2", "−0.5", "0", "1e−07",
    ]  # fmt: skip
    assert cell(21_347.2) == "21,347"


def test_durations_and_sizes_have_units():
    assert [duration(s) for s in (0, 61, 3600, 59.6)] == ["0:00", "1:01", "1:00:00", "1:00"]
    assert (memory(2_100_000_000), memory(310_000_000)) == ("2.1 GB", "310 MB")
