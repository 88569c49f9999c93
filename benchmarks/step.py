"""One run of the trainer against the same mathematics in stock modules, and against `transformers`' BitNet model.

    python -m benchmarks.step [--recipe origin|quick] [--rounds N] [--steps N] [--device cpu] [--without NAME]
        [--quick] [--json FILE]

Every contender trains in a process of its own and they take turns; a step's time is the median over the turns. The
loss difference is the largest over the first ten steps against the reference, which has the same initial weights and
batches; the model of `transformers` has other norms and scales, so its losses are not compared. Compilation and
capture happen in the first turn, which is not counted. `--without transformers` saves the compilation of that model on
a GPU. The fraction of peak is the floor (`benchmarks.floor`) over the time of a step.
"""

from typing import Any

import torch

from benchmarks import harness
from benchmarks.floor import median_rates
from benchmarks.worker import Job, tokens_of
from bitnetctl.model.parameters import num_parameters

VOCABULARIES = {"origin": 50257, "quick": 2048}
_COMPARED = 10


def main() -> int:
    """Measure and print; 1 if a contender broke."""
    parser = harness.argument_parser(__doc__)
    harness.add_device(parser)
    parser.add_argument("--recipe", choices=sorted(VOCABULARIES), default="origin")
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--steps", type=int, help="steps a turn")
    parser.add_argument("--without", metavar="NAME", help="leave this contender out, such as transformers")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 9)
    is_slow = arguments.recipe == "origin" and arguments.device.type == "cpu"
    steps = arguments.steps or (5 if arguments.quick else 20 if is_slow else 100)

    jobs = step_jobs(arguments.recipe, arguments.device)
    if arguments.without is not None:
        if arguments.without not in jobs or arguments.without in ("reference", "floor"):
            parser.error(f"--without {arguments.without}: no contender, or the others are measured against it")
        del jobs[arguments.without]
    with harness.contenders(jobs) as racing:
        harness.alternate(racing, rounds=rounds, steps=steps)
    *trained, floor = racing
    reference = trained[0]
    rows = [
        {
            "one run": one.name,
            "ms a step": one.milliseconds(),
            "times the reference's speed": harness.ratio(reference.milliseconds(), one.milliseconds()),
            "threads": one.threads(),
            "page faults a step": one.median("faults"),
            "loss difference": _difference(one, reference) if jobs[one.name].kind == "ours" else None,
            "fraction of peak": harness.ratio(floor_ms(floor, job.precision), one.milliseconds()),
        }
        for one, job in zip(trained, jobs.values(), strict=False)
    ]
    config = jobs["reference"].config
    parameters = num_parameters(config.model, VOCABULARIES[arguments.recipe])
    metadata = {
        **harness.machine(arguments.device),
        "model": f"{parameters:,} parameters, {tokens_of(config)} tokens a step",
        "measured": f"median of {rounds} turns of {steps} steps, after one turn to warm up",
        "floor fp32, ms": floor_ms(floor, "fp32"),
        "floor bf16, ms": floor_ms(floor, "bf16"),
        **(median_rates(floor.turns) if floor.turns else {}),
        **harness.notes(racing),
    }
    harness.report(f"step: recipe {arguments.recipe}", rows, metadata, arguments.json)
    return int(any(one.failed for one in racing))


def step_jobs(recipe: str, device: torch.device) -> dict[str, Job]:
    """Return the contenders on a device, the reference first and the floor last; ours in each engine and precision."""
    common: dict[str, Any] = {"recipe": recipe, "vocab_size": VOCABULARIES[recipe], "device": str(device)}
    jobs = {
        "reference": Job(kind="reference", **common),
        "transformers": Job(kind="transformers", **common),
        "ours, fp32": Job(kind="ours", **common),
        "ours, bf16": Job(kind="ours", precision="bf16", **common),
    }
    if device.type == "cuda":
        jobs["ours, fp32, graph"] = Job(kind="ours", engine="graph", **common)
        jobs["ours, bf16, graph"] = Job(kind="ours", engine="graph", precision="bf16", **common)
        jobs["ours, bf16, compiled"] = Job(kind="ours", engine="compile", precision="bf16", **common)
        jobs["ours, bf16, fused"] = Job(kind="ours", engine="fused", precision="bf16", **common)
    elif recipe == "quick":
        jobs["ours, fp32, compiled"] = Job(kind="ours", engine="compile", **common)
    return {**jobs, "floor": Job(kind="floor", **common)}


def floor_ms(floor: harness.Contender, precision: str) -> float | None:
    """Return the floor of a step in this precision in milliseconds; None where it was not measured."""
    if not floor.turns or precision not in floor.turns[0]:
        return None
    seconds = floor.median(precision, skip=0)
    return None if seconds is None else 1000 * seconds


def _difference(one: harness.Contender, reference: harness.Contender) -> float | None:
    pairs = list(zip(one.losses(), reference.losses(), strict=False))[:_COMPARED]
    return max((abs(mine - its) for mine, its in pairs), default=None)


if __name__ == "__main__":
    raise SystemExit(main())
