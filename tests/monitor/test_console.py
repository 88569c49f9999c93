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
from bitnetctl.monitor.console import PlainReporter, QuietReporter, Reporter, make_reporter
from bitnetctl.monitor.lines import row_line
from bitnetctl.monitor.live import LiveReporter
from bitnetctl.monitor.view import RunView
from bitnetctl.records import Row
from bitnetctl.trainer.events import (
    Diverged,
    Evaluated,
    Event,
    Failed,
    Finished,
    Progress,
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
        effective=[config] * count,
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
    assert lines[-1] == f"{NAME}: finished, held-out loss 6.250 (unigram 7.000), 8192 unique predictions"


@pytest.mark.parametrize("terminal", [False, True])
def test_plain_output_has_no_control_codes(terminal: bool) -> None:
    screen = Screen(terminal=terminal, width=40)
    ending: list[Event] = [Evaluated(run=1, row=row(STEPS, 2)), Stopped(step=STEPS - 1)]
    drive(PlainReporter(screen.console), long_run(2) + ending)
    assert "\x1b" not in screen.output
    assert "\r" not in screen.output
    # lines of a log are never wrapped
    assert len(screen.lines) == 1 + 2 * 20 + 1 + 2


def test_what_is_unknown_is_a_dash() -> None:
    view = RunView("a", CONFIG, row={"Step": 7, "Loss": math.nan})
    assert row_line(view) == "step     7/20000  loss nan  held-out –  unique –/–  lr –  wd –  – tok/s"


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
        for now, done in ((100.0, 1), (102.1, 1_000_000), (103.0, 3), (104.2, 2_000_000)):
            clock.now = now
            reporter.preparation("reading text", done, None if done < 2_000_000 else 3_000_000)
        # what is said once may be over at once
        clock.now += 2.1
        reporter.preparation("building 3 models", 0, None)
        for _ in range(3):
            clock.now += 1.1
            reporter.preparation("waiting", 0, None)
    assert screen.lines == ["reading text: 1,000,000", "reading text: 2,000,000 of 3,000,000", "waiting"]


# collapse


REPORTERS = [PlainReporter, LiveReporter]
UNIQUES = {300: 2, 1000: 60, 2000: 9, 3000: 2, 4000: 60, 5000: 4, 6000: 2, 7000: 2, 8000: 2, 9000: 60}
RECOVERY = {10_000: 60, 11_000: 60, 12_000: 60}


def fallen(run: int = 0) -> list[Event]:
    """A run that collapses with its evaluation at step 7,000 and recovers with that at 11,000."""
    return [Evaluated(run=run, row=row(step, unique)) for step, unique in (UNIQUES | RECOVERY).items()]


@pytest.mark.parametrize("kind", REPORTERS)
def test_a_collapse_is_reported_when_it_has_lasted_three_evaluations(
    kind: type[PlainReporter] | type[LiveReporter],
) -> None:
    screen = Screen(terminal=kind is LiveReporter, width=300)
    drive(kind(screen.console), [started(), *fallen()])
    lines = [line.partition(f"{NAME}: ")[2] for line in screen.lines if " since step" in line]
    # 300 is within the warm-up; 2,000 and 3,000 are a possible collapse, 5,000 to 7,000 are one
    assert lines == ["collapsed since step 5,000: 4 distinct predictions", "recovered since step 9,000"]


def test_plain_lines_carry_the_flag() -> None:
    screen = Screen(terminal=False)
    drive(PlainReporter(screen.console), [started(), *fallen()])
    flags = [line.partition(" tok/s")[2].strip() for line in screen.lines if " tok/s" in line]
    assert flags == [
        *("", "", "? collapse @2,000", "? collapse @2,000", ""),
        *("? collapse @5,000", "? collapse @5,000", *["⚠ collapsed @5,000"] * 4, "", ""),
    ]
    assert f"warning: {NAME}: collapsed since step 5,000: 4 distinct predictions" in screen.lines
    assert f"{NAME}: recovered since step 9,000" in screen.lines


@pytest.mark.parametrize("kind", REPORTERS)
def test_a_dead_model_with_many_tokens_is_reported(kind: type[PlainReporter] | type[LiveReporter]) -> None:
    screen = Screen(terminal=kind is LiveReporter, width=300)
    dead = [Evaluated(run=1, row=row(step, 118, HeldOutLoss=7.62)) for step in (2000, 3000, 4000)]
    drive(kind(screen.console), [started(2), *dead])
    (warning,) = [line for line in screen.lines if "collapsed since" in line]
    assert f"{NAME}-1: collapsed since step 2,000: held-out loss 7.62 above the unigram predictor's 7.00" in warning


# large packs


def arm_config(arm: str, seed: int) -> RunConfig:
    return build_config("origin", seed=seed, steps=STEPS, interventions=parse_arm(arm))


def large_pack(runs: int = 64) -> list[Event]:
    """A pack of two arms; every fourth run, all of the baseline, is collapsed from step 1,000 on."""
    configs = [arm_config(("", "no-decay")[run % 2], run // 2) for run in range(runs)]
    names = [config.run_name for config in configs]
    events: list[Event] = [
        Started(names=names, configs=configs, effective=configs, start_step=0, num_parameters=1, device="cpu")
    ]
    for step in range(1000, STEPS + 1, 1000):
        for run in range(runs):
            held_out = 7.5 if run % 4 == 0 else 6.0 + run % 2 / 2
            events.append(Evaluated(run=run, row=row(step, HeldOutLoss=held_out)))
        events.append(Progress(step=step, losses=[7.0] * runs, memory_bytes=2**30))
    return [*events, Finished(step=STEPS)]


def test_a_large_pack_has_a_line_an_evaluation() -> None:
    screen = Screen(terminal=False)
    drive(PlainReporter(screen.console), large_pack())
    first = arm_config("", 0).run_name
    assert screen.lines[:5] == [
        "pack of 64: 20,000 steps, 1 parameters on cpu each",
        "pack of 64 (h256)  step  1000/20000  held-out baseline 6.75  no-decay 6.50 (−0.25)  "
        f"16 possible collapse  worst {first} 7.5000 (unigram 7.0000)",
        "pack of 64 (h256)  step  2000/20000  held-out baseline 6.75  no-decay 6.50 (−0.25)  "
        f"16 possible collapse  worst {first} 7.5000 (unigram 7.0000)",
        "pack of 64 (h256)  step  3000/20000  held-out baseline 6.75  no-decay 6.50 (−0.25)  "
        f"16 collapsed  worst {first} 7.5000 (unigram 7.0000)",
        "warning: pack of 64 (h256): collapsed since step 1,000: baseline 16 of 32 (s0, s2, s4 and 13 more)",
    ]
    assert len(screen.lines) == 1 + 20 + 1 + 1
    assert screen.lines[-1] == (
        "pack of 64 (h256): 64 finished; collapsed: baseline 16 of 32 (s0, s2, s4 and 13 more); "
        "held-out loss baseline 6.75  no-decay 6.50 (−0.25)"
    )


def test_a_large_pack_is_reported_without_its_last_run() -> None:
    screen = Screen(terminal=False)
    events = large_pack(10)
    gone = [event for event in events if not (isinstance(event, Evaluated) and event.run == 9)]
    diverged: list[Event] = [Evaluated(run=9, row=row(1, math.nan, HeldOutLoss=math.nan)), Diverged(run=9, step=1)]
    with PlainReporter(screen.console) as reporter:
        for event in [gone[0], *diverged, *gone[1:10]]:
            reporter.event(event)
    assert "diverged at step 1; it is not trained any further" in screen.lines[2]
    # at once, and not with the next event
    assert screen.lines[-1].startswith("pack of 10 (h256)  step  1000/20000  held-out baseline 6.90")


# quiet


def test_quiet_prints_what_needs_attention() -> None:
    screen = Screen(terminal=True)
    reporter = make_reporter(screen.console, {NAME: CONFIG}, quiet=True)
    assert isinstance(reporter, QuietReporter)
    with reporter:
        reporter.preparation("reading text", 1, 2)
        for event in [started(), *fallen(), Finished(step=STEPS)]:
            reporter.event(event)
        reporter.event(FAILED)
        reporter.log("stopped by SIGINT")
    assert screen.lines == [
        f"warning: {NAME}: collapsed since step 5,000: 4 distinct predictions",
        f"{NAME}: finished, held-out loss 6.250 (unigram 7.000), 60 unique predictions",
        f"{NAME}: failed: the disk is gone",
        "stopped by SIGINT",
    ]


def test_quiet_says_nothing_of_packs_that_go_well() -> None:
    screen = Screen(terminal=False)
    runs = {f"{NAME}-{run}": CONFIG for run in range(2)}
    drive(QuietReporter(screen.console, runs), [*long_run(2), Finished(step=STEPS)])
    assert screen.lines == []


# terminals


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen(terminal=True)
    drive(LiveReporter(screen.console), [started(), *fallen()])
    assert "collapsed since step 5,000" in "\n".join(screen.lines)
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


@pytest.mark.parametrize("kind", REPORTERS)
def test_an_encoding_without_unicode_gets_ascii(kind: type[PlainReporter] | type[LiveReporter]) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="iso-8859-1")
    console = Console(file=file, width=130, height=40, force_terminal=kind is LiveReporter, legacy_windows=False)
    drive(kind(console), [started(), *fallen(), Progress(step=11_000, losses=[6.0], memory_bytes=0)])
    file.flush()
    shown = file.buffer.getvalue().decode("iso-8859-1")
    assert shown.isascii()
    assert "collapsed since step 5,000" in shown
    if kind is LiveReporter:
        # the last frame, with its curves
        assert "held-out loss (nats)" in shown
        assert "a baseline" in shown
