"""Steps to the loss at which the baseline ends, against curves written by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import REFERENCES, curve, quick, simple_run, write_run

from bitnetctl.analysis.study import study
from bitnetctl.api import load_runs

STEPS = [1, *range(100, 1001, 100)]
BASELINE = [7.6, 7.5, 7.4, 7.3, 7.2, 7.1, 6.0, 5.5, 5.2, 5.1, 5.0]
Reached = Callable[..., dict[int, int]]


@pytest.fixture
def reached(tmp_path: Path) -> Reached:
    """Return the steps by size that an arm takes, of its held-out losses by size and seed at STEPS."""

    def found(curves: dict[tuple[int, int], Sequence[float | None]], **of_arm: Any) -> dict[int, int]:
        paths = []
        for (size, seed), losses in curves.items():
            for arm, values, fields in (("", BASELINE, {}), ("no-decay", losses, of_arm)):
                rows = curve(STEPS[: len(values)], HeldOutLoss=values, **REFERENCES)
                paths.append(write_run(tmp_path, quick(arm, size=size, seed=seed), rows, **fields))
        result = study(load_runs(paths))
        [arm_tree] = result.to_json()["arms"]
        steps = dict(result.steps_to_baseline["no-decay"])
        assert arm_tree["steps_to_baseline"] == {str(size): step for size, step in steps.items()}
        return steps

    return found


def at_five(step: int, end: float = 4.5) -> list[float]:
    """A curve that is at 5 nats, where the baseline ends, from a step on, and at `end` at the end."""
    return [5.0 if at >= step else 7.0 for at in STEPS[:-1]] + [end]


def test_the_first_evaluation_with_the_final_loss_of_the_baseline(reached: Reached) -> None:
    assert reached({(64, 0): at_five(400)}) == {64: 400}


def test_the_median_of_the_seeds_at_each_size(reached: Reached) -> None:
    curves = {(64, seed): at_five(step) for seed, step in enumerate((300, 500, 400))}
    # of two in the middle the later one; worse at the end than before does not undo it
    curves |= {(128, seed): at_five(step, end=6.0) for seed, step in enumerate((200, 300, 600, 700))}
    assert reached(curves) == {64: 400, 128: 600}


def test_an_arm_that_is_there_only_at_its_end_is_not_earlier(reached: Reached) -> None:
    assert reached({(64, 0): at_five(1000)}) == {}


def test_an_unknown_loss_is_not_low(reached: Reached) -> None:
    assert reached({(64, 0): [7.6, None, None, *at_five(400)[3:]]}) == {64: 400}


def test_seeds_that_fail_never_get_there(reached: Reached) -> None:
    curves = {(64, seed): at_five(400) for seed in range(3)}
    assert reached(curves, status="diverged", diverged_at=700) == {}


def test_runs_that_are_not_finished_never_get_there(reached: Reached) -> None:
    assert reached({(64, 0): at_five(400)[:8]}, status="stopped") == {}


def test_a_baseline_that_learned_nothing_is_no_mark(tmp_path: Path) -> None:
    for arm, loss in (("", 6.5), ("no-decay", 5.0)):
        simple_run(tmp_path, quick(arm), loss=loss)
    assert study(load_runs([tmp_path])).steps_to_baseline == {"no-decay": {}}


def test_the_untrained_model_is_never_there(reached: Reached) -> None:
    assert reached({(64, 0): [4.9, *at_five(400)[1:]]}) == {64: 400}


def test_steps_beyond_the_plan_and_copies_of_a_seed_do_not_count(tmp_path: Path) -> None:
    long = curve([*STEPS, 1500, 2000], HeldOutLoss=[*([7.0] * len(STEPS)), 4.9, 4.8], **REFERENCES)
    for arm, rows in (("", curve(STEPS, HeldOutLoss=BASELINE, **REFERENCES)), ("no-decay", long)):
        write_run(tmp_path, quick(arm), rows)
    assert study(load_runs([tmp_path])).steps_to_baseline == {"no-decay": {}}
    rows = curve(STEPS, HeldOutLoss=at_five(400), **REFERENCES)
    write_run(tmp_path, quick("no-decay", seed=1), rows)
    write_run(tmp_path, quick("no-decay", seed=1), rows, name="copy")
    write_run(tmp_path, quick(seed=1), curve(STEPS, HeldOutLoss=BASELINE, **REFERENCES))
    assert study(load_runs([tmp_path])).steps_to_baseline == {"no-decay": {}}


def test_another_baseline_is_named(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick(arm), loss=loss) for arm, loss in (("", 4.5), ("no-decay", 5.0))]
    [finding] = [one for one in study(load_runs(paths), baseline="no-decay").findings if one.kind == "arm"]
    assert finding.statement.endswith("at the final loss of no-decay by step 100")
