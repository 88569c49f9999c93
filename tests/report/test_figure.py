"""What a figure shows: curves, bands, lines and labels by hand, and the hash that tells them apart."""

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic import REFERENCES, curve, quick, simple_run, write_csv, write_run

from bitnetctl.analysis.study import Study, study
from bitnetctl.api import load_runs
from bitnetctl.errors import ConfigError
from bitnetctl.records.metrics import MEASURES
from bitnetctl.report import figure_data, figure_data_hash, parse_columns
from bitnetctl.report.columns import MOST_POINTS, measure_title
from bitnetctl.report.figure import MOST_ARMS, Panel
from bitnetctl.report.plots import curves

AT = (1, 100, 200, 300, 400)


def seeds(folder: Path, *losses: Any, arm: str = "", size: int = 64, at: Any = AT, **fields: Any) -> list[Path]:
    """Write a run of 400 steps for each list of held-out losses."""
    paths = []
    for seed, loss in enumerate(losses):
        columns = {"HeldOutLoss": loss, "WD": [0.1 if step <= 200 else 0.0 for step in at]} | REFERENCES
        config = quick(arm, size=size, seed=seed, steps=400)
        paths.append(write_run(folder, config, curve(at, **columns), **fields))
    return paths


def loaded(*paths: Path) -> Study:
    return study(load_runs(list(paths)))


def panel(shown: Study, measure: str = "HeldOutLoss", size: int = 0) -> Panel:
    [row] = figure_data(shown, [measure]).rows
    return row.panels[size]


def test_a_curve_is_the_mean_over_the_seeds_with_their_range(tmp_path: Path) -> None:
    paths = seeds(tmp_path, [7.6, 6.0, 5.0, 4.5, 4.5], [7.6, 6.5, 5.0, 4.0, 4.25], [7.6, 7.0, 5.0, 5.0, 4.0])
    data = figure_data(loaded(*paths, *seeds(tmp_path, [7.6, 5, 5, 5, 5], arm="no-decay")))
    assert data.labels == ("baseline (3 seeds)", "no-decay (1 seed)")
    assert (data.sizes, data.band) == (("hidden 64",), "lowest to highest seed")
    assert [row.title for row in data.rows] == ["held-out loss (nats)", "distinct predictions"]
    assert [row.logarithmic for row in data.rows] == [False, True]
    baseline, other = data.rows[0].panels[0].curves
    assert (baseline.arm, baseline.runs, other.arm, other.runs) == (0, 3, 1, 1)
    # step 1, the untrained model, is left out
    assert baseline.steps == (100, 200, 300, 400)
    assert baseline.mean == pytest.approx((6.5, 5.0, 4.5, 4.25))
    assert baseline.low == (6.0, 5.0, 4.0, 4.0)
    assert baseline.high == (7.0, 5.0, 5.0, 4.5)
    assert (other.mean, other.low, other.high) == ((5.0,) * 4,) * 3


def test_the_number_of_seeds_is_said_once_where_all_arms_have_as_many(tmp_path: Path) -> None:
    losses = [[7.6, 6, 5, 4, 4]] * 2
    data = figure_data(loaded(*seeds(tmp_path, *losses), *seeds(tmp_path, *losses, arm="no-decay")))
    assert (data.labels, data.band) == (("baseline", "no-decay"), "lowest to highest of 2 seeds")
    # three seeds at one size, one at the other
    larger = seeds(tmp_path, losses[0], size=128)
    data = figure_data(loaded(*seeds(tmp_path, *losses, losses[0]), *larger))
    assert data.labels == ("baseline (1 to 3 seeds)",)


def test_means_on_a_logarithmic_scale_are_those_of_the_logarithm(tmp_path: Path) -> None:
    rows = [curve((1, 100), UniquePredictions=[4000, value]) for value in (10, 1000, 0)]
    paths = [write_run(tmp_path, quick(seed=seed, steps=100), row) for seed, row in enumerate(rows)]
    [drawn] = panel(loaded(*paths), "UniquePredictions").curves
    # 0 has no logarithm
    assert (drawn.runs, drawn.low, drawn.high) == (2, (10.0,), (1000.0,))
    assert drawn.mean == pytest.approx((100.0,))
    [drawn] = panel(loaded(*paths), "Loss").curves
    assert (drawn.runs, drawn.mean) == (3, (5.0,))


