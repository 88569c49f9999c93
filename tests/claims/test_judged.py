"""What is said of a claim beside its verdict: scale and differences."""

import math
from typing import Any

import pytest

from bitnetctl.claims import Scale, design_hash
from bitnetctl.claims.judged import difference_texts
from bitnetctl.config import build_config
from bitnetctl.verdict import Outcome, Verdict


def texts(*sizes: tuple[int | None, dict[str, Any]]) -> list[str]:
    statistics = tuple({"size": size, "pairs": {"check": compared}} for size, compared in sizes)
    verdict = Verdict(outcome=Outcome.SUPPORTED, arm="a", criteria="c", criteria_hash="0", statistics=statistics)
    return list(difference_texts(verdict))


def paired(*values: float, low: float | None = None, high: float | None = None, **others: Any) -> dict[str, Any]:
    """Return statistics of a comparison; like these, values and bounds are those beyond the margin."""
    by_seed = {str(seed): value for seed, value in enumerate(values)}
    return {"values": by_seed, "bound_of_median": low, "upper_bound_of_median": high, "better": "lower"} | others


@pytest.mark.parametrize(
    ("compared", "text"),
    [
        (paired(0.1, 0.2, 0.4, margin=0.1), "lower by 0.3 in the median pair, margin 0.1"),
        (
            paired(0.1, 0.2, 0.4, margin=0.1, low=0.1, high=0.4),
            "lower by 0.3 in the median pair (at least 0.2, at most 0.5), margin 0.1",
        ),
        (
            paired(-0.3, -0.2, -0.12, margin=0.1, low=-0.3, high=-0.12),
            "+0.1 in the median pair, between +0.02 and +0.2; lower was claimed, margin 0.1",
        ),
        (
            paired(0.5, margin=0.0, better="higher", low=0.5),
            "higher by 0.5 in the median pair (at least 0.5), margin 0",
        ),
        (paired(-0.5, margin=0.0, better="higher"), "−0.5 in the median pair; higher was claimed, margin 0"),
        (
            paired(-0.006, low=-0.0144, high=0.0004, margin=0.0),
            "+0.006 in the median pair, between −0.0004 and +0.0144; lower was claimed, margin 0",
        ),
        (
            paired(0.5, low=-0.1, margin=0.0, better="higher"),
            "+0.5 in the median pair, at least −0.1; higher was claimed, margin 0",
        ),
        (paired(0.5, margin=0.1, modifier="m"), "gain larger by 0.6 in the median seed, margin 0.1"),
        (paired(-0.5, margin=0.1, modifier="m"), "gain −0.4 in the median seed; a larger one was claimed, margin 0.1"),
        (
            paired(-0.02, 0.01, -0.01, within=0.1, low=0.02, lower_bound_of_median=-0.02, high=0.01),
            "median difference −0.01 (at least −0.02, at most 0.01), limit 0.1",
        ),
        (paired(math.inf, margin=0.1), "lower by inf in the median pair, margin 0.1"),
    ],
)
def test_a_difference_is_that_of_the_median_pair(compared: dict[str, Any], text: str) -> None:
    assert texts((64, compared)) == [text]


def test_without_a_pair_there_is_no_difference() -> None:
    assert texts((64, paired(margin=0.1)), (128, paired(math.inf, -math.inf, margin=0.1))) == []


def test_several_sizes_are_named() -> None:
    both = texts((64, paired(0.5, margin=0.0)), (128, paired(0.1, margin=0.0)))
    assert both == [
        "lower by 0.5 in the median pair, margin 0 at h64",
        "lower by 0.1 in the median pair, margin 0 at h128",
    ]


def test_a_scale_is_recipe_sizes_and_steps() -> None:
    def configs(*sizes: int, steps: int | None = None, recipe: str = "quick") -> list[Any]:
        return [build_config(recipe, size=size, steps=steps) for size in sizes]

    assert str(Scale.of(configs(64))) == "quick, h64, 2,000 steps"
    assert str(Scale.of([*configs(64), *configs(128, steps=500)])) == "quick, h64, h128, 500 to 2,000 steps"
    assert str(Scale.of([*configs(64), *configs(64, recipe="origin")])) == "h64, 2,000 to 20,000 steps"
    assert str(Scale.of(configs(64, 128, 256, 512))) == "quick, h64, h128, h256 and 1 more, 2,000 steps"
    assert str(Scale(recipe=None, sizes=(), steps=())) == ""


def test_a_design_is_the_runs_but_for_their_seeds() -> None:
    one, other = build_config("quick"), build_config("quick", steps=7)
    assert design_hash([one]) == design_hash([build_config("quick", seed=3), one])
    assert design_hash([one, other]) == design_hash([other, one]) != design_hash([one])
