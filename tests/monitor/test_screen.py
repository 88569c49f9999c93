"""Frames of the live view: what they say, and that they fit any terminal."""

import functools
import re
from pathlib import Path

import pytest
from boards import (
    STEPS,
    Clock,
    begin,
    board_of,
    row,
    run_config,
    screen,
    second_pack,
    sweep_of,
    train,
)
from hypothesis import given, settings, strategies as st

from bitnetctl.monitor.board import Board
from bitnetctl.monitor.curves import Curves
from bitnetctl.monitor.screen import frame
from bitnetctl.trainer.events import Diverged, Evaluated, Failed, Planned, Stopped

GOLDEN = Path(__file__).parents[1] / "golden"
LONG_ARMS = (
    "wd-schedule:stage2=0.05+reduced-lr:peak=5e-4",
    "wd-schedule:stage2=0.05+reduced-lr:peak=1e-4",
    "label-smoothing:amount=0.1",
)


@pytest.mark.parametrize(("width", "height"), [(44, 20), (80, 24), (120, 40)])
def test_a_frame_is_that_of_the_golden_file(width: int, height: int) -> None:
    shown = "\n".join(screen(second_pack(Clock()), width, height)) + "\n"
    assert shown == (GOLDEN / f"live-{width}x{height}.txt").read_text(encoding="utf-8")


@functools.cache
def boards() -> dict[str, Board]:
    """Boards at all stages of a sweep."""
    clock = Clock()
    new = board_of(sweep_of("", "no-decay"), clock)
    new.prepare("loading torch")
    one = board_of([run_config(LONG_ARMS[0], 64, 0)], clock)
    train(one, [run_config(LONG_ARMS[0], 64, 0)], 600, clock)
    configs = sweep_of(*LONG_ARMS)
    long = board_of(configs, clock)
    train(long, configs[:18], 600, clock)
    first_step = board_of(configs, clock)
    first_step.apply(begin(configs[:18]))
    large = sweep_of("", "no-decay", "label-smoothing", "fp-first", sizes=(64,), seeds=500)
    many = board_of(large, clock)
    train(many, large[:64], 300, clock)
    nothing = Board(clock, most_single_runs=1)
    return {
        "second": second_pack(clock),
        "new": new,
        "one": one,
        "long": long,
        "first": first_step,
        "2000": many,
        "none": nothing,
    }


@settings(max_examples=60)
@given(
    name=st.sampled_from(["second", "new", "one", "long", "first", "2000", "none"]),
    width=st.integers(40, 220),
    height=st.integers(3, 70),
)
def test_frames_fit_any_terminal(name: str, width: int, height: int) -> None:
    lines = screen(boards()[name], width, height)
    assert max(map(len, lines)) < width
    assert len(lines) < height
    board = boards()[name]
    rows = [line for line in lines if re.match(r"\S.*  (⚠|\?|✗|ok|recovered|warm-up|finished|training)", line)]
    header = next((line for line in lines if line.startswith("arm ")), None)
    if header is not None:
        assert header.split()[:3] == ["arm", "size", "seed"]
        assert rows or all(view.state == "waiting" for view in board.runs.values())


@pytest.mark.parametrize("height", [10, 24])
def test_the_worst_runs_come_first_and_the_rest_is_counted(height: int) -> None:
    lines = screen(second_pack(Clock()), 80, height)
    start = next(index for index, line in enumerate(lines) if line.startswith("arm "))
    rows = [line.split() for line in lines[start + 1 :] if line.startswith(("baseline", "no-decay"))]
    collapsed = [(cells[0], cells[2]) for cells in rows if "collapsed" in cells and cells[1] == "64"]
    # by skill: seed 3 is the worst
    assert collapsed == [("baseline", "3"), ("baseline", "2"), ("baseline", "1"), ("baseline", "0")][: len(rows)]
    if height == 10:
        assert len(rows) == 3
        assert "… 8 more training (worst shown) · 1 diverged · 12 finished" in lines
    else:
        assert rows[4][-2:] == ["diverged", "@650"]
        # those that train come before those that have finished
        assert [cells[1] for cells in rows] == ["64"] * 12 + ["32"] * 4
        assert "… 8 more finished" in lines


def test_runs_that_ended_badly_leave_room_for_those_in_training() -> None:
    clock = Clock()
    configs = sweep_of("", sizes=(64,), seeds=40)
    board = board_of(configs, clock)
    board.apply(begin(configs[:20]))
    for run in range(20):
        board.apply(Diverged(run=run, step=7))
    board.apply(Failed(name=configs[20].run_name, message="no"))
    train(board, configs[21:], 100, clock)
    lines = screen(board, 80, 24)
    states = [line.rpartition("  ")[2] for line in lines if line.startswith("baseline ")]
    assert states.count("✗ diverged @7") == states.count("warm-up") == len(states) // 2
    assert sum("failed" in line for line in lines) == 2


def test_waiting_runs_take_no_lines() -> None:
    clock = Clock()
    configs = sweep_of("", "no-decay")
    board = board_of(configs, clock)
    assert not any(line.startswith("arm") for line in screen(board, 80, 24))
    train(board, configs[:2], 100, clock)
    lines = screen(board, 80, 24)
    assert sum(line.startswith(("baseline", "no-decay")) for line in lines) == 2
    assert lines[1].endswith("0 done · 2 training · 22 waiting")


