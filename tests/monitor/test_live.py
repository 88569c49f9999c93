"""The live view in a terminal: what stays above it and after it, resumed runs, those of other processes."""

import io
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from boards import STEPS, Clock, begin, board_of, held_out, row, screen, sweep_of
from rich.console import Console

from bitnetctl.config import RunConfig
from bitnetctl.monitor import live
from bitnetctl.monitor.live import LiveReporter
from bitnetctl.records import Manifest, RecordWriter, RunPaths, Status, utc_now, write_manifest
from bitnetctl.trainer.events import Diverged, Evaluated, Failed, Finished, Progress, RolledBack, Saved

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known terminal."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def console(width: int = 80, height: int = 24) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system="standard")


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(console: Console) -> list[str]:
    """What was written, frames one below the other, without control codes."""
    shown = CONTROL.sub("", output(console)).replace("\r", "\n")
    return [line.rstrip() for line in shown.splitlines() if line.strip()]


def runs(configs: Sequence[RunConfig]) -> dict[str, RunConfig]:
    return {config.run_name: config for config in configs}


def test_only_permanent_lines_are_left() -> None:
    terminal, configs = console(120), sweep_of("", sizes=(64,), seeds=2)
    with LiveReporter(terminal, runs(configs)) as reporter:
        reporter.log("2 [bold]workers[/bold]")
        reporter.preparation("loading torch", 0, None)
        reporter.event(begin(configs))
        for step in (50, 500, STEPS):
            for run, config in enumerate(configs):
                reporter.event(Evaluated(run=run, row=row(step, held_out(config, step))))
            reporter.event(Saved(step=step))
            reporter.event(Progress(step=step, losses=[6.5, 6.6], memory_bytes=2**29))
        reporter.event(Finished(step=STEPS))
    assert "2 [bold]workers[/bold]" in lines(terminal)
    assert "pack of 2: 1,000 steps, 1 parameters on cpu each" in lines(terminal)
    assert "pack of 2 (h64): 2 finished; held-out loss baseline 6.92" in lines(terminal)
    assert output(terminal).startswith(HIDE)
    # the cursor is shown again, and after it the last frame is erased
    erased = output(terminal).rpartition(SHOW)[2]
    assert CONTROL.sub("", erased).strip() == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "live view"]


def test_an_interrupt_leaves_the_cursor_shown() -> None:
    terminal, configs = console(), sweep_of("", sizes=(64,), seeds=2)

    def interrupted() -> None:
        with LiveReporter(terminal, runs(configs)) as reporter:
            reporter.event(begin(configs))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert output(terminal).count(HIDE) == output(terminal).count(SHOW) == 1


def test_the_first_frame_is_there_at_once() -> None:
    terminal = console()
    with LiveReporter(terminal, runs(sweep_of("", sizes=(64,), seeds=2))):
        assert any("starting · 0:00" in line for line in lines(terminal))


def test_what_was_drawn_before_a_terminal_became_narrower_is_cleared() -> None:
    terminal, configs = console(80), sweep_of("", sizes=(64,), seeds=2)
    reporter = LiveReporter(terminal, runs(configs))
    reporter.event(begin(configs))
    reporter._render()
    terminal.width = 40
    before = len(output(terminal))
    reporter._undo_reflow()
    # each of the lines of 80 columns takes two: bar, pack, header, two runs, hint
    assert output(terminal)[before:].count("\x1b[1A") == 6
    before = len(output(terminal))
    reporter._render()
    reporter._undo_reflow()
    assert output(terminal)[before:] == ""


# the files of runs


def leave(
    config: RunConfig, folder: Path, status: Status, steps: Sequence[int], diverged_at: int | None = None
) -> None:
    """Write the files of a run that another process trains, or of an earlier session."""
    paths = RunPaths(folder, config.run_name)
    paths.folder.mkdir(parents=True, exist_ok=True)
    paths.csv.unlink(missing_ok=True)
    writer = RecordWriter(paths.csv)
    writer.open()
    for step in steps:
        writer.append(row(step, held_out(config, step)))
    writer.close()
    now = utc_now()
    manifest = Manifest(
        run=config.run_name,
        status=status,
        config={},
        config_hash=config.hash,
        created_at=now,
        updated_at=now,
        steps_done=max(steps, default=0),
        diverged_at=diverged_at,
    )
    write_manifest(paths.folder, manifest)


def test_a_resumed_run_shows_its_whole_history(tmp_path: Path) -> None:
    clock, configs = Clock(), sweep_of("", sizes=(64,), seeds=2)
    steps = [1, *range(50, 501, 50)]
    for config in configs:
        leave(config, tmp_path, "stopped", steps)
    board = board_of(configs, clock, tmp_path)
    board.apply(begin(configs, 450))
    # the row of step 500 is not of the checkpoint of step 450
    assert [step for step, _ in board.runs[configs[0].run_name].history] == steps[:-1]
    assert board.runs[configs[0].run_name].collapse.collapsed_at == 150
    fresh = board_of(configs, clock)
    fresh.apply(begin(configs))
    for reporter, from_step in ((board, 450), (fresh, 0)):
        for step in (step for step in [1, *range(50, 601, 50)] if step > from_step):
            for run, config in enumerate(configs):
                reporter.apply(Evaluated(run=run, row=row(step, held_out(config, step))))
        reporter.apply(Progress(step=600, losses=[6.5, 6.6], memory_bytes=2**29))
    assert screen(board, 80, 24)[3:] == screen(fresh, 80, 24)[3:]


