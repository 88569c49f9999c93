"""Arms, their baselines and paired effects against numbers worked out by hand."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import curve, quick, simple_run, write_csv

from bitnetctl.analysis.effects import Arm, ArmEffect, arm_effects, choose_baselines, name_arms
from bitnetctl.analysis.study import study
from bitnetctl.analysis.summary import RunSummary, summarize_run
from bitnetctl.api import load_runs
from bitnetctl.errors import ConfigError
from bitnetctl.records import load_run


@pytest.fixture
def summary(tmp_path: Path) -> Callable[..., RunSummary]:
    """Make the summary of one run."""

    def make(arm: str, seed: int, loss: float, unique: int = 64, size: int = 64, **fields: Any) -> RunSummary:
        config = quick(arm, size=size, seed=seed)
        path = simple_run(tmp_path, config, loss=loss, unique=unique, **fields)
        return summarize_run(load_run(path), arm or "baseline")

    return make


def effect_of(summaries: list[RunSummary], arm: str = "reduced-lr") -> ArmEffect:
    [effect] = arm_effects(summaries, {arm: "baseline"})
    return effect


def test_the_difference_is_the_mean_over_pairs(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", 0, 5.0), summary("", 1, 5.5)]
    summaries += [summary("reduced-lr", 0, 4.5, 128), summary("reduced-lr", 1, 5.25, 32)]
    effect = effect_of(summaries)
    assert (effect.pairs, effect.failures, effect.baseline_failures, effect.unpaired_runs) == (2, 0, 0, 0)
    loss, skill, unique = effect.effects.values()
    assert loss.mean == pytest.approx((-0.5 - 0.25) / 2)
    # a nat of loss is half a unit of skill: 6 - 4 nats between the predictors
    assert skill.mean == pytest.approx((0.25 + 0.125) / 2)
    assert unique.mean == 0
    assert loss.p == 0.5
    assert loss.p_floor == 0.5
    assert loss.low is not None
    assert loss.high is not None
    assert loss.low <= -0.375 <= loss.high
    assert loss.mean_by_size == {"64": pytest.approx(-0.375)}


def test_pairs_need_equal_size_and_seed(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", 0, 5.0), summary("", 1, 5.0, size=128), summary("reduced-lr", 0, 4.0, size=128)]
    summaries += [summary("reduced-lr", 1, 4.75, size=128), summary("reduced-lr", 0, 4.5)]
    effect = effect_of(summaries)
    assert (effect.pairs, effect.unpaired_runs) == (2, 1)
    assert effect.effects["final_held_out_loss"].mean_by_size == {"128": -0.25, "64": -0.5}


def test_a_failed_run_stays_in_and_is_infinitely_worse(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", seed, 5.0) for seed in range(3)]
    summaries += [summary("reduced-lr", seed, 4.5) for seed in range(2)]
    summaries += [summary("reduced-lr", 2, 4.5, status="diverged", diverged_at=700)]
    effect = effect_of(summaries)
    assert (effect.pairs, effect.failures) == (3, 1)
    loss = effect.effects["final_held_out_loss"]
    assert (loss.pairs, loss.failed_pairs, loss.mean, loss.mean_of_finite) == (3, 1, math.inf, -0.5)
    assert effect.effects["final_skill"].mean == -math.inf
    # ranks -1.5, -1.5, 3: no sum of other signs is smaller than 0
    assert loss.p == 1.0
    tree = json.loads(json.dumps(effect.to_json(), allow_nan=False))
    assert tree["effects"]["final_held_out_loss"]["mean"] == "inf"


def test_two_failures_are_equal(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", 0, 5.0, status="failed"), summary("reduced-lr", 0, 5.0, status="failed")]
    effect = effect_of(summaries)
    assert (effect.failures, effect.baseline_failures) == (1, 1)
    assert effect.effects["final_held_out_loss"].mean == 0
    assert effect.effects["final_held_out_loss"].failed_pairs == 1


def test_an_unfinished_run_gives_an_unknown_pair(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", 0, 5.0), replace(summary("reduced-lr", 0, 4.0), complete=False)]
    loss = effect_of(summaries).effects["final_held_out_loss"]
    assert (loss.pairs, loss.unknown_pairs, loss.mean, loss.p) == (0, 1, None, None)


def test_one_pair_has_a_difference_and_no_test(summary: Callable[..., RunSummary]) -> None:
    loss = effect_of([summary("", 0, 5.0), summary("reduced-lr", 0, 4.5)]).effects["final_held_out_loss"]
    assert (loss.mean, loss.low, loss.high, loss.p, loss.p_holm) == (-0.5, None, None, None, None)


def test_equal_differences_leave_the_interval_unknown(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", seed, 5.0) for seed in range(3)] + [summary("reduced-lr", seed, 4.5) for seed in range(3)]
    loss = effect_of(summaries).effects["final_held_out_loss"]
    assert (loss.mean, loss.low, loss.high, loss.p) == (-0.5, None, None, 0.25)


def test_p_values_are_adjusted_over_the_arms(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", seed, 5.0) for seed in range(4)]
    summaries += [summary("no-decay", seed, 4.5 - seed / 10) for seed in range(4)]
    summaries += [summary("full-precision", seed, 5.0 + (-1) ** seed / 10) for seed in range(4)]
    results = arm_effects(summaries, {"no-decay": "baseline", "full-precision": "baseline"})
    first, second = (effect.effects["final_held_out_loss"] for effect in results)
    assert (first.p, first.p_holm) == (0.125, 0.25)
    assert (second.p, second.p_holm) == (1.0, 1.0)


def test_copies_of_a_run_count_once(summary: Callable[..., RunSummary]) -> None:
    summaries = [
        summary("", 0, 5.0),
        summary("reduced-lr", 0, 4.5),
        summary("reduced-lr", 0, 4.0, name="copy"),
    ]
    effect = effect_of(summaries)
    assert effect.pairs == 1
    assert effect.effects["final_held_out_loss"].mean == -0.75


def arms(*texts: str, variant: tuple[str, ...] = ()) -> list[Arm]:
    parts = [frozenset(text.split("+")) - {"baseline"} for text in texts]
    return [Arm(label=text, interventions=part, variant=variant) for text, part in zip(texts, parts, strict=True)]


def test_the_baseline_is_the_arm_that_all_others_contain() -> None:
    assert choose_baselines(arms("baseline", "a", "a+b")) == {"a": "baseline", "a+b": "baseline"}
    assert choose_baselines(arms("a+b", "a", "a+c")) == {"a+b": "a", "a+c": "a"}
    assert choose_baselines(arms("a", "b")) == {}
    assert choose_baselines(arms("a")) == {}
    assert choose_baselines([]) == {}


def test_arms_are_compared_within_their_variant() -> None:
    both = [
        Arm(label=f"{text} [x={x}]", interventions=frozenset({text} - {"baseline"}), variant=(f"x={x}",))
        for x in (1, 2)
        for text in ("baseline", "a")
    ]
    assert choose_baselines(both) == {"a [x=1]": "baseline [x=1]", "a [x=2]": "baseline [x=2]"}
    requested = choose_baselines(both, "baseline [x=1]")
    assert requested == dict.fromkeys(("a [x=1]", "baseline [x=2]", "a [x=2]"), "baseline [x=1]")


def test_a_baseline_may_be_requested_by_a_part_of_its_label() -> None:
    two = [Arm(label=f"baseline [x={x}]", interventions=frozenset(), variant=(f"x={x}",)) for x in (1, 2)]
    assert choose_baselines(two, "x=2") == {"baseline [x=1]": "baseline [x=2]"}
    with pytest.raises(ConfigError, match=r"'baseline' could be any of 'baseline \[x=1\]', 'baseline \[x=2\]'"):
        choose_baselines(two, "baseline")
    with pytest.raises(ConfigError, match="--baseline 'z': no such arm among the runs; arms: baseline"):
        choose_baselines(two, "z")
    assert choose_baselines(arms("a", "a+b"), "a + b") == {"a": "a+b"}


def test_arms_are_named_by_interventions_and_what_else_differs(tmp_path: Path) -> None:
    paths = [
        simple_run(tmp_path, quick(optimizer__name="adam")),
        simple_run(tmp_path, quick(optimizer__name="adamw", size=128, seed=3)),
        simple_run(tmp_path, quick("no-decay", optimizer__name="adamw", probe__positions=64)),
        write_csv(tmp_path / "h64-1000-reduced-lr+no-decay-s1-abcdef.csv", curve((1, 1000))),
        write_csv(tmp_path / "foreign.csv", curve((1, 1000))),
    ]
    named = name_arms(load_runs(paths))
    assert [arm.label for arm in named] == [
        "baseline [optimizer.name=adam]",
        "baseline [optimizer.name=adamw]",
        "no-decay [optimizer.name=adamw]",
        "reduced-lr+no-decay",
        "foreign",
    ]
    assert named[3].interventions == frozenset({"reduced-lr", "no-decay"})
    assert named[4].interventions is None


def test_size_and_seed_make_no_arm(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick(size=size, seed=seed)) for size in (64, 128) for seed in (0, 1)]
    assert {arm.label for arm in name_arms(load_runs(paths))} == {"baseline"}


def test_foreign_files_are_never_paired(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"{name}.csv", curve((1, 1000))) for name in ("one", "two")]
    result = study(load_runs(paths), baseline="one")
    assert [effect.pairs for effect in result.effects] == [0]
    assert result.effects[0].effects["final_held_out_loss"].mean is None


def test_notes_warn_of_what_limits_the_results(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick(seed=seed)) for seed in range(2)]
    paths += [simple_run(tmp_path, quick("no-decay", seed=0), status="failed")]
    paths += [simple_run(tmp_path, quick("no-decay", seed=1))]
    notes = "\n".join(study(load_runs(paths), notes=["read me"]).notes)
    assert "read me" in notes
    assert "1 of 4 runs failed" in notes
    assert "with 2 pairs p cannot fall below 0.5; from six pairs on it can reach 0.05" in notes
    assert "measured on" not in notes


def test_without_one_baseline_a_note_suggests_the_option(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick(optimizer__name=name)) for name in ("adam", "adamw")]
    assert any("name one with --baseline" in note for note in study(load_runs(paths)).notes)
    chosen = study(load_runs(paths), baseline="optimizer.name=adam")
    assert not any("--baseline" in note for note in chosen.notes)
    assert chosen.arms[0] == "baseline [optimizer.name=adam]"


def test_copies_and_other_probes_are_noted(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick()), simple_run(tmp_path, quick(), name="copy")]
    paths += [write_csv(tmp_path / "foreign.csv", curve((1, 1000)))]
    notes = "\n".join(study(load_runs(paths)).notes)
    assert "copy repeats h64-1000-baseline-s0-" in notes
    assert "2 different probes" in notes
    assert "1 of 3 runs have no manifest" in notes


def test_the_smallest_effect_that_the_pairs_could_show(tmp_path: Path) -> None:
    from bitnetctl.analysis.stats import smallest_effect

    differences = [0.1, 0.3, 0.2, 0.5, 0.4, 0.3]
    spread = (sum((value - 0.3) ** 2 for value in differences) / 5) ** 0.5
    expected = smallest_effect(6, spread)
    assert expected is not None
    # t(0.975, 5) + t(0.8, 5) from a table
    assert expected == pytest.approx((2.5706 + 0.9195) * spread / 6**0.5, rel=1e-4)
    assert smallest_effect(5, spread) == math.inf
