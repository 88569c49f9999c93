"""Damaged and re-saved CSVs against the reader and both built-in criteria: no traceback, no verdict from misread data.

    python -m benchmarks.fuzz [--cases 24000] [--seed 0]

Five seeds, the fewest that can be supported, are written, one of them is changed, and all are judged. Damage of a known
kind (rows cut, repeated or swapped, judged cells emptied, made NaN or text, columns dropped or doubled, a file cut
anywhere, another seed's rows under this name) must never end in `supported`; noise in single bytes may leave the judged
values intact: there only the reader's own errors may be raised. A file as a spreadsheet or a log tool saves it
(`benchmarks.resaved`) holds the same rows and gives the same verdict, supported or refuted, or it is refused. Where a
file is refused, the verdict on the others is never `supported`.
"""

import argparse
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.resaved import RESAVED, SAVED, SPOILED, Sheet, Table, resaved
from bitnetctl.errors import BitnetctlError
from bitnetctl.records import NAMES, Run, load_files
from bitnetctl.records.inventory import Inventory, take_inventory
from bitnetctl.verdict import JudgeOptions, Outcome, combine, judge, load_criteria

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
            "HeldOutBitsPerByte": repr(3.1 - 1.3 * math.sqrt(done) + rng.gauss(0, 0.01)),
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
    # no check uses the last cell, a speed
    return whole[: rng.randrange(whole.rindex(b","))]


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


def _spoil_unit(table: Table, rng: random.Random) -> bytes:
    """Return losses whose point was taken for one between thousands, negative ones, or shares in percent."""
    change: Callable[[str], str]
    name, change = rng.choice(
        (
            ("Loss", lambda cell: f"{float(cell):.3f}".replace(".", "")),
            ("HeldOutLoss", lambda cell: f"-{cell}"),
            ("UniquePredictions", lambda cell: f"{cell}.5"),
        )
    )
    column = NAMES.index(name)
    for row in table[1:]:
        row[column] = change(row[column])
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


def _other_seeds_rows(table: Table, rng: random.Random) -> bytes:
    """Return the rows of a given seed, as they are or as a spreadsheet saves them."""
    other = sound_table(rng.randrange(1, 5))
    if rng.random() < 0.5:
        return _text(other)
    sheet = resaved(other, "a spreadsheet's", rng)
    return sheet.content()


def _spoiled(table: Table, rng: random.Random) -> bytes:
    sheet = Sheet.of(table)
    SPOILED[rng.choice(list(SPOILED))](sheet, rng)
    for change in rng.sample(SAVED, rng.randrange(2)):
        change(sheet, rng)
    return sheet.content()


DAMAGES: dict[str, tuple[Callable[[Table, random.Random], bytes], bool]] = {
    "rows cut": (_cut_rows, True),
    "cut anywhere": (_cut_anywhere, True),
    "row repeated": (_repeat_row, True),
    "rows swapped": (_swap_rows, True),
    "judged cell emptied": (lambda table, rng: _spoil_judged(table, rng, ""), True),
    "judged cell NaN": (lambda table, rng: _spoil_judged(table, rng, rng.choice(["nan", "inf", "-inf"])), True),
    "judged cell text": (lambda table, rng: _spoil_judged(table, rng, rng.choice(["1_0", "0x1f", "1,5", "?"])), True),
    "judged column in another unit": (_spoil_unit, True),
    "column dropped": (_drop_column, True),
    "column doubled": (_double_column, True),
    "another seed's rows": (_other_seeds_rows, True),
    "saved ambiguously": (_spoiled, True),
    "byte noise": (_noise, False),
}


def collapsed_table(seed: int) -> Table:
    """Return header and rows of a run that both criteria refute."""
    header, *rows = sound_table(seed)
    for row in rows:
        row[NAMES.index("UniquePredictions")], row[NAMES.index("TopShare")] = "1", "1.0"
    return [header, *rows]


