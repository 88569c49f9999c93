"""Which token is chosen: limits and order of the filters, frequencies, seeds."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bitnetctl.errors import ConfigError
from bitnetctl.inference.sampler import NO_TOKEN, Sampler
from bitnetctl.inference.sampling import Sampling

# probabilities of four tokens, not in order
P_V = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64)
LOGITS_RBV = P_V.log().view(1, 1, -1) + 3.0


def drawn(logits_RBV: Tensor = LOGITS_RBV, *, draws: int = 400, banned: tuple[int, ...] = (), **fields: Any) -> Tensor:
    sampler = Sampler(Sampling(**({"temperature": 1.0, "top_k": None} | fields)), logits_RBV.shape[1], banned)
    return torch.stack([sampler.choose(logits_RBV) for _ in range(draws)], -1)


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        # the most probable one is always left
        ({"top_p": 1e-9}, {1}),
        ({"top_p": 0.5 - 1e-9}, {1}),
        ({"top_p": 0.5 + 1e-9}, {1, 3}),
        ({"top_p": 0.75 + 1e-9}, {1, 2, 3}),
        ({"min_p": 0.3 - 1e-9}, {1, 2, 3}),
        ({"min_p": 0.3 + 1e-9}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        # of what top-k left, 2 of 3 is two thirds
        ({"top_k": 2, "top_p": 0.66}, {1}),
        ({"top_k": 2, "top_p": 0.67}, {1, 3}),
        # the filters look at the distribution before the temperature
        ({"temperature": 100.0, "top_p": 0.7}, {1, 3}),
        ({"temperature": 100.0, "min_p": 0.4}, {1, 3}),
        ({"temperature": 0.0}, {1}),
        ({"banned": (1,)}, {0, 2, 3}),
        ({"banned": (1, 3), "temperature": 0.0}, {2}),
        ({"banned": (1,), "top_k": 1}, {3}),
    ],
)
def test_what_the_filters_leave(fields: dict[str, Any], left: set[int]) -> None:
    assert set(drawn(**fields).flatten().tolist()) == left


@pytest.mark.parametrize(("temperature", "draws"), [(1.0, 4000), (0.5, 4000), (2.0, 4000)])
def test_tokens_are_drawn_as_often_as_they_are_probable(temperature: float, draws: int) -> None:
    expected_V = P_V.pow(1 / temperature)
    expected_V /= expected_V.sum()
    counts_V = drawn(temperature=temperature, draws=draws).flatten().bincount(minlength=4)
    # five standard deviations of a count
    assert ((counts_V - draws * expected_V).abs() < 5 * (draws * expected_V * (1 - expected_V)).sqrt()).all()


def test_a_row_draws_from_seed_and_row_alone() -> None:
    logits_RBV = LOGITS_RBV.expand(2, 5, -1)
    five = drawn(logits_RBV, draws=50, seed=7)
    # every run has the same random numbers, every row others
    assert torch.equal(five[0], five[1])
    assert len({tuple(row) for row in five[0].tolist()}) == 5
    assert torch.equal(drawn(logits_RBV[:1, :2], draws=50, seed=7)[0], five[0, :2])
    assert not torch.equal(drawn(logits_RBV, draws=50, seed=8), five)


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 1e300])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    found = set(drawn(temperature=temperature, draws=200).flatten().tolist())
    assert found == ({1} if temperature < 1 else {0, 1, 2, 3})


def test_logits_that_are_not_finite_give_no_token() -> None:
    logits_RBV = LOGITS_RBV.repeat(1, 3, 1)
    logits_RBV[0, 1, 2] = math.nan
    logits_RBV[0, 2, 0] = math.inf
    for temperature in (0.0, 1.0):
        found = drawn(logits_RBV, temperature=temperature, draws=3)[0]
        assert (found[0] >= 0).all()
        assert (found[1:] == NO_TOKEN).all()


def test_ties_go_to_the_first_token() -> None:
    assert drawn(torch.zeros(1, 1, 9), temperature=0.0, draws=1).item() == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field.replace("_", "-")):
        Sampling(**{field: value})