def test_a_run_that_is_evaluated_less_often_bends_no_mean(tmp_path: Path) -> None:
    often = seeds(tmp_path, [7.6, 7.0, 6.0, 5.0, 4.0])
    rare = write_run(tmp_path, quick(seed=1, steps=400), curve((1, 200, 400), HeldOutLoss=[7.6, 8.0, 6.0]))
    [drawn] = panel(loaded(*often, rare)).curves
    # before its first evaluation the second run is in no mean; at step 300 it is taken to be at 7
    assert drawn.steps == (100, 200, 300, 400)
    assert drawn.mean == pytest.approx((7.0, 7.0, 6.0, 5.0))
    assert drawn.high == (7.0, 8.0, 7.0, 6.0)


def test_a_long_curve_is_thinned_after_its_mean(tmp_path: Path) -> None:
    at = range(1, 3 * MOST_POINTS)
    paths = [
        write_csv(tmp_path / f"h64-{len(at)}-baseline-s{seed}-abcdef.csv", curve(at[: len(at) - 900 * seed], Loss=loss))
        for seed, loss in enumerate((4.0, 6.0))
    ]
    [drawn] = panel(loaded(*paths), "Loss").curves
    assert (len(drawn.steps), drawn.steps[0], drawn.steps[-1]) == (MOST_POINTS, 2, at[-1])
    # the second run ends in the middle: before, no point is of one run alone
    ends = at[-1] - 900
    assert {mean for step, mean in zip(drawn.steps, drawn.mean, strict=True) if step <= ends} == {5.0}
    assert {mean for step, mean in zip(drawn.steps, drawn.mean, strict=True) if step > ends} == {4.0}
    assert curves(loaded(*paths), "Loss", logarithmic=False) == {
        "baseline": dict(zip(drawn.steps, drawn.mean, strict=True))
    }


def test_a_run_that_diverged_ends_with_its_last_finite_value(tmp_path: Path) -> None:
    healthy, diverged = [7.6, 6.0, 5.0, 4.0, 4.0], [7.6, 6.0, 9.0, math.nan, 3.0]
    [curve_] = panel(loaded(*seeds(tmp_path, healthy, diverged))).curves
    assert curve_.ends == ((200, 9.0),)
    assert curve_.mean == pytest.approx((6.0, 7.0, 4.0, 4.0))
    # rolled back it went on, with half the learning rate
    rollback = {"diverged_at": 250, "resumed_from": 200, "tensor": "loss"}
    [curve_] = panel(loaded(*seeds(tmp_path / "b", healthy, healthy, rollbacks=[rollback]))).curves
    assert (curve_.ends, curve_.mean) == ((), (6.0, 5.0, 4.0, 4.0))
    [curve_] = panel(loaded(*seeds(tmp_path / "c", healthy, rollbacks=[rollback], diverged_at=300))).curves
    assert (curve_.ends, curve_.steps) == (((300, 4.0),), (100, 200, 300))


def test_what_a_divergence_adds_lies_outside_of_the_axis(tmp_path: Path) -> None:
    [row] = figure_data(loaded(*seeds(tmp_path, [8.0, 6.0, 900.0, math.nan, math.nan])), ["HeldOutLoss"]).rows
    assert (row.lowest, row.highest) == (None, 12.0)
    [row] = figure_data(loaded(*seeds(tmp_path, [8.0, 6.0, 11.9, 7.0, 6.0])), ["HeldOutLoss"]).rows
    assert (row.lowest, row.highest) == (None, None)
    # skill: (6 - 8) / (6 - 4) = -1 untrained
    [row] = figure_data(loaded(*seeds(tmp_path, [8.0, 6.0, 900.0, math.nan, math.nan])), ["Skill"]).rows
    assert (row.lowest, row.highest) == (-1.5, None)


def test_lines_are_the_boundary_and_the_reference_predictors(tmp_path: Path) -> None:
    shown = loaded(*seeds(tmp_path, [7.6, 6, 5, 4, 4]))
    assert panel(shown).levels == {"unigram": 6.0, "bigram": 4.0}
    assert panel(shown, "Skill").levels == {"unigram": 0.0, "bigram": 1.0}
    assert panel(shown, "Skill").curves[0].mean == (0.0, 0.5, 1.0, 1.0)
    assert panel(shown, "Loss").levels == panel(shown, "UniquePredictions").levels == {}
    assert panel(shown).boundaries == panel(shown, "LR").boundaries == (200,)


