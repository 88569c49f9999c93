"""Runs trained side by side in one pack, against the same runs one after the other.

    python -m benchmarks.pack [--sizes 1,3,9,16] [--rounds N] [--steps N] [--device cpu] [--quick] [--json FILE]

The time is that of one step of one run. The runs of a serial sweep take the time of the pack of one. The fraction of
peak is the floor of a whole pack (`benchmarks.floor`) over the time of its step. On a GPU the steps are captured, the
matmuls are bf16, and one more column compares with Adam's traffic alone, 28 bytes a parameter.
"""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import harness
from benchmarks.step import VOCABULARIES, floor_ms
from benchmarks.worker import Job


def main() -> int:
    """Measure and print; 1 if a contender broke."""
    parser = harness.argument_parser(__doc__)
    harness.add_device(parser)
    parser.add_argument("--recipe", choices=sorted(VOCABULARIES), help="unset: quick, and origin on a GPU")
    parser.add_argument("--sizes", default="1,3,9,16", metavar="LIST", help="runs of each pack; 1 is always measured")
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--steps", type=int, help="steps a turn")
    arguments = parser.parse_args()
    on_gpu = arguments.device.type == "cuda"
    recipe = arguments.recipe or ("origin" if on_gpu else "quick")
    rounds = arguments.rounds or (1 if arguments.quick else 9)
    steps = arguments.steps or (5 if arguments.quick else 100 if on_gpu else 30)
    sizes = sorted({1, *(int(size) for size in arguments.sizes.split(","))})

    jobs, floors = pack_jobs(recipe, sizes, arguments.device)
    with harness.contenders({**jobs, **floors}) as racing:
        harness.alternate(racing, rounds=rounds, steps=steps)
    by_name = {one.name: one for one in racing}
    reference, solo = by_name["reference, serial"].milliseconds(), by_name["pack of 1"].milliseconds()
    rows = []
    for name, job in jobs.items():
        step_ms = by_name[name].milliseconds()
        run_ms = None if step_ms is None else step_ms / job.runs
        floor = by_name[f"floor of {job.runs}"]
        rows.append(
            {
                "runs": name,
                "ms a step of one run": run_ms,
                "times the serial speed": harness.ratio(solo, run_ms) if job.kind == "ours" else None,
                "times the reference's speed": harness.ratio(reference, run_ms),
                "threads": by_name[name].threads(),
                "page faults a step": by_name[name].median("faults"),
                "fraction of peak": harness.ratio(floor_ms(floor, job.precision), step_ms),
                **(
                    {"fraction of Adam's traffic rate": harness.ratio(floor_ms(floor, "adam"), step_ms)}
                    if on_gpu
                    else {}
                ),
            }
        )
    metadata = {
        **harness.machine(arguments.device),
        "measured": f"median of {rounds} turns of {steps} steps, after one turn to warm up",
        **{
            f"floor of {size}, ms a step": floor_ms(by_name[f"floor of {size}"], jobs[f"pack of {size}"].precision)
            for size in sizes
        },
        **harness.notes(racing),
    }
    harness.report(f"pack: recipe {recipe}", rows, metadata, arguments.json)
    return int(any(one.failed for one in racing))


def pack_jobs(recipe: str, sizes: Sequence[int], device: torch.device) -> tuple[dict[str, Job], dict[str, Job]]:
    """Return the reference and a pack of each size, and the floor of each."""
    common: dict[str, Any] = {"recipe": recipe, "vocab_size": VOCABULARIES[recipe], "device": str(device)}
    engine, precision = ("auto", "bf16") if device.type == "cuda" else ("eager", "fp32")
    ours = {"kind": "ours", "engine": engine, "precision": precision, **common}
    packs = {f"pack of {size}": Job(runs=size, **ours) for size in sizes}
    floors = {f"floor of {size}": Job(kind="floor", runs=size, **common) for size in sizes}
    return {"reference, serial": Job(kind="reference", **common), **packs}, floors


if __name__ == "__main__":
    raise SystemExit(main())
