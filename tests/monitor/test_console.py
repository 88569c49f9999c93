"""Plain lines in a file, and a live view that fits a terminal of 80 columns."""

import io
import math
import re
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from rich.console import Console

from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.monitor import console as monitor_console, live
from bitnetctl.monitor.console import PlainReporter, Reporter, make_reporter
from bitnetctl.monitor.live import LiveReporter
from bitnetctl.monitor.view import row_line, sparkline
from bitnetctl.records import Row, collapse_reason, finite_value
from bitnetctl.trainer.events import (
    Diverged,
    Evaluated,
    Event,
    Failed,
    Finished,
    Progress,
    RolledBack,
    Saved,
    Started,
    Stopped,
)

STEPS = 20_000
CONFIG = build_config("origin", size=1024, steps=STEPS)
NAME = CONFIG.run_name
FAILED = Failed(name=NAME, message="the disk is gone")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*\b(3[0-7]|9[0-7])m")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A known terminal, and a clock that stands still unless it is moved."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    clock = SimpleNamespace(now=100.0)
    for module in (monitor_console, live):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Screen:
    """A console that writes into memory."""

    def __init__(self, *, terminal: bool, width: int = 80) -> None:
        self.file = io.StringIO()
        color = "standard" if terminal else None
        self.console = Console(file=self.file, width=width, force_terminal=terminal, color_system=color)  # type: ignore[arg-type]

    @property
    def output(self) -> str:
        return self.file.getvalue()

    @property
    def lines(self) -> list[str]:
        """What was written, frames of a live view one below the other, without control codes."""
        return [line.rstrip() for line in CONTROL.sub("", self.output).replace("\r", "\n").splitlines() if line.strip()]


def started(count: int = 1, config: RunConfig = CONFIG, start_step: int = 0) -> Started:
    return Started(
        names=[NAME if count == 1 else f"{NAME}-{run}" for run in range(count)],
        configs=[config] * count,
        start_step=start_step,
        num_parameters=123_456_789,
        device="cuda:0",
    )


def row(step: int, unique: float | None = 8192, **columns: float | None) -> Row:
    values: Row = {
        "Step": step,
        "Loss": 10.8249,
        "UniquePredictions": unique,
        "LR": 1.5e-3,
        "WD": 0.1,
        "HeldOutLoss": 6.25,
        "UniqueTargets": 3000,
        "ProbePositions": 8192,
        "UnigramLoss": 7.0,
        "TokensPerSecond": 12_345_678.9,
    }
    return {**values, **columns}


def drive(reporter: Reporter, events: Sequence[Event]) -> None:
    with reporter:
        for event in events:
            reporter.event(event)


def long_run(count: int = 1) -> list[Event]:
    events: list[Event] = [started(count)]
    for step in (1, *range(1000, STEPS, 1000)):
        events += [Evaluated(run=run, row=row(step)) for run in range(count)]
        events += [Progress(step=step, losses=[10.82491] * count, memory_bytes=139 * 2**30), Saved(step=step)]
    return events


# plain lines


def test_plain_output_is_a_line_for_each_event_of_interest() -> None:
    screen = Screen(terminal=False)
    drive(PlainReporter(screen.console), [*long_run(), Evaluated(run=0, row=row(STEPS)), Finished(step=STEPS)])
    lines = screen.output.splitlines()
    assert lines[0] == f"{NAME}: 20,000 steps, 123,456,789 parameters on cuda:0"
    evaluations = lines[1:-1]
    assert len(evaluations) == 21
    assert evaluations[0] == (
        f"{NAME}  step     1/20000  loss 10.8249  held-out 6.2500  unique 8192/8192  "
        "lr 1.500e-03  wd 0.1  12345679 tok/s"
    )
    assert all(line.startswith(f"{NAME}  step ") for line in evaluations)
    assert lines[-1] == f"{NAME}: finished, held-out loss 6.250, 8192 unique predictions"


@pytest.mark.parametrize("terminal", [False, True])
def test_plain_output_has_no_control_codes(terminal: bool) -> None:
    screen = Screen(terminal=terminal, width=40)
    ending: list[Event] = [Evaluated(run=1, row=row(STEPS, 2)), Stopped(step=STEPS - 1)]
    drive(PlainReporter(screen.console), long_run(2) + ending)
    assert "\x1b" not in screen.output
    assert "\r" not in screen.output
    # lines of a log are never wrapped
    assert len(screen.lines) == 1 + 2 * 20 + 2 + 2


def test_what_is_unknown_is_a_dash() -> None:
    line = row_line({"Step": 7, "Loss": float("nan")}, 20)
    assert line == "step  7/20  loss nan  held-out –  unique –/–  lr –  wd –  – tok/s"


