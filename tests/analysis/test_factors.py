"""Factors: the fields in which effective configs differ, aliases together."""

import itertools
from typing import Any

import pytest
from synthetic import continued, quick

from bitnetctl.analysis.factors import Factor, find_factors
from bitnetctl.config import RunConfig
from bitnetctl.plugins import registry


def effective(arm: str = "", **overrides: Any) -> RunConfig:
    config = quick(arm, **overrides)
    return registry.compose(config.interventions).configure(config)


def test_fields_that_change_are_factors_and_seeds_are_not() -> None:
    factors = find_factors(
        [effective(optimizer__name=name, seed=seed) for name in ("adam", "adamw") for seed in (0, 1)]
    )
    assert factors == [Factor(fields=("optimizer.name",), levels=("adam", "adamw"), level_of=(0, 0, 1, 1))]
    assert find_factors([effective(), effective(seed=1)]) == []
    assert find_factors([]) == []


def test_fields_that_change_together_are_one_factor() -> None:
    arms = ("", "decoupled-decay", "full-precision", "decoupled-decay+full-precision")
    found = find_factors([effective(arm, optimizer__name="adam") for arm in arms])
    factors = {factor.fields[0]: factor for factor in found}
    assert list(factors) == ["model.quantization", "optimizer.name"]
    assert factors["optimizer.name"].fields[0] == "optimizer.name"
    assert {"optimizer.exempt", "decoupled-decay"} <= set(factors["optimizer.name"].fields)
    # the name hides none of them
    assert factors["optimizer.name"].name == ", ".join(factors["optimizer.name"].fields)
    # numbers in ascending order, not in that of the runs
    assert factors["model.quantization"].levels == ("0", "1")
    assert factors["model.quantization"].level_of == (1, 1, 0, 0)
    assert "full-precision" in factors["model.quantization"].fields


def test_an_intervention_that_changes_no_field_is_a_factor() -> None:
    factors = find_factors([effective(), effective("label-smoothing")])
    assert [factor.fields for factor in factors] == [("label-smoothing",)]
    assert factors[0].levels[0] == "off"
    assert factors[0].level_of == (0, 1)


def test_settings_that_change_a_field_are_no_second_factor() -> None:
    factors = find_factors([effective(), effective("reduced-lr:peak=0.0005"), effective("reduced-lr:peak=0.0002")])
    assert [factor.fields[0] for factor in factors] == ["schedule.peak_learning_rate"]
    assert factors[0].levels == ("0.0002", "0.0005", "0.0015")


def test_the_size_is_known_as_no_treatment() -> None:
    factors = find_factors(
        [effective(size=size, optimizer__name=name) for size in (64, 128) for name in ("adam", "adamw")]
    )
    assert [factor.is_size for factor in factors if "model.hidden_size" in factor.fields] == [True]
    assert [factor.is_size for factor in factors if "optimizer.name" in factor.fields] == [False]


def test_a_factor_among_some_of_the_runs() -> None:
    factor = Factor(fields=("a",), levels=("x", "y", "z"), level_of=(0, 1, 2, 2))
    assert factor.among([1, 3]) == Factor(fields=("a",), levels=("y", "z"), level_of=(0, 1))


@pytest.mark.parametrize("order", list(itertools.permutations(("no-decay", "muon", "median-scale"))))
def test_the_order_of_the_runs_has_no_influence(order: tuple[str, ...]) -> None:
    factors = {factor.name: factor for factor in find_factors([effective(arm) for arm in order])}
    # without a baseline the third follows from the other two, and is named all the same
    assert {arm for arm in order for name in factors if arm in name.split(", ")} == set(order)
    for name, factor in factors.items():
        assert factor.levels == ("off", "on") or "off" not in factor.levels, name
    assert factors["median-scale"].level_of == tuple(int(arm == "median-scale") for arm in order)


def test_texts_are_in_the_order_of_the_alphabet() -> None:
    [factor] = find_factors([effective(data__order=order) for order in ("shuffled", "sequential", "shuffled")])
    assert (factor.levels, factor.level_of) == (("sequential", "shuffled"), (1, 0, 1))


def test_extended_runs_of_several_seeds_are_repetitions() -> None:
    longer = [continued(effective(seed=seed)) for seed in (0, 1)]
    assert longer[0].continues != longer[1].continues
    assert find_factors(longer) == []
    [factor] = find_factors([*longer, effective(seed=2)])
    assert (factor.fields, factor.levels) == (("continues",), ("unset", "@400"))
