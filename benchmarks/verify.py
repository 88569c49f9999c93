"""The whole command `bitnetctl verify`: from nothing, again, and on CSVs alone.

    python -m benchmarks.verify [--rounds N] [--steps N] [--quick] [--json FILE]

Six runs of the quick recipe are trained and judged. The same with `--pack 1` trains them one after the other; the plain
loop is six times the steps at the median time of the stock reference, which evaluates and writes nothing; the floor is
that of a pack of six. Commands are timed from start to end, in turns.
"""

import itertools
import tempfile
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.step import VOCABULARIES, floor_ms
from benchmarks.worker import Job

_RUNS = 6
_FEW_STEPS = 200
_LIMIT_SECONDS = 1.5


def main() -> int:
    """Measure and print; 1 if a command broke."""
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, help="turns of what trains")
    parser.add_argument("--steps", type=int, help="training steps of a run; unset: the recipe's 2000")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    steps = arguments.steps or (40 if arguments.quick else 2000)
    jobs = {
        "reference": Job(kind="reference", vocab_size=VOCABULARIES["quick"]),
        "floor": Job(kind="floor", runs=_RUNS, vocab_size=VOCABULARIES["quick"]),
    }
    with tempfile.TemporaryDirectory() as folder, harness.contenders(jobs) as (reference, floor):
        training, judging = _commands(Path(folder), steps)
        for _ in range(rounds):
            harness.alternate(training, rounds=1, warm_up=0)
            harness.alternate([reference, floor], rounds=1, steps=10 if arguments.quick else 100)
        harness.alternate(judging, rounds=2 if arguments.quick else 7)

    step_ms, possible_ms = reference.milliseconds(), floor_ms(floor, "fp32")
    plain = None if step_ms is None else _RUNS * steps * step_ms / 1000
    possible = None if possible_ms is None else steps * possible_ms / 1000
    rows = [
        _row("six plain loops, one after the other", plain, plain, None),
        *(_row(one.name, one.median("seconds", skip=0), plain, None) for one in training),
        _row("floor of six runs in a pack", possible, plain, None),
        *(_row(one.name, one.median("seconds"), None, _LIMIT_SECONDS) for one in judging),
    ]
    facts = {
        **harness.machine(torch.device("cpu")),
        "measured": f"median of {rounds} trainings of {_RUNS} runs of {steps} steps",
        **harness.notes([*training, *judging, reference, floor]),
    }
    harness.report("verify: the whole command", rows, facts, arguments.json)
    return int(any(one.failed for one in (*training, *judging, reference, floor)))


def _commands(folder: Path, steps: int) -> tuple[list[harness.Contender], list[harness.Contender]]:
    """Return the commands that train, and those that find everything there."""
    warm, count = folder / "cache", itertools.count()
    asked = ["verify", "--recipe", "quick", "--seeds", "3", "--steps", str(steps), "-i", "decoupled-decay"]
    asked += ["--device", "cpu"]
    if steps < _FEW_STEPS:
        # else a twentieth of so few steps would be nothing but evaluations
        asked += ["--set", f"probe.eval_every_steps={steps}"]

    def new() -> Path:
        return folder / f"new-{next(count)}"

    def train(name: str, *options: str, cold: bool = False) -> harness.Contender:
        def make() -> list[str | Path]:
            return [harness.tool(), *asked, "--runs-dir", new(), *options]

        return harness.command(name, make, cache=new if cold else lambda: warm)

    runs = folder / "runs"
    fill = harness.command("fill", lambda: [harness.tool(), *asked, "--runs-dir", runs], cache=lambda: warm)
    fill.take_turn(1)
    if fill.note:
        raise SystemExit(f"verify {fill.note}")
    again = harness.command(
        "again, nothing to train", lambda: [harness.tool(), *asked, "--runs-dir", runs], cache=lambda: warm
    )
    csvs = sorted(runs.glob("*.csv"))
    alone = harness.command("the CSVs alone", lambda: [harness.tool(), "verify", *csvs], cache=lambda: warm)
    training = [
        train("verify, from nothing"),
        train("verify, from nothing, --pack 1", "--pack", "1"),
        train("verify, from nothing, text not tokenized yet", cold=True),
    ]
    return training, [again, alone]


def _row(name: str, seconds: float | None, plain: float | None, limit: float | None) -> dict[str, str | float | None]:
    return {
        "verify": name,
        "seconds": seconds,
        "times the plain loops' speed": harness.ratio(plain, seconds),
        "limit, seconds": limit,
        "share of the limit": harness.ratio(seconds, limit),
    }


if __name__ == "__main__":
    raise SystemExit(main())