def test_how_a_run_resumed_diverged_and_stopped() -> None:
    screen = Screen(terminal=False)
    events: list[Event] = [started(2, start_step=1500), Diverged(run=0, step=1600), Stopped(step=2000)]
    drive(PlainReporter(screen.console), [*events, *events[:2], Finished(step=STEPS), started(), FAILED])
    once = [
        "pack of 2: 20,000 steps, 123,456,789 parameters on cuda:0 each, resumed after step 1,500",
        f"{NAME}-0: diverged at step 1,600; it is not trained any further",
    ]
    assert screen.lines == [
        *once,
        f"{NAME}-1: stopped at step 2,000, checkpoint saved",
        *once,
        f"{NAME}-1: finished",
        f"{NAME}: 20,000 steps, 123,456,789 parameters on cuda:0",
        f"{NAME}: failed: the disk is gone",
    ]


def test_plain_preparation_is_reported_every_two_seconds(clock: SimpleNamespace) -> None:
    screen = Screen(terminal=False)
    with PlainReporter(screen.console) as reporter:
        for now, done in ((100.5, 1), (102.1, 1_000_000), (103.0, 3), (104.2, 2_000_000)):
            clock.now = now
            reporter.preparation("reading text", done, None if done < 2_000_000 else 3_000_000)
        clock.now += 2.1
        reporter.preparation("waiting", 0, None)
    assert screen.lines == ["reading text: 1,000,000", "reading text: 2,000,000 of 3,000,000", "waiting"]


# collapse


REPORTERS = [PlainReporter, LiveReporter]


@pytest.mark.parametrize("kind", REPORTERS)
def test_a_collapse_is_reported_once_a_streak_with_its_values(kind: type[PlainReporter] | type[LiveReporter]) -> None:
    screen = Screen(terminal=kind is LiveReporter, width=300)
    uniques = {300: 2, 1000: 60, 2000: 9, 3000: 2, 4000: 2, 5000: 60, 6000: 4, 7000: 2}
    events: list[Event] = [Evaluated(run=0, row=row(step, unique)) for step, unique in uniques.items()]
    events.append(Evaluated(run=0, row=row(8000, 60, HeldOutLoss=7.25)))
    drive(kind(screen.console), [started(), *events])
    warnings = [line.partition(f"{NAME}: ")[2] for line in screen.lines if "collapse" in line]
    # 300 is within the warm-up; 8,000 belongs to the streak of 6,000
    assert warnings == [
        "collapse since step 2,000: 9 distinct predictions",
        "collapse since step 6,000: 4 distinct predictions",
    ]


@pytest.mark.parametrize("kind", REPORTERS)
def test_a_dead_model_with_many_tokens_is_reported(kind: type[PlainReporter] | type[LiveReporter]) -> None:
    screen = Screen(terminal=kind is LiveReporter, width=300)
    drive(kind(screen.console), [started(2), Evaluated(run=1, row=row(2000, 118, HeldOutLoss=7.62))])
    (warning,) = [line for line in screen.lines if "collapse" in line]
    assert f"{NAME}-1: collapse since step 2,000: held-out loss 7.62 above the unigram predictor's 7.00" in warning


HEALTHY: Row = {"Step": 9, "UniquePredictions": 60, "UniqueTargets": 800, "HeldOutLoss": 5.0, "UnigramLoss": 6.37}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"UniquePredictions": 10}, None),
        ({"UniquePredictions": 9}, "9 distinct predictions"),
        ({"HeldOutLoss": 6.37}, None),
        ({"HeldOutLoss": 7.62}, "held-out loss 7.62 above the unigram predictor's 6.37"),
        # a dead model near a uniform guess still shows many distinct tokens
        ({"HeldOutLoss": 7.62, "UniquePredictions": 118}, "held-out loss 7.62 above the unigram predictor's 6.37"),
        (
            {"HeldOutLoss": 7.62, "UniquePredictions": 2},
            "2 distinct predictions and held-out loss 7.62 above the unigram predictor's 6.37",
        ),
        # a text of few tokens has few targets
        ({"UniquePredictions": 3, "UniqueTargets": 5}, None),
        ({"UniquePredictions": 3, "UniqueTargets": 10}, "3 distinct predictions"),
        ({"UniquePredictions": 3, "UniqueTargets": None}, "3 distinct predictions"),
        ({"UniquePredictions": None}, None),
        ({"UniquePredictions": math.nan}, None),
        ({"HeldOutLoss": None}, None),
        ({"HeldOutLoss": math.inf}, None),
        ({"HeldOutLoss": 7.62, "UnigramLoss": None}, None),
        ({"HeldOutLoss": 7.62, "UnigramLoss": math.nan}, None),
    ],
)
def test_collapse_has_two_criteria(changes: dict[str, float | None], reason: str | None) -> None:
    assert collapse_reason({**HEALTHY, **changes}) == reason


