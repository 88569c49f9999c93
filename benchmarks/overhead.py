"""The overhead of a run beyond its steps: probe, ternary health, rows, checkpoints, the loop itself, the view.

    python -m benchmarks.overhead [--recipe quick|origin] [--rounds N] [--steps N] [--quick] [--json FILE]

A run of a few hundred steps has the 21 evaluations and 20 saves of one of 20,000, so these are timed in it one by one,
and what is left is `around these`; what the loop does at every step is timed with empty steps and multiplied by 20,000.
The views redraw at intervals, not at steps: their overhead is the CPU time that they add while steps only sleep.
Bare steps and whole runs take turns in this process, on the CPU; opening a run is left out.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console

from benchmarks import harness
from benchmarks.step import VOCABULARIES
from bitnetctl.config import RunConfig, build_config
from bitnetctl.monitor.console import PlainReporter, Reporter
from bitnetctl.monitor.live import LiveReporter
from bitnetctl.trainer import loop
from bitnetctl.trainer.factory import open_trainer
from bitnetctl.trainer.loop import Trainer
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import resolve

_STEPS = 20_000
_LIMIT = 0.03
_PIECES = ("probe", "ternary codes", "ternary health", "CSV row", "checkpoint", "manifest", "view: events")


class Watch:
    """Times calls by name; a nested call counts as part of the outer one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._is_busy = False

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return `work`, timed under `name`."""

        def call(*arguments: Any, **named: Any) -> Any:
            if self._is_busy:
                return work(*arguments, **named)
            self._is_busy, start = True, time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                self.seconds.setdefault(name, []).append(time.perf_counter() - start)
                self._is_busy = False

        return call

    def total(self) -> float:
        """Return the seconds of all calls."""
        return sum(sum(taken) for taken in self.seconds.values())


def main() -> int:
    """Measure and print."""
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--recipe", choices=sorted(VOCABULARIES), default="quick")
    parser.add_argument("--rounds", type=int, help="turns of bare steps and of whole runs")
    parser.add_argument("--steps", type=int, help="steps of a run, 40 or more")
    arguments = parser.parse_args()
    harness.enter_cli_environment()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    steps = arguments.steps or (40 if arguments.quick or arguments.recipe == "origin" else 400)
    if steps < 40:
        parser.error("--steps: fewer than 40 steps have fewer evaluations than a run of 20,000")
    config = build_config(arguments.recipe, steps=steps)

    watch = Watch()
    racing = [
        harness.Contender("bare steps", lambda _: _bare(config)),
        harness.Contender("run, plain lines", lambda _: _run(config, plain_lines(), watch)),
        harness.Contender("run, live view", lambda _: _run(config, live_view(), Watch())),
    ]
    harness.alternate(racing, rounds=rounds, warm_up=0)
    bare, plain, live = (one.median("seconds", skip=0) or 0.0 for one in racing)
    whole = sum(turn["seconds"] for turn in racing[1].turns)
    each_step = _loop_seconds(config)
    around = (whole - watch.total()) / rounds - steps * each_step
    views = _view_overheads(config, bare, 1.0 if arguments.quick else 4.0)

    training = _STEPS * bare
    rows = [_row("bare steps", 1000 * bare, _STEPS, training, training)]
    for name in _PIECES:
        taken = watch.seconds[name]
        rows.append(_row(name, 1000 * statistics.median(taken), len(taken) // rounds, sum(taken) / rounds, training))
    rows.append(_row("around these", None, None, around, training))
    rows.append(_row("the loop, every step", 1000 * each_step, _STEPS, _STEPS * each_step, training))
    pieces = sum(row["seconds"] for row in rows[1:])
    rows += [_row(f"view: {name}", None, None, fraction * training, training) for name, fraction in views.items()]
    rows += [
        _row(f"all, {name}", None, None, pieces + fraction * training, training) for name, fraction in views.items()
    ]
    metadata = {
        **harness.machine(torch.device("cpu")),
        "limit of the fraction": _LIMIT,
        "measured": f"{rounds} turns of {steps} steps; seconds and fractions are those of {_STEPS:,} steps",
        f"bare, {steps} steps, seconds": steps * bare,
        f"plain lines, {steps} steps, seconds": steps * plain,
        f"live view, {steps} steps, seconds": steps * live,
        f"bare and all pieces, {steps} steps, seconds": steps * bare + pieces - (_STEPS - steps) * each_step,
    }
    harness.report(f"overhead: recipe {arguments.recipe}, {_STEPS:,} steps", rows, metadata, arguments.json)
    return 0


def _row(name: str, each: float | None, times: int | None, seconds: float, training: float) -> dict[str, Any]:
    return {"overhead": name, "ms each": each, "times": times, "seconds": seconds, "fraction": seconds / training}


def _bare(config: RunConfig) -> harness.Turn:
    """Train steps of a new pack with nothing around them."""
    with _opened(config) as trainer:
        start = time.perf_counter()
        for step in range(1, config.steps + 1):
            trainer.pack.step(step)
        return {"steps": config.steps, "seconds": time.perf_counter() - start}


def _run(config: RunConfig, reporter: Reporter, watch: Watch) -> harness.Turn:
    """Train a whole run with its view."""
    with _opened(config) as trainer, reporter, _watching(trainer, reporter, watch):
        start = time.perf_counter()
        for event in loop.train(trainer):
            reporter.event(event)
        return {"steps": config.steps, "seconds": time.perf_counter() - start}


@contextlib.contextmanager
def _opened(config: RunConfig) -> Iterator[Trainer]:
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(runs_dir=Path(folder), device="cpu")
        with open_trainer([resolve(config, options.runs_dir)], options) as trainer:
            yield trainer


@contextlib.contextmanager
def _watching(trainer: Trainer, reporter: Reporter, watch: Watch) -> Iterator[None]:
    """Time the methods that a run calls besides its steps."""
    artifacts, model = trainer.artifacts[0], trainer.pack.model
    calls = (
        ("steps", trainer.pack, "step"),
        ("probe", trainer.probe, "measure"),
        ("ternary codes", model, "ternary_codes"),
        ("ternary health", loop, "ternary_health"),
        ("CSV row", artifacts, "append"),
        ("checkpoint", artifacts, "save"),
        ("manifest", artifacts, "update"),
        ("view: events", reporter, "event"),
    )
    with contextlib.ExitStack() as stack:
        for name, owner, method in calls:
            stack.enter_context(mock.patch.object(owner, method, watch.timed(name, getattr(owner, method))))
        yield


def _loop_seconds(config: RunConfig, steps: int = 2000) -> float:
    """Return the seconds of the loop itself at a step, from a run with empty steps."""
    start, end = _idle(_evaluated_at_the_ends(config, steps), None, lambda: None)
    return (end.wall - start.wall) / (steps - 2)


def _view_overheads(config: RunConfig, step_seconds: float, seconds: float) -> dict[str, float]:
    """Return the CPU time that each view adds to a run whose steps only sleep, as a fraction of its wall time."""
    idle = _evaluated_at_the_ends(config, max(3, round(seconds / step_seconds)))

    def cpu_fraction(reporter: Reporter | None) -> float:
        start, end = _idle(idle, reporter, lambda: time.sleep(step_seconds))
        return (end.cpu - start.cpu) / (end.wall - start.wall)

    without = cpu_fraction(None)
    views: dict[str, Reporter] = {
        "plain lines": plain_lines(),
        "live view": live_view(),
        "live view, 2,000 runs": live_view(config, 2000),
    }
    return {name: cpu_fraction(view) - without for name, view in views.items()}


def _evaluated_at_the_ends(config: RunConfig, steps: int) -> RunConfig:
    probe = config.probe.model_copy(update={"eval_every_steps": steps})
    return config.model_copy(update={"steps": steps, "probe": probe})


class _Mark(NamedTuple):
    cpu: float
    wall: float


def _idle(config: RunConfig, reporter: Reporter | None, work: Callable[[], None]) -> list[_Mark]:
    """Train with `work` in place of a step; return the times at step 2 and the last: no evaluation is in between."""
    marks: list[_Mark] = []

    def fake_step(step: int) -> None:
        if step in (2, config.steps):
            marks.append(_Mark(time.process_time(), time.perf_counter()))
        work()

    with (
        _opened(config) as trainer,
        reporter or contextlib.nullcontext(),
        mock.patch.object(trainer.pack, "step", fake_step),
    ):
        for event in loop.train(trainer):
            if reporter is not None:
                reporter.event(event)
    return marks


def plain_lines() -> PlainReporter:
    """Return the view of a log file."""
    return PlainReporter(Console(file=io.StringIO(), width=120))


def live_view(config: RunConfig | None = None, others: int = 0) -> LiveReporter:
    """Return the view of a terminal, with `others` runs of a sweep, half of which have ended."""
    runs = {f"other-{index}": config for index in range(others)} if config is not None else {}
    console = Console(file=io.StringIO(), width=120, height=40, force_terminal=True)
    return LiveReporter(console, runs, None, list(runs)[: others // 2])


if __name__ == "__main__":
    raise SystemExit(main())
