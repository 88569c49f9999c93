"""The live view of many runs: a line for each, what other processes train, and a whole sweep."""

import contextlib
import io
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from calling import Done
from rich.console import Console

from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.errors import ExitCode
from bitnetctl.monitor import console as monitor_console, live
from bitnetctl.monitor.live import LiveReporter
from bitnetctl.records import Manifest, Row, Status, utc_now, write_manifest
from bitnetctl.trainer.events import Diverged, Evaluated, Event, Finished, Progress, Saved, Started

RUNS = Path("runs")
Sweep = Callable[..., Done]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
DIVERGES = "reduced-lr:factor=1e30"
pytestmark = pytest.mark.usefixtures("wide_terminal", "known_speed")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A known terminal, and a clock that only the test advances."""
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    clock = SimpleNamespace(now=100.0)
    for module in (monitor_console, live):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def view(height: int = 24) -> tuple[Console, Callable[[LiveReporter], list[str]]]:
    """A terminal of 80 columns, and what a reporter would draw there now."""
    file = io.StringIO()
    console = Console(file=file, width=80, height=height, force_terminal=True, color_system="standard")

    def draw(reporter: LiveReporter) -> list[str]:
        with console.capture() as capture:
            console.print(reporter._render())
        return [line.rstrip() for line in CONTROL.sub("", capture.get()).splitlines()]

    return console, draw


def plan_of(seeds: int, *arms: str) -> list[RunConfig]:
    return [
        build_config("origin", seed=seed, steps=20_000, interventions=parse_arm(arm))
        for arm in (arms or ("",))
        for seed in range(seeds)
    ]


ARMS = (
    "",
    "reduced-lr:peak=5e-4+wd-schedule:stage2=0.05",
    "label-smoothing",
    "no-decay+lr-drop",
    "fp-first",
    "init-scale",
)


def begin(configs: list[RunConfig], start_step: int = 0) -> Started:
    names = [config.run_name for config in configs]
    return Started(names=names, configs=configs, start_step=start_step, num_parameters=123_456, device="cpu")


def row(step: int, unique: float = 8192) -> Row:
    return {"Step": step, "Loss": 10.8, "UniquePredictions": unique, "LR": 1.5e-3, "WD": 0.1, "HeldOutLoss": 6.25}


def leave(config: RunConfig, runs_dir: Path, status: Status, steps_done: int) -> None:
    now = utc_now()
    write_manifest(
        runs_dir / config.run_name,
        Manifest(
            run=config.run_name,
            status=status,
            config={},
            config_hash=config.hash,
            created_at=now,
            updated_at=now,
            steps_done=steps_done,
        ),
    )


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("height", [24, 30, 60, 10])
def test_a_view_of_48_runs_fits_the_terminal(height: int) -> None:
    configs = plan_of(8, *ARMS)
    assert len(configs) == 48
    console, draw = view(height)
    reporter = LiveReporter(console, configs)
    pack = configs[8:24]
    events: list[Event] = [begin(pack)]
    events += [Evaluated(run=run, row=row(19_000 + run)) for run in range(16)]
    events += [Evaluated(run=3, row=row(19_500, math.nan)), Diverged(run=3, step=19_500)]
    events.append(Progress(step=19_999, losses=[1234.5678] * 16, memory_bytes=139 * 2**30))
    for event in events:
        reporter.event(event)
    lines = draw(reporter)
    assert max(map(len, lines)) <= 80
    # one line less than the terminal, since its last one holds the cursor
    assert len(lines) == min(height - 1, 3 + 48)
    assert "19,999/20,000 · stage 2" in lines[0]
    assert lines[1] == "48 runs: 15 training, 1 diverged, 32 waiting"
    assert lines[2].split() == ["run", "step", "loss", "unique", "history", "state"]
    shown = [line.split()[-1] for line in lines[3:]]
    if height < 51:
        assert lines[-1] == f"… and {48 - (height - 5)} more"
        shown.pop()
    # those in training come first
    assert shown == (["training"] * 15 + ["diverged"] + ["waiting"] * 32)[: height - 5]


def states(lines: list[str]) -> dict[str, str]:
    """Return the states of the runs by seed."""
    header = next(index for index, line in enumerate(lines) if line.startswith("run "))
    return {line.split()[1]: line.split()[-1] for line in lines[header + 1 :]}


def test_a_view_counts_runs_trained_elsewhere(clock: SimpleNamespace, tmp_path: Path) -> None:
    configs = plan_of(8)
    leave(configs[4], tmp_path, "running", 1234)
    leave(configs[5], tmp_path, "finished", 20_000)
    leave(configs[6], tmp_path, "diverged", 77)
    console, draw = view()
    reporter = LiveReporter(console, configs, tmp_path)
    reporter.event(begin(configs[:2]))
    lines = draw(reporter)
    assert "8 runs: 2 training, 1 diverged, 1 elsewhere, 1 finished, 3 waiting" in lines
    assert states(lines)["s4"] == "elsewhere"
    assert next(line for line in lines if line.startswith("h256 s4")).split()[3:4] == ["1,234"]

    # one second later: this process has finished its pack and begun another, and so has the other process
    reporter.event(Finished(step=20_000))
    reporter.event(begin(configs[2:4]))
    leave(configs[4], tmp_path, "finished", 20_000)
    leave(configs[7], tmp_path, "running", 1)
    clock.now += 1.0
    assert "8 runs: 2 training, 1 diverged, 1 elsewhere, 3 finished, 1 waiting" in draw(reporter)
    clock.now += 1.5
    assert "8 runs: 2 training, 1 diverged, 1 elsewhere, 4 finished" in draw(reporter)
    # the state of runs of this process is not read from their manifests
    leave(configs[2], tmp_path, "running", 3)
    clock.now += 3.0
    assert states(draw(reporter))["s2"] == "training"
    # a manifest that is being damaged meanwhile ends no sweep
    (tmp_path / configs[7].run_name / "run.json").write_text("{", encoding="utf-8")
    clock.now += 3.0
    assert states(draw(reporter))["s7"] == "elsewhere"


@pytest.mark.usefixtures("clock")
def test_runs_of_a_failed_pack_wait_again() -> None:
    configs = plan_of(4)
    console, draw = view()
    reporter = LiveReporter(console, configs)
    reporter.event(begin(configs[:3]))
    reporter.event(Evaluated(run=1, row=row(500)))
    reporter.event(Saved(step=500))
    # one of them raised: they continue one by one
    reporter.event(begin(configs[:1], 500))
    assert "4 runs: 1 training, 3 waiting" in draw(reporter)
    reporter.event(Finished(step=20_000))
    assert "4 runs: 1 finished, 3 waiting" in draw(reporter)


@pytest.mark.usefixtures("third_party")
def test_the_live_view_follows_a_whole_sweep(sweep_command: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    console, draw = view()
    reporters: list[LiveReporter] = []

    @contextlib.contextmanager
    def make(ignored: Console, configs: list[RunConfig], runs_dir: Path) -> Iterator[LiveReporter]:
        with LiveReporter(console, configs, runs_dir) as reporter:
            reporters.append(reporter)
            yield reporter

    monkeypatch.setattr(monitor_console, "make_reporter", make)
    done = sweep_command("-i", "fails", "-i", DIVERGES, "-i", "no-decay", "--pack", "4", "--json")
    assert done.code == ExitCode.USAGE
    (reporter,) = reporters
    assert draw(reporter)[0] == "4 runs: 1 failed, 1 diverged, 2 finished"