def test_runs_of_other_processes_are_shown_with_their_values(tmp_path: Path) -> None:
    clock, configs = Clock(), sweep_of("", sizes=(64,), seeds=8)
    leave(configs[4], tmp_path, "running", [1, 50, 100, 150, 200, 250])
    leave(configs[5], tmp_path, "finished", [1, *range(50, STEPS + 1, 50)])
    leave(configs[6], tmp_path, "diverged", [1, 50], diverged_at=77)
    board = board_of(configs, clock, tmp_path)
    board.apply(begin(configs[:2]))
    board.read_folder(1.0)
    assert board.counts() == {"training": 2, "elsewhere": 1, "finished": 1, "diverged": 1, "waiting": 3}
    lines = screen(board, 100, 24)
    assert next(line for line in lines if line.startswith("baseline   64    4")).split()[3:5] == ["250", "5.99"]
    assert next(line for line in lines if line.startswith("baseline   64    6")).endswith("✗ diverged @77")
    # later: another has begun, and one has moved on
    leave(configs[7], tmp_path, "running", [1])
    with RunPaths(tmp_path, configs[4].run_name).csv.open("a", encoding="utf-8") as file:
        file.write("300,6.5,9,0.1,0.1" + "," * 16 + "\n")
    board.read_folder(1.0)
    assert board.runs[configs[4].run_name].step == 300
    assert board.counts()["elsewhere"] == 2
    # the state of runs of this process is not read from their manifests
    leave(configs[0], tmp_path, "failed", [1])
    board.read_folder(1.0)
    assert board.runs[configs[0].run_name].state == "training"
    # a manifest that is being damaged meanwhile ends no sweep
    RunPaths(tmp_path, configs[7].run_name).manifest.write_text("{", encoding="utf-8")
    board.read_folder(1.0)
    assert board.runs[configs[7].run_name].state == "elsewhere"


def test_the_time_left_follows_what_worker_processes_do(tmp_path: Path) -> None:
    clock, configs = Clock(), sweep_of("", sizes=(64,), seeds=2)
    board = board_of(configs, clock, tmp_path)
    for config in configs:
        leave(config, tmp_path, "running", [1, 50, 100])
    board.read_folder(1.0)
    assert board.seconds_left(*board.work()) is None
    clock.now += 10.0
    for config in configs:
        leave(config, tmp_path, "running", [1, 50, 100, 150, 200])
    board.read_folder(1.0)
    assert board.seconds_left(*board.work()) == pytest.approx(80.0)


def test_reading_the_folder_stops_when_its_time_is_up(tmp_path: Path) -> None:
    configs = sweep_of("", sizes=(64,), seeds=6)
    for config in configs:
        leave(config, tmp_path, "running", [1])
    clock = Clock()
    calls: list[None] = []

    def tick() -> float:
        calls.append(None)
        return clock.now + 0.01 * len(calls)

    board = board_of(configs, clock, tmp_path)
    board._clock = tick
    board.read_folder(0.035)
    assert board.counts() == {"elsewhere": 3, "waiting": 3}
    # the next call continues
    board.read_folder(0.035)
    assert board.counts() == {"elsewhere": 6}


def test_a_run_that_was_rolled_back_waits_for_its_turn(tmp_path: Path) -> None:
    clock, configs = Clock(), sweep_of("", sizes=(64,), seeds=3)
    board = board_of(configs, clock, tmp_path)
    board.apply(begin(configs))
    for step in (50, 100):
        for run, config in enumerate(configs):
            board.apply(Evaluated(run=run, row=row(step, held_out(config, step))))
    assert board.apply(RolledBack(run=1, step=50)) == []
    board.apply(Diverged(run=2, step=100))
    texts = [line.text for line in board.apply(Finished(step=STEPS))]
    assert texts == ["pack of 3 (h64): 1 finished, 1 waiting, 1 diverged"]
    assert {view.config.seed: (view.step, view.state) for view in board.runs.values()} == {
        0: (STEPS, "finished"),
        1: (50, "waiting"),
        2: (100, "diverged"),
    }
    # its CSV was cut to the rows of the checkpoint
    leave(configs[1], tmp_path, "running", [1, 50])
    board.apply(begin(configs[1:2], 50))
    assert [step for step, _ in board.runs[configs[1].run_name].history] == [1, 50]


def test_a_failed_run_is_named_with_its_error() -> None:
    terminal, configs = console(), sweep_of("", sizes=(64,), seeds=2)
    with LiveReporter(terminal, runs(configs)) as reporter:
        reporter.event(Failed(name=configs[1].run_name, message="the disk is gone"))
        assert reporter._board.counts() == {"failed": 1, "waiting": 1}
    assert any(line.startswith(f"{configs[1].run_name}: failed: the disk is gone") for line in lines(terminal))


def test_frames_are_at_most_four_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert live._LEAST_SECONDS == 0.25
    terminal = console()
    waits: list[float] = []
    reporter = LiveReporter(terminal, runs(sweep_of("", sizes=(64,), seeds=2)))

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > 3

    monkeypatch.setattr(reporter._done, "wait", wait)
    reporter._redraw()
    assert waits == [0.25] * 4
