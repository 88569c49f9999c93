"""The whole command `bitnetctl verify`: from nothing, again, and on CSVs alone.

    python -m benchmarks.verify [--rounds N] [--steps N] [--quick] [--json FILE]
    python -m benchmarks.verify --device cuda --recipe origin --sizes 256,512 --steps 20000 --seeds 1

Runs of the quick recipe, two arms with three seeds, are trained and judged; of another recipe the baseline alone. With
`--pack 1` they are trained one after the other; the time of the plain loops is that of all their steps at the median
of the stock reference, which evaluates and writes nothing; the floor is that of a pack of each size. Commands are
timed from start to end, in turns.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.step import VOCABULARIES, floor_ms
from benchmarks.worker import Job
from bitnetctl.config import build_config

_FEW_STEPS = 200
_LIMIT_SECONDS = 1.5
# the limit applies to these arguments on a GPU alone
_TRAINING_LIMIT_SECONDS, _LIMITED = 60.0, ("cuda", "origin", "256,512", 20_000, 1)


def main() -> int:
    """Measure and print; 1 if a command broke."""
    parser = harness.argument_parser(__doc__)
    harness.add_device(parser)
    parser.add_argument("--recipe", choices=sorted(VOCABULARIES), default="quick")
    parser.add_argument("--sizes", metavar="LIST", help="hidden sizes; unset: the recipe's")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every arm and size")
    parser.add_argument("--rounds", type=int, help="turns of the commands that train")
    parser.add_argument("--steps", type=int, help="training steps of a run; unset: the recipe's")
    arguments = parser.parse_args()
    recipe = build_config(arguments.recipe)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.steps = arguments.steps or (40 if arguments.quick else recipe.steps)
    sizes = [int(size) for size in (arguments.sizes or str(recipe.model.hidden_size)).split(",")]
    runs = arguments.seeds * len(_arms(arguments.recipe))
    jobs = _jobs(arguments.recipe, sizes, runs, str(arguments.device))
    with tempfile.TemporaryDirectory() as folder, harness.contenders(jobs) as models:
        training, judging = _commands(Path(folder), command_line(arguments), runs)
        for _ in range(rounds):
            harness.alternate(training, rounds=1, warm_up=0)
            harness.alternate(models, rounds=1, steps=10 if arguments.quick else 100)
        harness.alternate(judging, rounds=2 if arguments.quick else 7)

    loops, floors = models[: len(sizes)], models[len(sizes) :]
    precision = "bf16" if arguments.device.type == "cuda" else "fp32"
    plain = _seconds([one.milliseconds() for one in loops], runs * arguments.steps)
    floor = _seconds([floor_ms(one, precision) for one in floors], arguments.steps)
    total, limit = len(sizes) * runs, training_limit(arguments)
    rows = [
        _row(f"{total} plain loops, one after the other", plain, plain, None),
        *(_row(one.name, one.median("seconds", skip=0), plain, limit) for one in training),
        _row(f"floor of {total} runs in packs", floor, plain, None),
        *(_row(one.name, one.median("seconds"), None, _LIMIT_SECONDS) for one in judging),
    ]
    racing = [*training, *judging, *models]
    metadata = {
        **harness.machine(arguments.device),
        "measured": f"median of {rounds} trainings of {total} runs of {arguments.steps} steps",
        **harness.notes(racing),
    }
    harness.report("verify: the whole command", rows, metadata, arguments.json)
    return int(any(one.failed for one in racing))


def command_line(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments of `bitnetctl` without the folder of the runs."""
    command = ["verify", "--recipe", arguments.recipe, "--seeds", str(arguments.seeds)]
    command += ["--steps", str(arguments.steps), "--device", str(arguments.device)]
    command += [] if arguments.sizes is None else ["--sizes", arguments.sizes]
    for arm in _arms(arguments.recipe)[1:]:
        command += ["-i", arm]
    if arguments.steps < _FEW_STEPS:
        # else every twentieth of so few steps is evaluated, which would take most of the time
        command += ["--set", f"probe.eval_every_steps={arguments.steps}"]
    return command


def training_limit(arguments: argparse.Namespace) -> float | None:
    """Return the target in seconds for these arguments; None where there is none."""
    measured = (arguments.device.type, arguments.recipe, arguments.sizes, arguments.steps, arguments.seeds)
    return _TRAINING_LIMIT_SECONDS if measured == _LIMITED else None


def _jobs(recipe: str, sizes: Sequence[int], runs: int, device: str) -> dict[str, Job]:
    """Return a plain loop of each size, then the floor of a pack of each."""
    common: dict[str, Any] = {"recipe": recipe, "vocab_size": VOCABULARIES[recipe], "device": device}
    loops = {size: Job(kind="reference", overrides=(f"model.hidden_size={size}",), **common) for size in sizes}
    return {
        **{f"plain loop, hidden {size}": job for size, job in loops.items()},
        **{f"floor, hidden {size}": replace(job, kind="floor", runs=runs) for size, job in loops.items()},
    }


def _arms(recipe: str) -> list[str]:
    return ["baseline", "decoupled-decay"] if recipe == "quick" else ["baseline"]


def _commands(
    folder: Path, requested: Sequence[str], runs: int
) -> tuple[list[harness.Contender], list[harness.Contender]]:
    """Return the commands that train, and those that find every run finished."""
    warm, count = folder / "cache", itertools.count()

    def new() -> Path:
        return folder / f"new-{next(count)}"

    def train(name: str, *options: str, cold: bool = False) -> harness.Contender:
        def make() -> list[str | Path]:
            return [harness.cli_path(), *requested, "--runs-dir", new(), *options]

        return harness.command(name, make, cache=new if cold else lambda: warm)

    kept = folder / "runs"
    fill = harness.command("fill", lambda: [harness.cli_path(), *requested, "--runs-dir", kept], cache=lambda: warm)
    fill.take_turn(1)
    if fill.note:
        raise SystemExit(f"verify {fill.note}")
    again = harness.command(
        "again, nothing to train", lambda: [harness.cli_path(), *requested, "--runs-dir", kept], cache=lambda: warm
    )
    csvs = sorted(kept.glob("*.csv"))
    alone = harness.command("the CSVs alone", lambda: [harness.cli_path(), "verify", *csvs], cache=lambda: warm)
    training = [
        train("verify, from nothing"),
        *([train("verify, from nothing, --pack 1", "--pack", "1")] if runs > 1 else []),
        train("verify, from nothing, text not tokenized yet", cold=True),
    ]
    return training, [again, alone]


def _seconds(milliseconds: Sequence[float | None], times: int) -> float | None:
    """Return the sum in seconds, times `times`; None where one is unknown."""
    known = [one for one in milliseconds if one is not None]
    return times * sum(known) / 1000 if len(known) == len(milliseconds) else None


def _row(name: str, seconds: float | None, plain: float | None, limit: float | None) -> dict[str, str | float | None]:
    return {
        "verify": name,
        "seconds": seconds,
        "times the plain loops' speed": harness.ratio(plain, seconds),
        "limit, seconds": limit,
        "fraction of the limit": harness.ratio(seconds, limit),
    }


if __name__ == "__main__":
    raise SystemExit(main())
