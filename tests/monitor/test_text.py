"""Sparklines, bars, clocks, and arms that fit without a cut number."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from bitnetctl.monitor.text import (
    ascii_text,
    bar,
    format_clock,
    format_difference,
    preparation_line,
    shorten_arm,
    shorten_arms,
    sparkline,
)


@pytest.mark.parametrize(
    ("values", "width", "blocks"),
    [
        ([], 8, ""),
        ([5.0], 8, "▆"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 9, "▁▂▃▄▅▆▇██"),
        # values beyond the range, such as the loss of an untrained model
        ([99.0, 8.0, -1.0], 8, "██▁"),
        # twice as many values as columns: pairs are averaged, so that the whole history stays in view
        ([0.0, 0.0, 4.0, 4.0, 8.0, 8.0], 3, "▁▅█"),
        ([0.0, 8.0] * 4, 4, "▅▅▅▅"),
    ],
)
def test_sparkline(values: Sequence[float], width: int, blocks: str) -> None:
    assert sparkline(values, 0.0, 8.0, width) == blocks


def test_a_sparkline_of_equal_values_has_no_range() -> None:
    assert sparkline([3.0, 3.0], 3.0, 3.0, 8) == "▁▁"


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, "──────────"), (0.55, "━━━━━╸────"), (1.0, "━" * 10), (7.0, "━" * 10), (-1, "─" * 10)],
)
def test_bar(fraction: float, expected: str) -> None:
    assert bar(fraction, 10) == expected


def test_clocks_and_differences() -> None:
    assert [format_clock(seconds) for seconds in (None, 0, 61, 35 * 3600 + 61)] == ["–:––", "0:00", "1:01", "35:01:01"]
    assert [format_difference(value) for value in (-0.988, 0.0, 0.5)] == ["−0.99", "+0.00", "+0.50"]
    assert preparation_line("encoding text", 1_000_000, 2_000_000) == "encoding text: 1,000,000 of 2,000,000"
    assert (preparation_line("reading", 7, None), preparation_line("waiting", 0, None)) == ("reading: 7", "waiting")


def test_ascii_forms_have_the_same_length() -> None:
    shown = "▁▂▃▄▅▆▇█ ━╸─ 58 % · ⚠ collapsed ✗ diverged −0.99 – … × │┊┈┌┐└┘├┤┬┴┼"
    assert ascii_text(shown).isascii()
    assert len(ascii_text(shown)) == len(shown)


@pytest.mark.parametrize(
    ("arm", "width", "expected"),
    [
        ("no-decay", 8, "no-decay"),
        ("no-decay", 6, "no-de…"),
        ("reduced-lr:peak=5e-4", 16, "reduced-lr:…5e-4"),
        ("reduced-lr:peak=5e-4", 12, "reduced…5e-4"),
        # a number that does not fit is left out whole
        ("wd:stage2=0.05", 12, "wd:stag…0.05"),
        ("wd:a=0.00005+b", 9, "wd:a=…+b"),
        ("wd-schedule:stage2=0.05+reduced-lr:peak=5e-4", 20, "wd-schedul…peak=5e-4"),
    ],
)
def test_an_arm_keeps_its_beginning_and_its_end(arm: str, width: int, expected: str) -> None:
    assert shorten_arm(arm, width) == expected


NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ARMS = st.lists(
    st.sampled_from(
        ["no-decay", "reduced-lr:peak=5e-4", "wd-schedule:stage2=0.05", "label-smoothing:amount=0.1", "x:f=1e+30"]
    ),
    min_size=1,
    max_size=4,
    unique=True,
).map("+".join)


@given(arm=ARMS, width=st.integers(6, 90))
def test_no_number_of_an_arm_is_cut(arm: str, width: int) -> None:
    short = shorten_arm(arm, width)
    assert len(short) <= width
    assert set(NUMBER.findall(short)) <= set(NUMBER.findall(arm))


@given(arms=st.lists(ARMS, min_size=1, max_size=8, unique=True), width=st.integers(8, 60))
def test_short_arms_stay_apart(arms: list[str], width: int) -> None:
    labels = shorten_arms(arms, width)
    assert len(set(labels.values())) == len(arms)
    assert all(len(label) <= width for label in labels.values())
