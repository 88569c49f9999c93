"""Boards after scripted events, and what a terminal of some size shows of them."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console, Group

from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.monitor.board import Board
from bitnetctl.monitor.curves import Curves
from bitnetctl.monitor.screen import frame
from bitnetctl.records import Row
from bitnetctl.trainer.events import Diverged, Evaluated, Finished, Planned, Progress, Started

STEPS = 1000
EVERY = 50
UNIGRAM, BIGRAM = 6.06, 4.51


class Clock(SimpleNamespace):
    """A clock that only the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def run_config(arm: str, size: int, seed: int) -> RunConfig:
    overrides = (f"probe.eval_every_steps={EVERY}",)
    return build_config("quick", size=size, steps=STEPS, seed=seed, overrides=overrides, interventions=parse_arm(arm))


def sweep_of(*arms: str, sizes: Sequence[int] = (32, 64), seeds: int = 6) -> list[RunConfig]:
    return [run_config(arm, size, seed) for size in sizes for arm in arms for seed in range(seeds)]


def board_of(configs: Sequence[RunConfig], clock: Clock, runs_dir: Path | None = None) -> Board:
    return Board(clock, {config.run_name: config for config in configs}, runs_dir, most_single_runs=1)


def begin(configs: Sequence[RunConfig], start_step: int = 0) -> Started:
    names = [config.run_name for config in configs]
    return Started(
        names=names, configs=configs, effective=configs, start_step=start_step, num_parameters=1, device="cpu"
    )


def row(step: int, held_out: float, unique: float = 200) -> Row:
    return {
        "Step": step,
        "Loss": held_out - 0.1,
        "UniquePredictions": unique,
        "LR": 1.5e-3,
        "WD": 0.1,
        "HeldOutLoss": held_out,
        "UniqueTargets": 3000,
        "UnigramLoss": UNIGRAM,
        "BigramLoss": BIGRAM,
        "ContextInformation": 0.5,
        "TokensPerSecond": 12_345.6,
    }


def held_out(config: RunConfig, step: int) -> float:
    """A curve: the baseline stays above the unigram predictor but for its seeds from 4 on, other arms get below it."""
    if step == 1:
        return 7.6
    end = 6.9 if config.arm == "baseline" and config.seed < 4 else 5.2
    return end + config.seed / 100 + (7.5 - end) * math.exp(-step / 250)


def train(board: Board, configs: Sequence[RunConfig], last: int, clock: Clock, start_step: int = 0) -> None:
    """Report a pack up to a step, a second for every evaluation but that of step 1."""
    board.apply(begin(configs, start_step))
    steps = [1, *range(EVERY, last + 1, EVERY)]
    for step in (step for step in steps if step > start_step):
        clock.now += step != 1
        for run, config in enumerate(configs):
            if board.pack[run].state == "training":
                board.apply(Evaluated(run=run, row=row(step, held_out(config, step), 300 - step / 10)))
    board.apply(Progress(step=last, losses=[6.5] * len(configs), memory_bytes=2**29))
    if last == STEPS:
        board.apply(Finished(step=STEPS))


def second_pack(clock: Clock) -> Board:
    """24 runs: 12 have finished, 12 are in training, of which one has diverged and four have collapsed."""
    configs = sweep_of("", "no-decay")
    board = board_of(configs, clock)
    board.apply(Planned(seconds={config.run_name: 5.0 for config in configs}, packs=2, device="cpu"))
    train(board, configs[:12], STEPS, clock)
    train(board, configs[12:], 600, clock)
    board.apply(Evaluated(run=5, row=row(650, math.nan)))
    board.apply(Diverged(run=5, step=650))
    return board


def console_of(width: int, height: int) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, record=True, color_system=None)


def screen(board: Board, width: int, height: int) -> list[str]:
    """Return what a terminal shows."""
    console = console_of(width, height)
    console.print(Group(*frame(board, width, height, Curves(color=False))))
    return [line.rstrip() for line in console.export_text().splitlines()]
