"""`bitnetctl sweep --search`: train rung after rung of a search, and show what it found."""

import contextlib
import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnetctl.cli.options import print_json, print_message, stdout
from bitnetctl.cli.training import PlanCost, plan_cost, train_missing
from bitnetctl.errors import BitnetctlError, ConfigError, ExitCode
from bitnetctl.signals import StopRequest
from bitnetctl.sweeps.search import Rung, Search, Trial, best_first, final_mean, load_search
from bitnetctl.trainer.resolved import ResolvedRun, long_warm_ups, resolve_all
from bitnetctl.units import duration, plural

NEW_SEEDS = 6
"""Seeds with which the best trial is to be trained anew."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The mean of the measure of every trial in each rung that it trained in, the first first."""

    search: Search
    trials: Sequence[Trial]
    values: Mapping[Trial, list[float]]

    def ranking(self) -> list[Trial]:
        """Return the trials that have trained, those of the last rung first, of each rung the best first."""
        trained = [trial for trial in self.trials if self.values[trial]]
        return sorted(trained, key=lambda trial: (-len(self.values[trial]), self.values[trial][-1], trial.number))

    def to_json(self) -> dict[str, Any]:
        """Return rungs and ranking; a trial that did not finish has null as its last value."""
        return {
            "measure": self.search.measure,
            "recipe": self.search.recipe,
            "rungs": [{"trials": rung.trials, "tokens": rung.tokens} for rung in self.search.rungs(len(self.trials))],
            "trials": [
                {
                    "trial": trial.number,
                    "settings": dict(trial.point),
                    "values": [value if math.isfinite(value) else None for value in self.values[trial]],
                }
                for trial in self.ranking()
            ],
        }


