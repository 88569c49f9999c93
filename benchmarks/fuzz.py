"""Damaged CSVs against the reader and both built-in criteria: no traceback, no `supported` from damaged data.

    python -m benchmarks.fuzz [--cases 20000] [--seed 0]

Five sound seeds, the fewest that can be supported, are written, one of them is damaged, and all are judged. Damage of a
known kind (rows cut, repeated or swapped, judged cells emptied, made NaN or text, columns dropped or doubled, a file
cut anywhere) must never end in `supported`; noise in single bytes may leave the judged values intact: there only the
reader's own errors may be raised.
"""

import argparse
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bitnetctl.api import load_runs
from bitnetctl.errors import BitnetctlError
from bitnetctl.records import NAMES
from bitnetctl.verdict import JudgeOptions, Outcome, combine, judge, load_criteria

Table = list[list[str]]
_STEPS, _EVERY = 20_000, 1_000
_JUDGED = ("Loss", "UniquePredictions", "HeldOutLoss", "TopShare", "ContextInformation", "UnigramLoss", "BigramLoss")


def sound_table(seed: int) -> Table:
    """Return header and rows of a run that both criteria support."""
    rng = random.Random(seed)
    rows = []
    for step in (1, *range(_EVERY, _STEPS + 1, _EVERY)):
        done = step / _STEPS
        row = {
            "Step": str(step),
            "Loss": repr(7.6 - 3.2 * math.sqrt(done) + rng.gauss(0, 0.05)),
            "UniquePredictions": str(int(60 + 150 * done + rng.randrange(10))),
            "LR": repr(1.5e-3 * (1 - done)),
            "WD": "0.1" if done <= 0.5 else "0.0",
            "HeldOutLoss": repr(7.6 - 3.1 * math.sqrt(done) + rng.gauss(0, 0.02)),
            "UniqueTargets": "1298",
            "ProbePositions": "8192",
            "TopShare": repr(0.1 + 0.02 * rng.random()),
            "EffectiveVocab": repr(50 + rng.random()),
            "ContextInformation": repr(0.8 + 0.5 * done),
            "UnigramLoss": "6.36",
            "BigramLoss": "4.03",
            "BigramUnique": "394",
            "RandomPromptUnique": str(rng.randrange(3, 10)),
            "Objective": "5.0",
            "GradNorm": "0.7",
            "ZeroFraction": "0.31",
            "FlipRate": "0.01" if step > 1 else "",
            "TokensPerSecond": "15000.0",
        }
        rows.append([row[name] for name in NAMES])
    return [list(NAMES), *rows]


def _text(table: Table) -> bytes:
    return "".join(",".join(row) + "\n" for row in table).encode()


def _cut_rows(table: Table, rng: random.Random) -> bytes:
    return _text(table[: rng.randrange(0, len(table) - 1)])


def _cut_anywhere(table: Table, rng: random.Random) -> bytes:
    whole = _text(table)
    return whole[: rng.randrange(len(whole) - 1)]


def _repeat_row(table: Table, rng: random.Random) -> bytes:
    index = rng.randrange(1, len(table))
    return _text([*table[: index + 1], *table[index:]])


def _swap_rows(table: Table, rng: random.Random) -> bytes:
    first, second = rng.sample(range(1, len(table)), 2)
    table[first], table[second] = table[second], table[first]
    return _text(table)


def _spoil_judged(table: Table, rng: random.Random, value: str) -> bytes:
    table[-rng.randrange(1, 4)][NAMES.index(rng.choice(_JUDGED))] = value
    return _text(table)


def _drop_column(table: Table, rng: random.Random) -> bytes:
    column = NAMES.index(rng.choice(("Step", *_JUDGED)))
    return _text([row[:column] + row[column + 1 :] for row in table])


def _double_column(table: Table, rng: random.Random) -> bytes:
    column = rng.randrange(len(NAMES))
    return _text([[*row, row[column]] for row in table])


def _noise(table: Table, rng: random.Random) -> bytes:
    content = bytearray(_text(table))
    for _ in range(rng.randrange(1, 6)):
        match rng.randrange(3):
            case 0:
                content[rng.randrange(len(content))] = rng.randrange(256)
            case 1:
                del content[rng.randrange(len(content))]
            case 2:
                content.insert(rng.randrange(len(content)), rng.randrange(256))
    return bytes(content)


DAMAGES: dict[str, tuple[Callable[[Table, random.Random], bytes], bool]] = {
    "rows cut": (_cut_rows, True),
    "cut anywhere": (_cut_anywhere, True),
    "row repeated": (_repeat_row, True),
    "rows swapped": (_swap_rows, True),
    "judged cell emptied": (lambda table, rng: _spoil_judged(table, rng, ""), True),
    "judged cell NaN": (lambda table, rng: _spoil_judged(table, rng, rng.choice(["nan", "inf", "-inf"])), True),
    "judged cell text": (lambda table, rng: _spoil_judged(table, rng, rng.choice(["1_0", "0x1f", "1,5", "?"])), True),
    "column dropped": (_drop_column, True),
    "column doubled": (_double_column, True),
    "byte noise": (_noise, False),
}


def main() -> None:
    """Damage, judge, count; exit 1 if anything slipped through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    criteria = [load_criteria("origin"), load_criteria("sound")]
    counts: dict[str, Counter[str]] = {name: Counter() for name in DAMAGES}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"h256-{_STEPS}-baseline-s{seed}-00000{seed}.csv" for seed in range(5)]
        for seed, path in enumerate(paths):
            path.write_bytes(_text(sound_table(seed)))
        others = load_runs(paths[1:])

        def judged() -> Outcome:
            runs = [*load_runs(paths[:1]), *others]
            return combine([judge(runs, one, JudgeOptions(sizes=[256])) for one in criteria]).outcome

        assert judged() is Outcome.SUPPORTED, "the undamaged runs are not supported"
        for case in range(arguments.cases):
            name = list(DAMAGES)[case % len(DAMAGES)]
            paths[0].write_bytes(DAMAGES[name][0](sound_table(0), rng))
            try:
                counts[name][judged().value] += 1
            except BitnetctlError:
                counts[name]["refused"] += 1
            except Exception as error:
                counts[name]["traceback"] += 1
                print(f"traceback: {name}, case {case}: {type(error).__name__}: {error}")
    columns = ("refused", "refuted", "invalid", "inconclusive", "supported", "traceback")
    print(f"{'damage':<22}" + "".join(f"{column:>14}" for column in columns))
    for name, counted in counts.items():
        print(f"{name:<22}" + "".join(f"{counted[column]:>14,}" for column in columns))
    slipped = sum(counted["supported"] for name, counted in counts.items() if DAMAGES[name][1])
    tracebacks = sum(counted["traceback"] for counted in counts.values())
    print(f"{arguments.cases:,} cases: {tracebacks} tracebacks, {slipped} supported from damaged data")
    raise SystemExit(bool(slipped or tracebacks))


if __name__ == "__main__":
    main()
