"""Successive halving: what is drawn, how long each trial trains, and which go on."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from synthetic import quick, simple_run

from bitnetctl.config import build_config, builtin_names, parse_arm
from bitnetctl.errors import ConfigError
from bitnetctl.sweeps.search import Search, Trial, best_first, final_mean, load_search
from bitnetctl.trainer.resolved import resolve_all

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
        (10**9, 9, 2**63 - 1, [(9, (2**63 - 1) // 10**9 + 1), (1, 2**63 - 1)]),
    ],
)
def test_rungs(factor: int, trials: int, most: int, expected: list[tuple[int, int]]) -> None:
    rungs = make(reduction_factor=factor, max_tokens=most).rungs(trials)
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


def test_more_combinations_than_a_range_can_hold() -> None:
    fields = ("peak_learning_rate", "stage1_weight_decay", "stage2_weight_decay", "final_learning_rate_fraction")
    choices = {f"schedule.{field}": [number / 1e5 for number in range(1, 100_000)] for field in fields}
    trials = make(choices=choices, trials=5).all_trials()
    assert len({trial.point for trial in trials}) == 5
    assert make(choices=choices, trials=5).all_trials() == trials


def test_a_choice_needs_no_quotes() -> None:
    choices = {"schedule": {"peak_learning_rate": [1e-3]}, "data.batch_size": [2], "arm": ["no-decay"]}
    assert list(make(choices=choices).choices) == ["schedule.peak_learning_rate", "data.batch_size", "arm"]
    with pytest.raises(ConfigError, match=r"choices\.schedule\.kind: expected a list"):
        load_search("small", {"choices": {"schedule": {"kind": "cosine"}}})


def test_a_value_given_twice_is_drawn_once() -> None:
    twice = {name: [value for value in values for _ in range(2)] for name, values in CHOICES.items()}
    assert make(choices=twice, trials=9).all_trials() == make(trials=9).all_trials()


@pytest.mark.parametrize(
    ("value", "expected"), [("5%", 5), ("12.5 %", 12), ("0%", 0), ("0.001%", 1), ("200%", 200), ("7", 7)]
)
def test_a_share_of_the_steps(value: str, expected: int) -> None:
    [config] = make(overrides=[f"schedule.warmup_steps={value}"]).configs(Trial(0, ()), 100 * 4 * 32)
    assert (config.steps, config.schedule.warmup_steps) == (100, expected)


@pytest.mark.parametrize("value", ["nan%", "-5%", "5%%", "%", "1e1%"])
def test_what_is_no_share_is_no_number(value: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps: input should be a valid integer"):
        make(overrides=[f"schedule.warmup_steps={value}"]).all_trials()


def test_only_steps_have_a_share() -> None:
    with pytest.raises(ConfigError, match=r"peak_learning_rate: input should be a valid number.*got '5%'"):
        make(choices={"schedule.peak_learning_rate": ["5%"]}).all_trials()
    [config] = make(overrides=["data.text_field=5%"]).configs(Trial(0, ()), 1280)
    assert config.data.text_field == "5%"


def test_a_rung_of_less_than_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^trial 1 .*: 1,280 tokens are less than the 2,048 of a step"):
        make(choices={"data.batch_size": [64]}).all_trials()


def test_a_choice_of_the_size_is_over_overrides_and_these_over_the_size() -> None:
    sizes = {"model.hidden_size": [16]}
    search = make(size=64, overrides=["model.hidden_size=32"], choices=sizes)
    trials = search.all_trials()
    assert [search.configs(trial, 1280)[0].model.hidden_size for trial in trials] == [32, 16]
    options = search.options(trials[1], 1280)
    assert options[options.index("--sizes") + 1] == "16"
    assert not [text for text in options if text.startswith("model.hidden_size")]


@pytest.mark.parametrize(
    ("choices", "fields"),
    [
        ({"probe.positions": [64]}, {}),
        ({"data.source": ["file:other.txt"]}, {}),
        ({"data.held_out_fraction": [0.3]}, {}),
        ({"data.tokenizer": ["bpe:300"]}, {"measure": "HeldOutLoss"}),
    ],
)
def test_trials_that_are_measured_on_other_text_cannot_be_ranked(
    choices: dict[str, Any], fields: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"^trial 1 .* of this and of the recipe cannot be compared"):
        make(choices=choices, **fields).all_trials()


def test_sources_are_compared_by_one_held_out_text() -> None:
    choices = {"data.source": ["file:other.txt"], "data.held_out_fraction": [0.3]}
    search = make(choices=choices, overrides=["data.held_out_source=file:held-out.txt"], trials=9)
    assert [dict(trial.point) for trial in search.all_trials()][1:] == [
        {"data.source": "file:other.txt", "data.held_out_fraction": "0.3"}
    ]


def test_unseen_seeds() -> None:
    assert make(seeds=[0, 2, 5]).unseen_seeds(4) == [1, 3, 4, 6]


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
    search = make(size=32, overrides=["probe.eval_every_steps=25%", "data.batch_size=8"])
    trial = Trial(3, (("schedule.warmup_steps", "50%"), ("data.batch_size", "4"), ("arm", "no-decay")))
    options = search.options(trial, 5120)
    assert options[:4] == ["--recipe", "quick", "--sizes", "32"]
    named = dict(zip(options[::2], options[1::2], strict=False))
    overrides = [value for name, value in itertools.pairwise(options) if name == "--set"]
    assert sorted(overrides) == ["data.batch_size=4", "probe.eval_every_steps=10", "schedule.warmup_steps=20"]
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


def test_a_run_that_was_rolled_back_has_diverged(tmp_path: Path) -> None:
    rollback = {"diverged_at": 250, "resumed_from": 200, "tensor": "loss"}
    configs = [quick(seed=seed) for seed in range(2)]
    for config, rollbacks in zip(configs, ([], [rollback]), strict=True):
        simple_run(tmp_path, config, loss=5.0, rollbacks=rollbacks)
    went_on, rolled_back = resolve_all(configs, tmp_path)
    assert final_mean([went_on], "HeldOutLoss") == 5.0
    assert final_mean([went_on, rolled_back], "HeldOutLoss") == math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 5}, "max_tokens: 5 is less than min_tokens, 393,216"),
        ({"choices": {}}, "choices: dictionary should have at least 1 item"),
        ({"choices": {"data.batch_size": []}}, "choices: data.batch_size has no values"),
        ({"choices": {"steps": [5]}}, "choices: steps: the tokens of a rung decide the steps"),
        ({"choices": {" seed": [5]}}, "choices:  seed: take the field seeds"),
        ({"choices": {"recipe": ["quick"]}}, "choices: recipe: is a label without effect"),
        ({"choices": {"interventions": ["muon"]}}, "choices: interventions: take arm"),
        ({"choices": {"optimizer.exempt": [["head"]]}}, "choices.optimizer.exempt.0: expected a number, a text, true"),
        ({"choices": {"model.init_std": [float("nan")]}}, "choices.model.init_std.0: expected a number, a text, true"),
        ({"overrides": ["steps=5"]}, "overrides: steps=5: the tokens of a rung decide the steps"),
        ({"overrides": [" seed = 5"]}, "overrides:  seed = 5: take the field seeds"),
        ({"max_tokens": 10**400}, "max_tokens: input should be less than"),
        ({"seeds": [1, 1]}, "seeds: a seed is named twice"),
        ({"measure": "Loss"}, "measure: input should be 'HeldOutBitsPerByte' or 'HeldOutLoss'"),
        ({"reduction_factor": 1}, "reduction_factor: input should be greater than or equal to 2"),
        ({"trials": 1001, "seeds": 100}, "trials: 1,001 with 100 seeds are more than 100,000 runs"),
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
        ({"arm": ["median-scale+group-scale:size=8"]}, "only one intervention of a run may do so"),
    ],
)
def test_a_trial_that_cannot_be_trained_is_named(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^trial 1 \(") as caught:
        make(choices=choices).all_trials()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("folder_name", "shown"), [("mine", "arm=mine/one same.py:Same+"), ("a+b", "/a+b/one same.py:Same+")]
)
def test_an_arm_of_a_file_is_found_beside_the_search(
    folder_name: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from bitnetctl.intervention import Intervention\n\n\nclass Same(Intervention):\n    summary = 'nothing'\n"
    folder = tmp_path / folder_name
    folder.mkdir()
    (folder / "one same.py").write_text(text, encoding="utf-8")
    file = folder / "search.toml"
    choices = "choices = {arm = ['one same.py:Same+no-decay']}"
    file.write_text(f'recipe = "quick"\nmin_tokens = 1280\nmax_tokens = 1280\n{choices}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    _, trial = (search := load_search(f"{folder_name}/search.toml", {})).all_trials()
    [config] = search.configs(trial, 1280)
    assert config.arm == "same+no-decay"
    assert shown in trial.label
    # the command that is printed may run elsewhere
    options = search.options(trial, 1280)
    monkeypatch.chdir(folder)
    specs = parse_arm(options[options.index("-i") + 1])
    assert [(spec.name, spec.file) for spec in specs] == [(spec.name, spec.file) for spec in config.interventions]


def test_an_override_of_a_file_that_names_no_field_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('overrides = ["data.batchsize=3"]\nmin_tokens = 5\nmax_tokens = 5\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.toml: overrides: 'data\.batchsize=3': unknown field"):
        load_search(str(file), {})


def test_a_recipe_that_is_not_there_is_told_by_file_and_field(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "no.toml"\nmin_tokens = 5\nmax_tokens = 5\nchoices = {arm = ["no-decay"]}\n')
    with pytest.raises(ConfigError, match=r"^search .*mine\.toml: recipe: recipe file .*no\.toml: cannot read"):
        load_search(str(file), {})
