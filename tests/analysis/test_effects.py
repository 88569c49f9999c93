"""Arms, their baselines and paired effects against numbers worked out by hand."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import continued, curve, quick, simple_run, write_csv

from bitnetctl.analysis.arms import Arm, choose_baselines, in_order, name_arms
from bitnetctl.analysis.effects import ArmEffect, arm_effects
from bitnetctl.analysis.stats import detectable_factor
from bitnetctl.analysis.study import study
from bitnetctl.analysis.summary import RunSummary, summarize_run
from bitnetctl.api import load_runs
from bitnetctl.errors import ConfigError
from bitnetctl.records import load_run
from bitnetctl.records.provenance import Differences


@pytest.fixture
def summary(tmp_path: Path) -> Callable[..., RunSummary]:
    """Make the summary of one run."""

    def make(arm: str, seed: int, loss: float, unique: int = 64, size: int = 64, **fields: Any) -> RunSummary:
        config = quick(arm, size=size, seed=seed)
        path = simple_run(tmp_path, config, loss=loss, unique=unique, **fields)
        return summarize_run(load_run(path), arm or "baseline")

    return make


def alike(run: RunSummary, other: RunSummary) -> Differences:
    return Differences()


def effect_of(summaries: list[RunSummary], arm: str = "reduced-lr") -> ArmEffect:
    [effect] = arm_effects(summaries, {arm: "baseline"}, alike)
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
    assert (loss.better, loss.worse, loss.equal, loss.p, loss.p_floor) == (2, 0, 0, 0.5, 0.5)
    assert (unique.better, unique.worse, unique.p) == (1, 1, 1.0)
    # t(0.975, 1) = 12.7062, and a standard error of 0.0625 * sqrt(2)
    assert loss.interval == pytest.approx((-0.375 - 12.7062 * 0.125, -0.375 + 12.7062 * 0.125), rel=1e-5)
    assert loss.mean_by_size == {"64": pytest.approx(-0.375)}
    assert loss.sentence == (
        "held-out loss: better in 2 of 2 seeds; mean difference −0.375 (95 % Student interval −1.963 to +1.213); "
        "p = 1.000 over 3 tests (sign test, Holm), not told from chance."
    )


def test_pairs_need_equal_size_and_seed(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", 0, 5.0), summary("", 1, 5.0, size=128), summary("reduced-lr", 0, 4.0, size=128)]
    summaries += [summary("reduced-lr", 1, 4.75, size=128), summary("reduced-lr", 0, 4.5)]
    effect = effect_of(summaries)
    assert (effect.pairs, effect.unpaired_runs) == (2, 1)
    assert effect.effects["final_held_out_loss"].mean_by_size == {"128": -0.25, "64": -0.5}


def test_one_seed_at_several_sizes_counts_once(summary: Callable[..., RunSummary]) -> None:
    sizes = (32, 64, 96, 128, 160, 192)
    summaries = [summary(arm, 0, 5.0 - bool(arm), size=size) for arm in ("", "reduced-lr") for size in sizes]
    effect = effect_of(summaries)
    assert (effect.seeds, effect.pairs) == (1, 6)
    loss = effect.effects["final_held_out_loss"]
    assert (loss.seeds, loss.pairs, loss.better, loss.mean, loss.p, loss.interval) == (1, 6, 1, -1.0, None, None)
    # a second seed with one of the sizes
    summaries += [summary("", 1, 5.0), summary("reduced-lr", 1, 8.0)]
    effect = effect_of(summaries)
    assert effect.uneven_sizes
    loss = effect.effects["final_held_out_loss"]
    assert (loss.seeds, loss.mean, loss.p) == (2, 1.0, 1.0)
    assert loss.mean_by_size["64"] == 1.0


def test_a_failed_run_stays_in_and_is_infinitely_worse(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", seed, 5.0) for seed in range(3)]
    summaries += [summary("reduced-lr", seed, 4.5) for seed in range(2)]
    summaries += [summary("reduced-lr", 2, 4.5, status="diverged", diverged_at=700)]
    effect = effect_of(summaries)
    assert (effect.pairs, effect.failures) == (3, 1)
    loss = effect.effects["final_held_out_loss"]
    assert (loss.pairs, loss.failed_pairs, loss.infinite_seeds) == (3, 1, 1)
    assert (loss.mean, loss.mean_of_finite, loss.interval, loss.smallest_effect) == (math.inf, -0.5, None, None)
    assert (loss.better, loss.worse, loss.p) == (2, 1, 1.0)
    assert effect.effects["final_skill"].mean == -math.inf
    tree = json.loads(json.dumps(effect.to_json(), allow_nan=False))
    of_loss = tree["effects"]["final_held_out_loss"]
    assert (of_loss["mean"], of_loss["mean_by_size"]) == (None, {"64": None})
    assert of_loss["infinite"] == {"mean": 1, "mean_by_size": {"64": 1}}
    assert tree["effects"]["final_skill"]["infinite"] == {"mean": -1, "mean_by_size": {"64": -1}}


def test_a_failure_of_the_baseline_does_not_hide_five_worse_seeds(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", seed, 5.0, status="failed" if seed == 2 else "finished") for seed in range(6)]
    summaries += [summary("reduced-lr", seed, 5.382) for seed in range(6)]
    loss = effect_of(summaries).effects["final_held_out_loss"]
    assert loss.mean == -math.inf
    assert loss.sentence == (
        "held-out loss: worse in 5 of 6 seeds, better in 1; the baseline failed in 1 of 6 pairs; no mean difference; "
        "that of the seeds without a failure is +0.382; p = 0.656 over 3 tests (sign test, Holm), not told from chance."
    )


def test_failures_at_several_sizes_of_a_seed(summary: Callable[..., RunSummary]) -> None:
    failed = {"status": "failed"}
    # at one size the arm fails, at the other the baseline: only the third size says something
    summaries = [summary("", 0, 5.0, size=32, **failed), summary("", 0, 5.0), summary("", 0, 5.0, size=96)]
    summaries += [summary("reduced-lr", 0, 5.0, size=32), summary("reduced-lr", 0, 5.0, **failed)]
    summaries += [summary("reduced-lr", 0, 4.0, size=96)]
    loss = effect_of(summaries).effects["final_held_out_loss"]
    assert (loss.better, loss.mean) == (1, -1.0)
    # failures of different seeds leave no mean
    summaries = [summary("", 0, 5.0, **failed), summary("", 1, 5.0), summary("", 2, 5.0)]
    summaries += [summary("reduced-lr", 0, 5.0), summary("reduced-lr", 1, 5.0, **failed), summary("reduced-lr", 2, 4.0)]
    loss = effect_of(summaries).effects["final_held_out_loss"]
    assert (loss.mean, loss.mean_of_finite, loss.better, loss.worse) == (None, -1.0, 2, 1)


def test_two_failures_are_equal(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", 0, 5.0, status="failed"), summary("reduced-lr", 0, 5.0, status="failed")]
    effect = effect_of(summaries)
    assert (effect.failures, effect.baseline_failures) == (1, 1)
    loss = effect.effects["final_held_out_loss"]
    assert (loss.mean, loss.failed_pairs, loss.equal) == (0, 1, 1)


def test_pairs_of_unequal_provenance_are_left_out(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary(arm, seed, 5.0 - bool(arm)) for arm in ("", "reduced-lr") for seed in range(3)]

    def compare(run: RunSummary, other: RunSummary) -> Differences:
        if run.seed == 0:
            return Differences(breaking=("data fingerprint ab12 and cd34",), minor=("torch 2.13.0 and 2.9.0",))
        return Differences(minor=("torch 2.13.0 and 2.9.0",) if run.seed == 1 else ())

    [effect] = arm_effects(summaries, {"reduced-lr": "baseline"}, compare)
    assert (effect.seeds, effect.pairs, effect.incomparable_pairs, effect.unpaired_runs) == (2, 2, 1, 0)
    assert effect.effects["final_held_out_loss"].better == 2
    assert effect.notes == (
        "reduced-lr and baseline: 1 pair left out, whose runs differ in data fingerprint ab12 and cd34",
        "reduced-lr and baseline: 1 pair compared, whose runs differ in torch 2.13.0 and 2.9.0",
    )


def test_runs_of_unknown_plans_are_compared_where_they_end_at_the_same_step(tmp_path: Path) -> None:
    def ended(arm: str, steps: int) -> RunSummary:
        path = tmp_path / f"{arm}-s0.csv"
        write_csv(path, curve((1, 100, steps), HeldOutLoss=(7.5, 6.0, 5.0)))
        return replace(summarize_run(load_run(path), arm), size=64, seed=0)

    baseline = ended("baseline", 1000)
    assert baseline.planned_steps is None
    longer = effect_of([baseline, ended("reduced-lr", 5000)])
    assert (longer.pairs, longer.unpaired_runs) == (0, 1)
    assert effect_of([baseline, ended("reduced-lr", 1000)]).pairs == 1


def test_an_unfinished_run_gives_an_unknown_pair(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", 0, 5.0), replace(summary("reduced-lr", 0, 4.0), complete=False)]
    loss = effect_of(summaries).effects["final_held_out_loss"]
    assert (loss.pairs, loss.unknown_pairs, loss.mean, loss.p) == (0, 1, None, None)


def test_failures_are_counted_of_all_pairs_where_a_pair_is_unknown(summary: Callable[..., RunSummary]) -> None:
    """They used to be those of the known pairs only: `2 of 1 pair`."""
    unfinished = [replace(summary("", seed, 5.0), complete=False) for seed in (0, 1)]
    summaries = [*unfinished, summary("", 2, 5.0), summary("reduced-lr", 0, 4.5)]
    summaries += [summary("reduced-lr", seed, 4.5, status="failed") for seed in (1, 2)]
    loss = effect_of(summaries).effects["final_held_out_loss"]
    assert loss.pairs == 1
    assert "the arm failed in 2 of 3 pairs" in loss.sentence


def test_one_pair_has_a_difference_and_no_test(summary: Callable[..., RunSummary]) -> None:
    loss = effect_of([summary("", 0, 5.0), summary("reduced-lr", 0, 4.5)]).effects["final_held_out_loss"]
    assert (loss.mean, loss.low, loss.high, loss.p, loss.p_holm) == (-0.5, None, None, None, None)


def test_equal_differences_leave_the_interval_unknown(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", seed, 5.0) for seed in range(3)] + [summary("reduced-lr", seed, 4.5) for seed in range(3)]
    loss = effect_of(summaries).effects["final_held_out_loss"]
    assert (loss.mean, loss.low, loss.high, loss.p) == (-0.5, None, None, 0.25)


def test_p_values_are_adjusted_over_arms_and_metrics(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", seed, 5.0) for seed in range(4)]
    summaries += [summary("no-decay", seed, 4.5 - seed / 10) for seed in range(4)]
    summaries += [summary("full-precision", seed, 5.0 + (-1) ** seed / 10) for seed in range(4)]
    results = arm_effects(summaries, {"no-decay": "baseline", "full-precision": "baseline"}, alike)
    assert [result.tests for result in results] == [6, 6]
    first, second = (effect.effects["final_held_out_loss"] for effect in results)
    assert (first.p, first.p_holm) == (0.125, 0.75)
    assert (second.p, second.p_holm) == (1.0, 1.0)


def test_the_smallest_effect_is_at_the_level_of_all_tests(summary: Callable[..., RunSummary]) -> None:
    summaries = [summary("", seed, 5.0) for seed in range(8)]
    summaries += [summary("reduced-lr", seed, 4.5 - seed / 10) for seed in range(8)]
    loss = effect_of(summaries).effects["final_held_out_loss"]
    assert loss.stdev == pytest.approx(math.sqrt(0.06))
    assert loss.smallest_effect == (loss.stdev or 0) * detectable_factor(8, 0.05 / 3)
    few = [one for one in summaries if one.seed is not None and one.seed < 6]
    assert effect_of(few).effects["final_held_out_loss"].smallest_effect == math.inf


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


def test_seeds_of_extended_runs_are_one_arm(tmp_path: Path) -> None:
    arms = ("", "no-decay")
    longer = [simple_run(tmp_path, continued(quick(arm, seed=seed))) for arm in arms for seed in (0, 1)]
    result = study(load_runs(longer))
    assert [(effect.arm, effect.pairs) for effect in result.effects] == [("no-decay", 2)]
    # what changes together with the interval of the evaluations is not passed over
    both = [longer[0], simple_run(tmp_path, quick(probe__eval_every_steps=50))]
    assert [arm.label for arm in name_arms(load_runs(both))] == [
        "baseline [continues=@400]",
        "baseline [continues=unset]",
    ]


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
    assert (
        "with 2 seeds and 3 p-values p (Holm) of an effect cannot fall below 1; from 7 seeds on it can reach 0.05, if "
        "their number is fixed before looking"
    ) in notes
    assert "measured on" not in notes


def test_without_one_baseline_a_note_suggests_the_option(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick(optimizer__name=name)) for name in ("adam", "adamw")]
    assert any("name one with --baseline" in note for note in study(load_runs(paths)).notes)
    chosen = study(load_runs(paths), baseline="optimizer.name=adam")
    assert not any("--baseline" in note for note in chosen.notes)
    assert chosen.arms[0] == "baseline [optimizer.name=adam]"


def test_copies_and_other_probes_are_noted(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick()), simple_run(tmp_path, quick(), loss=5.1, name="again")]
    paths += [write_csv(tmp_path / "foreign.csv", curve((1, 1000)))]
    notes = "\n".join(study(load_runs(paths)).notes)
    assert "again repeats h64-1000-baseline-s0-" in notes
    assert "2 different probes" in notes
    assert "1 of 3 runs have no config" in notes


def test_arms_of_unequal_provenance_are_not_compared(tmp_path: Path) -> None:
    """Another text, precision, device and torch in the arm than in its baseline used to give p = 0.031 and no note."""
    here: dict[str, Any] = {"precision": "int8", "device": "cpu (AMD EPYC)", "versions": {"torch": "2.13.0"}}
    there: dict[str, Any] = {"precision": "fp32", "device": "cuda (NVIDIA H100)", "versions": {"torch": "2.9.0"}}
    texts = ({"fingerprint": "ab" * 32}, {"fingerprint": "cd" * 32})

    def effect(folder: Path, data: dict[str, str]) -> tuple[ArmEffect, str]:
        runs = []
        for seed in range(6):
            of_arm = quick("reduced-lr", seed=seed)
            runs.append(load_run(simple_run(folder, quick(seed=seed), loss=5 + seed / 9, data=texts[0], **here)))
            runs.append(load_run(simple_run(folder, of_arm, loss=4 + seed / 9, data=data, **there)))
        done = study(runs)
        (one,) = done.effects
        return one, " ".join(done.notes)

    unequal, notes = effect(tmp_path / "unequal", texts[1])
    assert (unequal.pairs, unequal.incomparable_pairs) == (0, 6)
    assert unequal.effects["final_held_out_loss"].p is None
    assert "data fingerprint" in notes
    equal, notes = effect(tmp_path / "equal", texts[0])
    assert (equal.pairs, equal.incomparable_pairs) == (6, 0)
    assert "torch 2.9.0 (reduced-lr) and 2.13.0 (baseline)" in notes
    assert "data fingerprint" not in notes


def test_arms_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for arm, decay in itertools.product(("no-decay", ""), ("0.1", "0.01", "1e-3", "0", "10")):
        simple_run(tmp_path, quick(arm, schedule__stage1_weight_decay=decay, schedule__peak_learning_rate=1e-3))
    ordered = [arm.variant for arm in in_order(name_arms(load_runs([tmp_path])))]
    levels = [(f"schedule.stage1_weight_decay={level}",) for level in ("0", "0.001", "0.01", "0.1", "10")]
    assert ordered == levels * 2
    arms = study(load_runs([tmp_path])).arms
    assert arms == tuple(f"{arm} [{level}]" for arm in ("baseline", "no-decay") for (level,) in levels)


def test_texts_come_after_numbers_and_arms_once() -> None:
    def arm(level: str) -> Arm:
        return Arm(label=level, interventions=frozenset(), variant=(f"kind={level}",))

    assert [one.label for one in in_order(map(arm, ("two-stage", "9", "cosine", "10", "9")))] == [
        *("9", "10", "cosine", "two-stage"),
    ]