def run_search(
    name: str,
    changes: Mapping[str, Any],
    stop: StopRequest,
    *,
    runs_dir: Path,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Train the rungs of a search and print its ranking; `options` are those of `train_missing`."""
    chosen = load_search(name, changes)
    trials = chosen.all_trials()
    rungs = chosen.rungs(len(trials))
    _note_long_warm_ups(chosen, trials, rungs[0], runs_dir)
    if dry_run:
        return _show_rungs(chosen, trials, rungs, runs_dir, options, as_json=as_json)
    found = Found(search=chosen, trials=trials, values={trial: [] for trial in trials})
    going_on = trials
    for rung in rungs:
        runs_of = _runs(chosen, going_on[: rung.trials], rung, runs_dir)
        runs = list(itertools.chain.from_iterable(runs_of.values()))
        if not options["quiet"]:
            print_message(f"rung {rung.number + 1} of {len(rungs)}: {_size(rung, len(runs_of))}")
        if _train(runs, stop, runs_dir=runs_dir, **options):
            # the terminal may be gone; the runs are saved and the exit code says so
            with contextlib.suppress(OSError, SystemExit):
                if as_json or rung.number:
                    _show(found, as_json=as_json)
            return ExitCode.STOPPED
        values = _values(chosen, runs_of, rung)
        for trial, value in values.items():
            found.values[trial].append(value)
        going_on = _going_on(values)
        if not going_on:
            _show(found, as_json=as_json)
            print_message(f"error: no trial of rung {rung.number + 1} has finished")
            return ExitCode.REFUTED if all(run.has_ended() for run in runs) else ExitCode.USAGE
    _show(found, as_json=as_json)
    best = going_on[0]
    seeds = ",".join(map(str, chosen.unseen_seeds(NEW_SEEDS)))
    options_of_best = chosen.options(best, chosen.max_tokens)
    command = ["bitnetctl", "sweep", *options_of_best, "--seeds", seeds, "--runs-dir", str(runs_dir)]
    print_message(f"best: trial {best.number}, {best.label}")
    print_message(f"next: train it with seeds that the search has not seen: {shlex.join(command)}")
    return ExitCode.SUPPORTED


def _note_long_warm_ups(search: Search, trials: Sequence[Trial], rung: Rung, runs_dir: Path) -> None:
    """Say of the trials of a rung which warm up for more than half of their steps."""
    named = [
        (run, f"rung {rung.number + 1}: trial {trial.number} ({trial.label})")
        for trial, runs in _runs(search, trials[: rung.trials], rung, runs_dir).items()
        for run in runs
    ]
    remedy = 'a share follows the steps: overrides = ["schedule.warmup_steps=2%"]'
    for note in long_warm_ups([run for run, _ in named], [name for _, name in named], remedy):
        print_message(note)


def _values(search: Search, runs_of: Mapping[Trial, Sequence[ResolvedRun]], rung: Rung) -> dict[Trial, float]:
    """Return the measure of each trial of a rung that has ended; raises BitnetctlError where one cannot be ranked."""
    try:
        return {trial: final_mean(runs, search.measure) for trial, runs in runs_of.items()}
    except BitnetctlError as error:
        raise type(error)(f"rung {rung.number + 1} cannot be ranked: {error}") from error


def _going_on(values: Mapping[Trial, float]) -> list[Trial]:
    """Return the trials that may go on, the best first."""
    return [trial for trial in best_first(values) if math.isfinite(values[trial])]


def _show_rungs(
    search: Search,
    trials: Sequence[Trial],
    rungs: Sequence[Rung],
    runs_dir: Path,
    options: Mapping[str, Any],
    *,
    as_json: bool,
) -> int:
    """Print the rungs with the time that each still takes, and the packs of the first that has not ended.

    Which trials go on from that one is not known yet: the first ones stand for them.
    """
    costs: list[PlanCost] = []
    for rung in rungs:
        runs_of = _runs(search, trials[: rung.trials], rung, runs_dir)
        runs = list(itertools.chain.from_iterable(runs_of.values()))
        costs.append(plan_cost(runs, options["device"], options["pack"]))
        if all(run.has_ended() for run in runs):
            trials = _going_on(_values(search, runs_of, rung))
    current = next((rung.number for rung, cost in zip(rungs, costs, strict=True) if cost.done < cost.runs), 0)
    if as_json:
        tree = [
            {"trials": rung.trials, "tokens": rung.tokens, "seconds": round(cost.seconds, 1)}
            for rung, cost in zip(rungs, costs, strict=True)
        ]
        print_json({"rungs": tree, "rung": current + 1, **costs[current].to_json()})
    else:
        for rung, cost in zip(rungs, costs, strict=True):
            line = f"rung {rung.number + 1}: {_size(rung, rung.trials)}, about {duration(cost.seconds)}"
            stdout().print(line, highlight=False)
        stdout().print(f"\nrung {current + 1}:", highlight=False)
        costs[current].show()
    return ExitCode.SUPPORTED


def _train(runs: Sequence[ResolvedRun], stop: StopRequest, **options: Any) -> bool:
    """Train the runs of a rung until no process trains any; True if a signal stopped it."""
    while not train_missing(runs, stop, **options):
        # what failed here may be tried again by another process that shares the search
        if not any(_is_being_trained(run) for run in runs if not run.has_ended()):
            return False
    return True


def _is_being_trained(run: ResolvedRun) -> bool:
    """Whether another process holds the lock of a run."""
    from filelock import Timeout

    from bitnetctl.locks import Lock

    lock = Lock(run.paths.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def _size(rung: Rung, trials: int) -> str:
    return f"{plural(trials, 'trial')} of {rung.tokens:,} tokens"


def _runs(search: Search, trials: Sequence[Trial], rung: Rung, runs_dir: Path) -> dict[Trial, list[ResolvedRun]]:
    """Return the runs of each trial in a rung."""
    configs = [config for trial in trials for config in search.configs(trial, rung.tokens)]
    runs = iter(resolve_all(configs, runs_dir))
    return {trial: list(itertools.islice(runs, len(search.seeds))) for trial in trials}


def _show(found: Found, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
    else:
        from bitnetctl.report import search_table

        stdout().print(search_table(found.to_json()))


def refuse_options(**given: object) -> None:
    """Raise ConfigError for options that a search has fields for; `given` are those that are set, by their names."""
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if named:
        raise ConfigError(f"{named[0]} does not go with --search: the file says which runs are trained")