def test_an_empty_row_is_no_collapse() -> None:
    assert collapse_reason({}) is None
    assert collapse_reason({"UniquePredictions": 2}) == "2 distinct predictions"


@pytest.mark.parametrize(("value", "expected"), [(3, 3.0), (0, 0.0), (None, None), (math.nan, None), (-math.inf, None)])
def test_known_values_are_finite(value: float | None, expected: float | None) -> None:
    assert finite_value({"Loss": value}, "Loss") == expected
    assert finite_value({}, "Loss") is None


# the live view


def test_the_live_view_of_a_long_run_fits(clock: SimpleNamespace) -> None:
    screen = Screen(terminal=True)
    with LiveReporter(screen.console) as reporter:
        for event in long_run():
            reporter.event(event)
        reporter.event(Progress(step=STEPS - 1, losses=[1234.56789], memory_bytes=139 * 2**30))
        clock.now += 35 * 3600 + 61
    assert all(len(line) <= 80 for line in screen.lines)
    assert "…" not in screen.output
    headline, header, values = screen.lines[-3:]
    assert headline.endswith("19,999/20,000 · stage 2 · 35:01:01 < 0:06 · 139.0 GiB")
    assert headline.startswith("━")
    assert header.split() == ["loss", "held-out", "unique", "history", "LR", "WD", "tok/s"]
    assert values.split() == ["1234.568", "6.250", "8,192", "█" * 16, "1.50e-03", "0.1", "12,345,679"]


@pytest.mark.parametrize(
    ("step", "stage", "left"), [(0, 1, "–:––"), (2_500, 1, "1:45:00"), (10_000, 1, "15:00"), (10_001, 2, "14:59")]
)
def test_the_headline_counts(clock: SimpleNamespace, step: int, stage: int, left: str) -> None:
    screen = Screen(terminal=True)
    with LiveReporter(screen.console) as reporter:
        reporter.event(started())
        if step:
            reporter.event(Progress(step=step, losses=[7.0], memory_bytes=0))
        clock.now += 900.0
    assert f" {step:,}/20,000 · stage {stage} · 15:00 < {left} · –" in "\n".join(screen.lines)


def test_time_left_counts_from_where_the_run_resumed(clock: SimpleNamespace) -> None:
    screen = Screen(terminal=True)
    with LiveReporter(screen.console) as reporter:
        reporter.event(started(start_step=18_000))
        reporter.event(Progress(step=19_000, losses=[7.0], memory_bytes=2**30))
        clock.now += 60.0
    assert "19,000/20,000 · stage 2 · 1:00 < 1:00 · 1.0 GiB" in "\n".join(screen.lines)


def test_the_live_view_leaves_only_permanent_lines() -> None:
    screen = Screen(terminal=True, width=120)
    drive(LiveReporter(screen.console), [*long_run(), Evaluated(run=0, row=row(STEPS)), Finished(step=STEPS)])
    assert screen.output.startswith("\x1b[?25l")
    assert "\x1b[?25h" in screen.output
    assert f"{NAME}: finished, held-out loss 6.250, 8192 unique predictions" in screen.lines
    # no view remains after the end
    assert not screen.lines[-1].startswith(("━", "loss"))


def test_preparation_shows_until_the_run_starts() -> None:
    screen = Screen(terminal=True)
    with LiveReporter(screen.console) as reporter:
        reporter.preparation("encoding text", 1_000_000, 2_000_000)
    assert set(screen.lines) == {"encoding text: 1,000,000 of 2,000,000"}
    screen = Screen(terminal=True)
    with LiveReporter(screen.console) as reporter:
        reporter.preparation("encoding text", 1_000_000, 2_000_000)
        reporter.event(started())
    assert not screen.lines[-1].startswith("encoding")


SWEEP = [build_config("origin", size=1024, seed=seed) for seed in range(4)]


