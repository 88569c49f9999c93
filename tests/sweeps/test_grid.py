"""Values of config fields in a sweep."""

from typing import Any

import pytest

from bitnetctl.errors import ConfigError
from bitnetctl.sweeps.plan import make_plan, parse_grid, varied_fields


def test_every_arm_trains_with_every_combination() -> None:
    grid = parse_grid(["schedule.warmup_steps=5, 10", "optimizer.name=adam,adamw"])
    plan = make_plan({"recipe": "quick", "arms": ("reduced-lr",), "seeds": 2, "grid": grid})
    configs = plan.configs()
    points = {(c.schedule.warmup_steps, c.optimizer.name, c.arm, c.seed) for c in configs}
    assert len(configs) == len(points) == 2 * 2 * 2 * 2
    assert {point[0] for point in points} == {5, 10}
    assert varied_fields(configs)[0] == {"optimizer.name": "adam", "schedule.warmup_steps": 5}


def test_a_field_of_one_value_does_not_vary() -> None:
    configs = make_plan({"recipe": "quick", "sizes": (32, 64), "seeds": 2, "arms": ("no-decay",)}).configs()
    assert varied_fields(configs) == [{}] * 8


def test_values_are_read_as_those_of_set() -> None:
    grid = parse_grid(["model.inner_norms=true,false", "schedule.peak_learning_rate=1e-3,2e-3"])
    configs = make_plan({"recipe": "quick", "grid": grid}).configs()
    assert len(configs) == 4
    assert {c.model.inner_norms for c in configs} == {True, False}
    assert {c.schedule.peak_learning_rate for c in configs} == {1e-3, 2e-3}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["schedule.warmup_steps"], "expected SECTION.FIELD=VALUES"),
        (["schedule.warmup_steps=1,,2"], "expected SECTION.FIELD=VALUES"),
        (["=1,2"], "expected SECTION.FIELD=VALUES"),
        (["steps=1,2", "steps=3"], "list all its values in one --grid"),
    ],
)
def test_a_mistaken_grid_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_grid(texts)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"seed": (1, 2)}, "take seeds for that"),
        ({"schedule.warmup_step": (1, 2)}, "did you mean 'schedule.warmup_steps'"),
        ({"schedule.warmup_steps": ()}, "has no values"),
        ({"schedule.warmup_steps": 5}, "expected a list such as"),
        ({"schedule.warmup_steps": tuple(range(400)), "steps": tuple(range(1, 401))}, "more than 100,000 points"),
    ],
)
def test_a_mistaken_plan_is_refused(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan({"recipe": "quick", "grid": grid}).configs()
