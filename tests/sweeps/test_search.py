"""Successive halving: what is drawn, how long each trial trains, and which go on."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from bitnetctl.config import build_config, builtin_names, parse_arm
from bitnetctl.errors import ConfigError
from bitnetctl.sweeps.search import Search, Trial, best_first, load_search

CHOICES: dict[str, Any] = {
    "schedule.peak_learning_rate": [1e-3, 2e-3, 4e-3],
    "data.batch_size": [2, 4],
    "schedule.warmup_steps": ["10%", "50%"],
    "arm": ["", "no-decay"],
}


def make(**fields: Any) -> Search:
    tree = {"recipe": "quick", "min_tokens": 1280, "max_tokens": 5120, "choices": CHOICES, **fields}
    return Search.model_validate(tree)


@pytest.mark.parametrize("name", builtin_names("bitnetctl.sweeps", "searches"))
def test_a_built_in_search_can_be_drawn(name: str) -> None:
    search = load_search(name, {})
    trials = search.all_trials()
    assert len(trials) == search.trials
    for trial in trials:
        tokens = [config.steps * config.data.tokens_per_step for config in search.configs(trial, search.max_tokens)]
        assert tokens == pytest.approx([search.max_tokens] * len(search.seeds), rel=0.01)


@pytest.mark.parametrize(
    ("factor", "trials", "most", "expected"),
    [
        (2, 9, 5120, [(9, 1280), (5, 2560), (3, 5120)]),
        # what is left of the range goes to the first rung
        (2, 9, 6000, [(9, 1500), (5, 3000), (3, 6000)]),
        (3, 9, 5120, [(9, 1707), (3, 5120)]),
        (2, 2, 10240, [(2, 1280), (1, 2560), (1, 5120), (1, 10240)]),
        (4, 9, 1280, [(9, 1280)]),
    ],
)
def test_rungs(factor: int, trials: int, most: int, expected: list[tuple[int, int]]) -> None:
    rungs = make(reduction_factor=factor, trials=trials, max_tokens=most).rungs()
    assert [(rung.trials, rung.tokens) for rung in rungs] == expected
    assert [rung.number for rung in rungs] == list(range(len(expected)))


def test_the_recipe_comes_first_and_no_combination_twice() -> None:
    trials = make(trials=25).all_trials()
    assert trials[0].point == ()
    points = [trial.point for trial in trials[1:]]
    # the recipe is one of the 24 combinations with other warm-up only
    assert len(set(points)) == len(points) == 24
    assert [trial.number for trial in trials] == list(range(25))
    assert make(trials=100).all_trials() == trials
    drawn = make(trials=6).all_trials()
    assert drawn == trials[:6]
    assert make(trials=6, draw_seed=1).all_trials() != drawn


def test_combinations_of_one_config_are_one_trial() -> None:
    recipe = build_config("quick")
    values = [recipe.schedule.peak_learning_rate, 3e-3]
    trials = make(trials=9, choices={"schedule.peak_learning_rate": values}).all_trials()
    assert [trial.point for trial in trials] == [(), (("schedule.peak_learning_rate", "0.003"),)]


def test_tokens_decide_the_steps_and_shares_follow_them() -> None:
    search = make(overrides=["probe.eval_every_steps=25%", "data.sequence_length=16"], seeds=2, size=32)
    point = (("data.batch_size", "2"), ("schedule.warmup_steps", "10%"), ("arm", "no-decay"))
    first, second = search.configs(Trial(1, point), 3200)
    assert (first.seed, second.seed) == (0, 1)
    assert first.steps == 3200 // (2 * 16)
    assert (first.schedule.warmup_steps, first.eval_every_steps) == (10, 25)
    assert (first.model.hidden_size, first.arm) == (32, "no-decay")
    assert search.configs(Trial(1, point), 640)[0].schedule.warmup_steps == 2


def test_the_options_of_a_trial_train_its_run() -> None:
    search = make(size=32, overrides=["probe.eval_every_steps=25%"])
    trial = Trial(3, (("schedule.warmup_steps", "50%"), ("data.batch_size", "4"), ("arm", "no-decay")))
    options = search.options(trial, 5120)
    assert options[:2] == ["--recipe", "quick"]
    named = dict(zip(options[::2], options[1::2], strict=False))
    overrides = [value for name, value in itertools.pairwise(options) if name == "--set"]
    config = build_config(
        "quick",
        size=int(named["--sizes"]),
        steps=int(named["--steps"]),
        overrides=overrides,
        interventions=parse_arm(named["-i"]),
    )
    assert config.hash == search.configs(trial, 5120)[0].model_copy(update={"interventions": config.interventions}).hash
    assert options[-1] == "--no-baseline"
    assert "-i" not in search.options(Trial(0, ()), 5120)


def test_the_best_is_the_least_and_what_did_not_finish_is_last() -> None:
    trials = [Trial(number, ()) for number in range(4)]
    values = dict(zip(trials, [2.0, math.inf, 1.0, 2.0], strict=True))
    assert [trial.number for trial in best_first(values)] == [2, 0, 3, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 5}, "max_tokens: 5 is less than min_tokens, 524,288"),
        ({"choices": {}}, "choices: dictionary should have at least 1 item"),
        ({"choices": {"data.batch_size": []}}, "choices: data.batch_size has no values"),
        ({"choices": {"steps": [5]}}, "choices: steps: is not a setting to be found"),
        ({"seeds": [1, 1]}, "seeds: a seed is named twice"),
        ({"measure": "Loss"}, "measure: input should be 'HeldOutBitsPerByte' or 'HeldOutLoss'"),
        ({"reduction_factor": 1}, "reduction_factor: input should be greater than or equal to 2"),
        ({"trials": 1}, "trials: input should be greater than or equal to 2"),
    ],
)
def test_a_search_that_cannot_be_made_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_search("small", change)
    assert str(caught.value).startswith(f"search small: {message}")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"data.batchsize": [2, 3]}, "did you mean 'data.batch_size'"),
        ({"data.batch_size": [-2, -3]}, "data.batch_size: input should be greater than 0"),
        ({"arm": ["reduced-rl", "reduced-ll"]}, "did you mean 'reduced-lr'"),
        ({"optimizer.exempt": ["heads", "tails"]}, "optimizer.exempt"),
    ],
)
def test_a_trial_that_cannot_be_trained_is_named(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^trial 1 \(") as caught:
        make(choices=choices).all_trials()
    assert message in str(caught.value)


def test_an_arm_of_a_file_is_found_beside_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from bitnetctl.intervention import Intervention\n\n\nclass Same(Intervention):\n    summary = 'nothing'\n"
    (tmp_path / "same.py").write_text(text, encoding="utf-8")
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    [config] = make(choices={"arm": ["same.py"]}).configs(Trial(1, (("arm", "same.py"),)), 1280, tmp_path)
    assert config.arm == "same"