def sweep_events() -> list[Event]:
    """Three runs of a sweep of four; the first diverges, the second collapses."""
    names = [config.run_name for config in SWEEP[:3]]
    pack = Started(names=names, configs=SWEEP[:3], start_step=0, num_parameters=123_456_789, device="cuda:0")
    events: list[Event] = [pack]
    for step in range(1000, STEPS, 1000):
        events += [Evaluated(run=run, row=row(step, unique)) for run, unique in enumerate((8192, 2, 8192))]
    events += [Evaluated(run=0, row=row(STEPS - 1, math.nan, Loss=math.nan)), Diverged(run=0, step=STEPS - 1)]
    events.append(Progress(step=STEPS - 1, losses=[1.0, 10.8251, 1234.5678], memory_bytes=139 * 2**30))
    return events


def test_the_live_view_of_a_sweep_fits() -> None:
    screen = Screen(terminal=True)
    drive(LiveReporter(screen.console, SWEEP), sweep_events())
    assert all(len(line) <= 80 for line in screen.lines)
    headline, counts, header, *rows = [line.split() for line in screen.lines[-7:]]
    assert headline[1:4] == ["19,999/20,000", "·", "stage"]
    assert " ".join(counts) == "4 runs: 2 training, 1 diverged, 1 waiting"
    assert header == ["run", "step", "loss", "unique", "history", "state"]
    label = ["h1024", "baseline"]
    assert [(cells[0], cells[2]) for cells in rows] == [tuple(label)] * 4
    assert [cells[1] for cells in rows] == ["s1", "s2", "s0", "s3"]
    assert [cells[3:] for cells in rows] == [
        ["19,999", "10.825", "2", "█" * 8, "training"],
        ["19,999", "1234.568", "8,192", "█" * 8, "training"],
        ["19,999", "nan", "nan", "█" * 8, "diverged"],
        ["0", "–", "–", "waiting"],
    ]


def test_a_run_that_was_rolled_back_waits_for_its_turn() -> None:
    screen = Screen(terminal=True)
    drive(LiveReporter(screen.console, SWEEP), [*sweep_events(), RolledBack(run=1, step=5000), Finished(step=STEPS)])
    assert sum("finished, held-out loss" in line for line in screen.lines) == 1
    states = {line.split()[1]: (line.split()[3], line.split()[-1]) for line in screen.lines[-4:]}
    assert states == {
        "s0": ("19,999", "diverged"),
        "s1": ("5,000", "waiting"),
        "s2": ("20,000", "finished"),
        "s3": ("0", "waiting"),
    }


def test_a_long_arm_is_cut_and_not_its_values() -> None:
    specs = parse_arm("wd-schedule:stage2=0.05+reduced-lr:peak=5e-4+label-smoothing:amount=0.1")
    configs = [build_config("origin", seed=seed, interventions=specs) for seed in (0, 1)]
    screen = Screen(terminal=True)
    names = [config.run_name for config in configs]
    pack = Started(names=names, configs=configs, start_step=0, num_parameters=1, device="cpu")
    drive(LiveReporter(screen.console, configs), [pack, *(Evaluated(run=run, row=row(2000)) for run in (0, 1))])
    assert all(len(line) <= 80 for line in screen.lines)
    for seed, line in enumerate(screen.lines[-2:]):
        assert line.startswith(f"h256 s{seed} wd-schedule:stage2=0.05")
        assert line.split()[-5:] == ["2,000", "10.825", "8,192", "█", "training"]


# the terminal


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen(terminal=True)
    drive(LiveReporter(screen.console), [*long_run(), Evaluated(run=0, row=row(STEPS - 1, 2))])
    assert "collapse since step 19,999" in "\n".join(screen.lines)
    assert bool(COLOUR.search(screen.output)) is not no_color


def test_only_a_terminal_that_moves_its_cursor_gets_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_reporter(Screen(terminal=True).console), LiveReporter)
    assert isinstance(make_reporter(Screen(terminal=False).console), PlainReporter)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_reporter(Screen(terminal=True).console), PlainReporter)


@pytest.mark.parametrize("kind", REPORTERS)
def test_brackets_are_text_and_no_markup(kind: type[PlainReporter] | type[LiveReporter]) -> None:
    screen = Screen(terminal=False)
    with kind(screen.console) as reporter:
        reporter.log("[bold]notes[3].txt[/bold]")
    assert screen.lines == ["[bold]notes[3].txt[/bold]"]


# parts


@pytest.mark.parametrize(
    ("values", "blocks"),
    [
        ([], ""),
        ([0.0, 0.0], "▁▁"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "▁▂▃▄▅▆▇██"),
        ([8.0, 4.0, 0.0], "█▅▁"),
        ([5.0], "█"),
        ([1000.0, *[1.0] * 16], "█" * 16),
    ],
)
def test_sparkline(values: list[float], blocks: str) -> None:
    assert sparkline(values) == blocks
    assert sparkline(values, width=2) == sparkline(values[-2:])
