"""Processes that are killed: a training at every write call and at random moments, sweeps alone and side by side."""

import csv
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from .bench import RUN, Bench, Child, Tally, Truth, by_file, each, files_below, is_finished, resumes
from .hook import Fault, Mode

# largest difference of a value from that in another pack
TOLERANCE = 1e-2
# the checkpoint to which a diverging run is rolled back
_LAST_GOOD = 9
_MODES = {Mode.KILL_BEFORE: "killed before a write call", Mode.KILL_AFTER: "killed in the middle of, or after, one"}


def at_every_call(bench: Bench, truth: Truth, stride: int) -> Iterator[Tally]:
    """Kill a training at every `stride`-th of its write calls."""
    for mode, what in _MODES.items():
        for file, calls in by_file(truth.calls).items():
            yield _killed(bench, truth, mode, each(calls, stride, seed=mode), f"{what}: {file}")


def while_rolled_back(bench: Bench, truth: Truth, stride: int) -> Iterator[Tally]:
    """Kill a run that is rolled back at every `stride`-th write call since it first diverged; it resumes and ends."""
    calls = range(truth.put_in_place(_LAST_GOOD) + 1, len(truth.calls) + 1)
    for mode, what in _MODES.items():
        yield _killed(bench, truth, mode, each(calls, stride, seed=mode), f"rolled back after it diverged, {what}")


def _killed(bench: Bench, truth: Truth, mode: Mode, calls: Iterable[int], what: str) -> Tally:
    tally = Tally(what)
    for at in calls:
        bench.clear()
        ended = bench.call(truth.command, Fault(mode, at))
        loss = None if ended.code == -9 else f"ended with {ended.code} instead of being killed: {ended.said[-300:]}"
        call = truth.calls[at - 1]
        tally.count(f"{at} {call.name} {call.path}", loss or truth.intact(bench.runs, RUN, at) or resumes(bench, truth))
    return tally


def at_random(bench: Bench, truth: Truth, kills: int, seed: int = 0) -> Iterator[Tally]:
    """Kill trainings at random moments, each up to three times before it may finish."""
    rng = random.Random(seed)
    tally = Tally("killed at a random moment")
    while tally.tried < kills:
        bench.clear()
        for _ in range(3):
            ended = bench.call(bench.train, kill_after=rng.uniform(0, 1.1 * truth.seconds))
            if ended.code == 0:
                break
            loss = None if ended.code == -9 else f"ended with {ended.code}: {ended.said[-300:]}"
            tally.count(f"kill {tally.tried + 1}", loss or truth.intact(bench.runs, RUN))
        loss = resumes(bench, truth)
        if loss is not None:
            tally.lost.append(f"after kill {tally.tried}: {loss}")
    yield tally


def sweeps(bench: Bench, truth: Truth, stride: int) -> Iterator[Tally]:
    """Kill a sweep at every `stride`-th of its write calls."""
    tally = Tally("sweep killed before a write call")
    for at in each(range(1, len(truth.calls) + 1), stride):
        bench.clear()
        ended = bench.call(bench.sweep(1), Fault(Mode.KILL_BEFORE, at))
        loss = None if ended.code == -9 else f"ended with {ended.code} instead of being killed: {ended.said[-300:]}"
        for name in truth.names:
            loss = loss or truth.intact(bench.runs, name, at)
        done = {name for name in truth.names if is_finished(bench.runs, name)}
        again = bench.call(bench.sweep(1))
        tally.count(f"{at} {truth.calls[at - 1]}", loss or _all_once(done, again.said, truth, bench.runs))
    yield tally


def side_by_side(bench: Bench, truth: Truth, cases: int, seed: int = 0) -> Iterator[Tally]:
    """Let two sweeps share a folder and kill one of them."""
    rng = random.Random(seed)
    tally = Tally("one of two sweeps of a folder killed")
    for _ in range(cases):
        bench.clear()
        at = rng.randrange(1, len(truth.calls) // 2)
        children: list[Child] = [
            bench.start(bench.sweep(1), Fault(Mode.KILL_BEFORE, at), "first"),
            bench.start(bench.sweep(1), name="second"),
        ]
        first, second = [child.wait() for child in children]
        reported = [name for name in truth.names for ended in (first, second) if f"{name}: finished" in ended.said]
        loss = None if second.code == 0 else f"the other ended with {second.code}: {second.said[-300:]}"
        if len(reported) > len(set(reported)):
            loss = loss or f"trained twice: {reported}"
        tally.count(f"at {at}", loss or truth.finished(bench.runs))
    yield tally


def packs(bench: Bench, truth: Truth, stride: int, seed: int = 0) -> Iterator[Tally]:
    """Kill packs of two, kill them again soon after they resumed, and let the runs finish one by one."""
    rng = random.Random(seed)
    tally = Tally(f"pack killed twice, then one by one (within {TOLERANCE:g})")
    for at in each(range(1, len(truth.calls) + 1), stride):
        bench.clear()
        for number in (at, rng.randrange(1, 60)):
            bench.call(bench.sweep(2), Fault(Mode.KILL_BEFORE, number))
        done = {name for name in truth.names if is_finished(bench.runs, name)}
        again = bench.call(bench.sweep(1))
        loss = None if again.code == 0 else f"ended with {again.code}: {again.said[-300:]}"
        for name in truth.names:
            loss = loss or _difference(bench.runs / f"{name}.csv", truth.folder / f"{name}.csv")
            if (name in done) == (name in _started(again.said)):
                loss = loss or f"{name}: {'trained twice' if name in done else 'forgotten'}"
        if files_below(bench.runs) != files_below(truth.folder):
            loss = loss or "other files are there"
        tally.count(f"at {at}", loss)
    yield tally


def _started(said: str) -> list[str]:
    return re.findall(r"^(\S+): \d+ steps, ", said, re.MULTILINE)


def _all_once(done: set[str], said: str, truth: Truth, runs: Path) -> str | None:
    """Say which runs were trained twice or forgotten by a sweep that found some done."""
    started = _started(said)
    if sorted([*done, *started]) != truth.names:
        return f"done before: {sorted(done)}, trained now: {started}"
    return truth.finished(runs)


def _difference(ours: Path, theirs: Path) -> str | None:
    """Say what differs by more than the tolerance between two CSVs; the steps may not differ at all."""
    with ours.open(newline="") as one, theirs.open(newline="") as other:
        rows = [list(csv.DictReader(file)) for file in (one, other)]
    steps, expected = ([row["Step"] for row in part] for part in rows)
    if steps != expected:
        return f"{ours.name}: steps {steps} instead of {expected}"
    for column in ("Loss", "HeldOutLoss"):
        if any(abs(float(a[column]) - float(b[column])) > TOLERANCE for a, b in zip(*rows, strict=True)):
            return f"{ours.name}: {column} differs"
    return None
