"""The time of a plan of many runs on this device, from a measured pack of each size, against that of Adam's traffic.

    python -m benchmarks.plan [--sizes 256,512,768,1024] [--runs N] [--rounds N] [--steps N] [--device auto]
    python -m benchmarks.plan --device cpu --sizes 256 --quick

The plan trains 8 arms with 6 seeds at every size for 20,000 steps, in packs of `--runs`; its time is that of all
these steps at the speed of the measured pack. The floor is Adam's traffic, 28 bytes a parameter and step, at the
bandwidth measured on arrays of that size. Left out is the overhead of a run, which `benchmarks.overhead` measures.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks import harness
from benchmarks.step import VOCABULARIES, floor_ms
from benchmarks.worker import Job
from bitnetctl.engine.select import choose
from bitnetctl.model.parameters import num_parameters

_ARMS, _SEEDS, _STEPS = 8, 6, 20_000
_LIMIT = 2.0


def main() -> int:
    """Measure and print; 1 if a contender broke."""
    parser = harness.argument_parser(__doc__)
    harness.add_device(parser, default="auto")
    parser.add_argument("--recipe", choices=sorted(VOCABULARIES), default="origin")
    parser.add_argument("--sizes", default="256,512,768,1024", metavar="LIST", help="hidden sizes")
    parser.add_argument("--runs", type=int, help="runs of a pack; unset: 4, and 16 on a GPU")
    parser.add_argument("--rounds", type=int, help="turns of every pack")
    parser.add_argument("--steps", type=int, help="steps a turn")
    arguments = parser.parse_args()
    on_gpu = arguments.device.type == "cuda"
    runs = arguments.runs or (16 if on_gpu else 4)
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    steps = arguments.steps or (5 if arguments.quick else 100 if on_gpu else 5)

    jobs = plan_jobs(arguments.recipe, [int(size) for size in arguments.sizes.split(",")], runs, arguments.device)
    # a large pack fills the memory of a GPU, so they cannot take turns
    trained = harness.one_by_one(jobs, rounds=rounds, steps=steps)
    floor_jobs = {f"floor of {name}": replace(job, kind="floor", precision="bf16") for name, job in jobs.items()}
    floors = harness.one_by_one(floor_jobs, rounds=1, steps=1)
    rows = [_row(*each, arguments.device) for each in zip(trained, floors, jobs.values(), strict=True)]
    metadata = {
        **harness.machine(arguments.device),
        "plan": f"{len(jobs)} sizes x {_ARMS} arms x {_SEEDS} seeds x {_STEPS:,} steps, in packs of {runs}",
        "measured": f"median of {rounds} turns of {steps} steps, after one turn to warm up",
        "limit, times the floor": _LIMIT,
        **harness.notes([*trained, *floors]),
    }
    harness.report(f"plan: recipe {arguments.recipe}", [*rows, _total(rows)], metadata, arguments.json)
    return int(any(one.failed for one in (*trained, *floors)))


def plan_jobs(recipe: str, sizes: Sequence[int], runs: int, device: torch.device) -> dict[str, Job]:
    """Return a pack of each size, with the engine and precision that the command line would choose."""
    common: dict[str, Any] = {"recipe": recipe, "vocab_size": VOCABULARIES[recipe], "device": str(device), "runs": runs}
    common |= {"kind": "ours", "engine": "auto", "precision": "auto"}
    return {f"hidden {size}": Job(overrides=(f"model.hidden_size={size}",), **common) for size in sizes}


def _row(pack: harness.Contender, floor: harness.Contender, job: Job, device: torch.device) -> dict[str, Any]:
    chosen = choose(job.config, job.vocab_size, device)
    step_ms, least_ms = pack.milliseconds(), floor_ms(floor, "adam")
    return {
        "plan": pack.name,
        "parameters": f"{num_parameters(job.config.model, job.vocab_size):,}",
        "engine, precision": f"{chosen.engine}, {chosen.precision}",
        "ms a step of a pack": step_ms,
        "Adam's traffic, ms": least_ms,
        "hours": _hours(step_ms, job.runs),
        "hours at the floor": _hours(least_ms, job.runs),
        "times the floor": harness.ratio(step_ms, least_ms),
    }


def _hours(pack_ms: float | None, runs: int) -> float | None:
    """Return the hours of all runs of one size, from the time of a step of a pack of `runs`."""
    return None if pack_ms is None else _ARMS * _SEEDS / runs * _STEPS * pack_ms / 3_600_000


def _total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    hours, least = (
        None if any(row[column] is None for row in rows) else sum(row[column] for row in rows)
        for column in ("hours", "hours at the floor")
    )
    total = {"plan": "all", "hours": hours, "hours at the floor": least, "times the floor": harness.ratio(hours, least)}
    return {column: total.get(column) for column in rows[0]}


if __name__ == "__main__":
    raise SystemExit(main())