class Bench:
    """Five seeds in a folder; the first file is the one that is changed."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / f"h256-{_STEPS}-baseline-s{seed}-00000{seed}.csv" for seed in range(5)]
        self.criteria = [load_criteria("origin"), load_criteria("sound")]
        self.others: list[Run] = []

    def write(self, tables: Sequence[Table]) -> None:
        """Write the files and read those that stay."""
        for path, table in zip(self.paths, tables, strict=True):
            path.write_bytes(_text(table))
        self.others = load_files(self.paths[1:]).runs

    def judged(self, runs: Sequence[Run], inventory: Inventory | None = None) -> Outcome:
        """Return the verdict of both criteria."""
        options = JudgeOptions(sizes=[256])
        verdicts = [judge(runs, one, options, arm="baseline", inventory=inventory) for one in self.criteria]
        return combine(verdicts).outcome

    def changed(self, content: bytes, decimal: str = ".", *, look_beside: bool = False) -> tuple[str, Run | None]:
        """Return the verdict with this content of the first file, or that it is refused, and the run read of it."""
        self.paths[0].write_bytes(content)
        try:
            (run,) = load_files(self.paths[:1], decimal=decimal).runs
        except BitnetctlError:
            if look_beside:
                loaded = load_files(self.paths, decimal=decimal)
                inventory = take_inventory(loaded.runs, loaded.empty, loaded.unread)
                if self.judged(loaded.runs, inventory) is Outcome.SUPPORTED:
                    return Outcome.SUPPORTED.value, None
            return "refused", None
        return self.judged([run, *self.others]).value, run


def same_rows(run: Run, original: Run) -> bool:
    """Whether two runs have the same values, up to the 15 digits of a spreadsheet, and know the same of them."""
    return run.steps.tolist() == original.steps.tolist() and all(
        (run.records.unknown[name] == original.records.unknown[name]).all()
        and np.allclose(run.values(name), original.values(name), rtol=1e-14, atol=0, equal_nan=True)
        for name in NAMES
    )


def check_damage(bench: Bench, cases: int, rng: random.Random) -> tuple[dict[str, Counter[str]], list[str]]:
    """Damage, judge, and return the counted outcomes and what went wrong."""
    bench.write([sound_table(seed) for seed in range(5)])
    counts: dict[str, Counter[str]] = {name: Counter() for name in DAMAGES}
    wrong = []
    for case in range(cases):
        name = list(DAMAGES)[case % len(DAMAGES)]
        damage, is_fatal = DAMAGES[name]
        try:
            outcome, _ = bench.changed(damage(sound_table(0), rng), look_beside=case % 50 < len(DAMAGES))
        except Exception as error:
            outcome = "traceback"
            wrong.append(f"traceback: {name}, case {case}: {type(error).__name__}: {error}")
        counts[name][outcome] += 1
        if is_fatal and outcome == "supported":
            wrong.append(f"supported: {name}, case {case}")
    return counts, wrong


def check_resaved(bench: Bench, cases: int, rng: random.Random) -> tuple[dict[str, Counter[str]], list[str]]:
    """Save anew, judge, and return the counted outcomes and what went wrong."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in RESAVED}
    wrong = []
    tables = {Outcome.SUPPORTED.value: sound_table, Outcome.REFUTED.value: collapsed_table}
    for expected, table in tables.items():
        bench.write([table(seed) for seed in range(5)])
        outcome, original = bench.changed(_text(table(0)))
        if outcome != expected or original is None:
            wrong.append(f"the originals are {outcome}, not {expected}")
            continue
        for case in range(cases // len(tables)):
            kind = list(RESAVED)[case % len(RESAVED)]
            sheet = resaved(table(0), kind, rng)
            try:
                outcome, run = bench.changed(sheet.content(), sheet.decimal)
                if run is not None and not same_rows(run, original):
                    wrong.append(f"other rows: {kind}, {expected} {case}: {run.records.notes}")
            except Exception as error:
                outcome = "traceback"
                wrong.append(f"traceback: {kind}, {expected} {case}: {type(error).__name__}: {error}")
            counts[kind][outcome] += 1
            if outcome not in (expected, "refused", "traceback"):
                wrong.append(f"{outcome} instead of {expected}: {kind}, {case}")
    return counts, wrong


def main() -> None:
    """Damage or save anew, judge, count; exit 1 if anything slipped through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        counts, wrong = check_damage(bench, arguments.cases // 2, rng)
        of_resaved, wrong_of_resaved = check_resaved(bench, arguments.cases - arguments.cases // 2, rng)
    wrong += wrong_of_resaved
    columns = ("refused", "refuted", "invalid", "inconclusive", "supported", "traceback")
    print(f"{'damage':<22}" + "".join(f"{column:>14}" for column in columns))
    for name, counted in (counts | of_resaved).items():
        print(f"{name:<22}" + "".join(f"{counted[column]:>14,}" for column in columns))
    print(*wrong[:20], sep="\n", end="\n" if wrong else "")
    print(f"{arguments.cases:,} cases: {len(wrong)} went wrong (traceback, supported from damaged data, misread)")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