@pytest.mark.parametrize("end", ["stop", "fail"])
def test_runs_of_a_pack_that_ends_early(end: str) -> None:
    clock = Clock()
    configs = sweep_of("", sizes=(64,), seeds=4)
    board = board_of(configs, clock)
    train(board, configs[:3], 600, clock)
    if end == "stop":
        board.apply(Stopped(step=600))
        assert screen(board, 80, 24)[1].endswith("0 done · 3 stopped · 0 training · 1 waiting")
    else:
        # its runs continue one by one
        board.apply(begin(configs[:1], 600))
        assert board.counts() == {"training": 1, "waiting": 3}


# progress and time


def test_progress_is_that_of_all_runs() -> None:
    clock = Clock()
    configs = sweep_of("")
    board = board_of(configs, clock)
    small, large = configs[:6], configs[6:]
    seconds = {config.run_name: 10.0 if config in small else 30.0 for config in configs}
    board.apply(Planned(seconds=seconds, packs=2, device="cpu"))
    assert board.seconds_left() == 240.0
    clock.now += 5.0
    train(board, small, STEPS, clock)
    assert board.work() == (60.0, 240.0)
    # a quarter of the work took 20 seconds; what came before the first step does not count
    assert board.seconds_left() == 60.0
    train(board, large, 500, clock)
    done, total = board.work()
    assert done / total == 0.625
    assert screen(board, 80, 24)[0].endswith(" 62 % · 12 runs · 0:35 gone · 0:18 left")
    assert screen(board, 80, 24)[1].startswith("pack 2/2 · step 500/1,000 · stage 1 · 0.5 GiB")


def test_runs_that_had_ended_before_count_as_done() -> None:
    clock = Clock()
    configs = sweep_of("", sizes=(64,), seeds=4)
    ended = [config.run_name for config in configs[:2]]
    board = Board(clock, {config.run_name: config for config in configs}, None, ended, most_single_runs=1)
    assert board.seconds_left() is None
    board.apply(Planned(seconds={config.run_name: 8.0 for config in configs[2:]}, packs=1, device="cpu"))
    assert board.work() == (16.0, 32.0)
    train(board, configs[2:], 500, clock)
    # 10 seconds for a quarter of the whole
    assert board.seconds_left() == 10.0
    assert screen(board, 80, 24)[0].endswith(" 75 % · 4 runs · 0:10 gone · 0:10 left")
    assert screen(board, 80, 24)[1].endswith("2 done · 2 training · 0 waiting")


def test_the_preparation_is_named_with_its_time() -> None:
    clock = Clock()
    configs = sweep_of("")
    board = board_of(configs, clock)
    board.prepare("encoding text: 1,000,000 of 2,000,000")
    clock.now += 7.0
    board.prepare("encoding text: 1,500,000 of 2,000,000")
    assert screen(board, 80, 24)[1].startswith("encoding text: 1,500,000 of 2,000,000 · 0:07 ")
    board.apply(begin(configs[:6]))
    clock.now += 3.0
    assert screen(board, 80, 24)[1].startswith("step 0/1,000 · first step · 0:03 ")
    board.apply(Evaluated(run=0, row=row(1, 7.6)))
    assert screen(board, 80, 24)[1].startswith("step 1/1,000 · stage 1 ")


def test_a_stop_is_acknowledged() -> None:
    board = second_pack(Clock())
    lines = frame(board, 80, 24, Curves(color=False), is_stopping=True)
    assert lines[-1].plain == "stopping: the runs are saved at the end of this step"


# arms and curves


def test_the_difference_of_arms_is_that_of_pairs() -> None:
    clock = Clock()
    configs = [run_config("", 64, seed) for seed in range(3)] + [run_config("no-decay", 64, seed) for seed in (1, 2)]
    board = board_of(configs, clock)
    board.apply(begin(configs))
    for run, loss in enumerate((9.0, 6.0, 7.0, 5.0, 6.5)):
        board.apply(Evaluated(run=run, row=row(50, loss)))
    assert "arms @50  baseline 7.33  no-decay 5.75 (−0.75)  (bigram 4.51)" in screen(board, 80, 24)


def test_curves_need_width_and_two_evaluations() -> None:
    clock = Clock()
    configs = sweep_of("", "no-decay", sizes=(64,), seeds=2)
    board = board_of(configs, clock)
    train(board, configs, 50, clock)
    assert not any("held-out loss" in line for line in screen(board, 120, 40))
    train(board, configs, 500, clock, start_step=50)
    assert not any("held-out loss" in line for line in screen(board, 119, 40))
    lines = screen(board, 120, 40)
    title = lines.index("held-out loss (nats)")
    assert title > next(index for index, line in enumerate(lines) if line.startswith("arms "))
    assert [line.strip() for line in lines[-4:-1]] == ["a baseline", "b no-decay", "┈ unigram 6.06, bigram 4.51"]
    # beside the table where there is no room below it
    assert any(line.startswith("baseline") and "│" in line for line in screen(second_pack(Clock()), 120, 24))