def test_sizes_have_panels_and_lengths_of_their_own(tmp_path: Path) -> None:
    paths = [
        simple_run(tmp_path, quick(arm, size=size, steps=steps), loss=size / 64)
        for size, steps in ((256, 300), (64, 200), (128, 200))
        for arm in ("", "no-decay")
    ]
    shown = loaded(*paths)
    # elsewhere these are four arms, since the lengths differ
    assert len(shown.arms) == 4
    data = figure_data(shown, ["HeldOutLoss"])
    assert data.sizes == ("hidden 64", "hidden 128", "hidden 256")
    assert data.labels == ("baseline (1 seed)", "no-decay (1 seed)")
    [row] = data.rows
    assert [[one.mean for one in panel.curves] for panel in row.panels] == [
        [(1.0, 1.0)] * 2,
        [(2.0, 2.0)] * 2,
        [(4.0, 4.0, 4.0)] * 2,
    ]
    assert [panel.boundaries for panel in row.panels] == [(100,), (100,), (150,)]


def test_lengths_of_one_size_are_curves_of_their_own(tmp_path: Path) -> None:
    configs = [simple_run(tmp_path, quick(steps=steps), loss=steps / 100) for steps in (200, 400)]
    assert figure_data(loaded(*configs)).labels == ("baseline [steps=200] (1 seed)", "baseline [steps=400] (1 seed)")
    bare = [
        write_csv(tmp_path / f"h64-{steps}-baseline-s0-abcdef.csv", curve((1, steps), Loss=[7, steps / 100]))
        for steps in (200, 400)
    ]
    data = figure_data(loaded(*bare))
    assert data.labels == ("baseline, 200 steps (1 seed)", "baseline, 400 steps (1 seed)")
    assert [(one.steps, one.mean) for one in data.rows[0].panels[0].curves] == [((200,), (2.0,)), ((400,), (4.0,))]


def test_the_training_loss_stands_in_where_no_other_is_known(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", curve((1, 50, 90), Loss=[7, 6, 5], UniquePredictions=None))
    data = figure_data(loaded(path))
    assert [(row.measure, row.title) for row in data.rows] == [("Loss", "training loss (nats)")]
    assert (data.sizes, data.labels, data.band) == (("",), ("log (1 run)",), "")


def test_the_hash_is_that_of_all_that_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(loss: float, name: str = "log") -> Study:
        return loaded(write_csv(tmp_path / f"{name}.csv", curve((1, 50), Loss=[7, loss])))

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    expected = (
        '{"band":"","labels":["log (1 run)"],"rows":[{"highest":null,"logarithmic":false,"lowest":null,'
        '"measure":"Loss","panels":[{"boundaries":[],"curves":[{"arm":0,"ends":[],"high":["6.12346"],'
        '"low":["6.12346"],"mean":["6.12346"],"runs":1,"steps":[50]}],"levels":{}}],"title":"training loss (nats)"}],'
        '"sizes":[""]}'
    )
    assert figure_data_hash(written(6.1234567), ["Loss"]) == hashlib.sha256(expected.encode()).hexdigest()
    assert figure_data_hash(written(6.1234569), ["Loss"]) == figure_data_hash(written(6.1234567), ["Loss"])
    different = [written(6.12347), written(6.1234567, "other")]
    hashes = {figure_data_hash(one, ["Loss"]) for one in (written(6.1234567), *different)}
    hashes |= {figure_data_hash(written(6.1234567), columns) for columns in (["LR"], ["Loss", "LR"], ["LR", "Loss"])}
    assert len(hashes) == 6


def test_columns_are_chosen_by_name() -> None:
    assert parse_columns(None) is None
    assert parse_columns("Skill, FlipRate,Skill") == ("Skill", "FlipRate")
    for text, message in (
        ("Flips", "--show: unknown column 'Flips'; did you mean 'FlipRate'?"),
        ("Loss,,LR", "--show: unknown column ''; known: Loss, "),
        ("Step", "--show: unknown column 'Step'"),
    ):
        with pytest.raises(ConfigError) as error:
            parse_columns(text)
        assert str(error.value).startswith(message)


def test_every_measure_has_a_title() -> None:
    assert len({measure_title(measure) for measure in MEASURES}) == len(MEASURES)


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    shown = loaded(*seeds(tmp_path, [7.6, 6, 5, 4, 4]))
    with pytest.raises(ConfigError, match=r"^--show FlipRate: no run has a value of it after step 1$"):
        figure_data(shown, ["Loss", "FlipRate"])
    with pytest.raises(ConfigError, match=r"^--figure: no run has a value after step 1$"):
        figure_data(loaded(write_csv(tmp_path / "one.csv", curve((1,)))))
    many = [write_csv(tmp_path / "many" / f"arm{index}.csv", curve((1, 9))) for index in range(MOST_ARMS + 1)]
    assert len(figure_data(loaded(*many[1:])).labels) == MOST_ARMS
    with pytest.raises(ConfigError, match=r"^--figure: 29 arms; one figure holds at most 28, so give fewer runs$"):
        figure_data(loaded(*many))
