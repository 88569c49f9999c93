"""The summary of sets of runs drawn at random: it never fails, agrees with the verdicts and fits its width."""

import random
from pathlib import Path
from typing import Any

import pytest
from summaries import summary_of
from synthetic import CURED, LEVELS, STAGE_1, bare_run, healthy_run, origin_run

from bitnetctl.records import Run
from bitnetctl.records.inventory import AbsentRun, Inventory
from bitnetctl.report import summary_lines
from bitnetctl.report.html.head import summary_section
from bitnetctl.verdict import Criteria, Outcome, Summary, load_criteria
from bitnetctl.verdict.criteria import parse_criteria
from bitnetctl.verdict.outcome import strictest

ARMS = ("baseline", "no-decay", "decoupled-decay", "reduced-lr:peak=0.0004", "no-decay+full-precision")
UNIQUE: tuple[list[Any], ...] = (
    CURED,
    [*STAGE_1, 10, 8, 7, 6, 6],
    [8000, *[200] * 10],
    [*STAGE_1, 100, 50, 12, 11, 11],
)
PAIRED = parse_criteria(
    {
        "seeds": {"rule": "rate"},
        "checks": [
            {"kind": "finite"},
            {"kind": "finished"},
            {
                "kind": "level",
                "measure": "UniquePredictions",
                "claim": "mean",
                "supported_above": 50,
                "refuted_below": 10,
            },
            {"kind": "paired", "measure": "HeldOutLoss", "better": "lower"},
        ],
    },
    name="paired",
)


def draw_run(folder: Path, index: int, rng: random.Random) -> Run:
    """Write one run: with or without a manifest, a name, some columns, an end."""
    unique = [value + rng.randrange(3) for value in (UNIQUE[2] if rng.random() < 0.6 else rng.choice(UNIQUE))]
    seed, arm, size = rng.randrange(6), rng.choice(ARMS[: rng.randrange(1, 4)]), rng.choice((256, 256, 512))
    columns: dict[str, Any] = {
        name: value for name, value in LEVELS.items() if name != "ProbePositions" and rng.random() < 0.97
    }
    columns["ProbePositions"] = rng.choice((8192, 8192, 8192, None)) if index else rng.choice((8192, 8192, 16))
    if "HeldOutLoss" in columns:
        columns["HeldOutLoss"] = rng.choice((4.7, 7.0, 1e200, "nan")) if rng.random() < 0.3 else 4.7 + rng.random()
    if rng.random() < 0.3:
        status = rng.choice(("finished", "failed", "stopped"))
        data = {"fingerprint": rng.choice("ab") * 64}
        name = f"run{index}"
        arm = "" if arm == "baseline" else arm
        known = {key: value for key, value in columns.items() if value is not None}
        return origin_run(folder, unique, status, seed=seed, arm=arm, columns=known, data=data, name=name)
    names = (None, f"log{index}.csv", f"hidden{size}-{index}x.csv", f"seed{seed}-{'abcdefghij'[index % 10]}.csv")
    return bare_run(folder, unique, size=size, arm=arm, seed=seed, name=rng.choice(names), **columns)


def draw(folder: Path, rng: random.Random) -> tuple[list[Run], dict[str, Any]]:
    """Return runs and how they are judged."""
    if rng.random() < 0.4:
        drawn = [
            healthy_run(folder, seed, arm=arm, size=size, HeldOutLoss=4.7 + rng.random() / 10)
            for arm in ARMS[: rng.randrange(1, 3)]
            for size in (256, 512)[: rng.randrange(1, 3)]
            for seed in range(rng.choice((3, 6, 8)))
        ]
    else:
        drawn = [draw_run(folder, index, rng) for index in range(rng.randrange(14))]
    runs = {run.path: run for run in drawn}
    states = ("failed", "missing", "unfinished", "left out")
    absent = tuple(
        AbsentRun(
            run=f"absent{index}",
            arm=rng.choice(ARMS),
            size=rng.choice((256, 512)),
            seed=10 + index,
            planned_steps=20_000,
            state=rng.choice(states),  # type: ignore[arg-type]
            reason="its reason",
        )
        for index in range(rng.randrange(3))
    )
    criteria: list[Criteria] = [load_criteria("origin"), load_criteria("sound"), PAIRED]
    rng.shuffle(criteria)
    return list(runs.values()), {
        "criteria": criteria[: rng.randrange(1, 4)],
        "steps": rng.choice((None, None, 20_000, 300)),
        "arm": rng.choice((None, None, ARMS[1], ARMS[2], "reduced-lr")),
        "inventory": Inventory(absent=absent) if rng.random() < 0.3 else None,
        "sizes": rng.choice((None, None, None, [256], [256, 1024])),
        "distinct_seeds": rng.random() < 0.3,
        "strict": rng.random() < 0.3,
    }


@pytest.mark.parametrize("seed", range(60))
def test_any_set_has_a_summary(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    runs, how = draw(tmp_path, rng)
    if how["arm"] is None and (not runs or how["criteria"] == [PAIRED]):
        # the baseline alone is only compared with
        how["arm"] = "no-decay"
    summary = summary_of(runs, **how)
    assert Summary.model_validate(summary.model_dump(mode="json")) == summary
    rows = [row for row in summary.rows if row.is_asked]
    assert rows
    assert strictest(row.verdict for row in rows) is summary.outcome
    assert all(0 <= row.seeds_ok <= row.seeds for row in summary.rows)
    if summary.outcome is Outcome.SUPPORTED:
        assert all(row.seeds_ok > 0 for row in rows)
    assert summary.claim
    assert summary.headline
    assert summary.next
    if how["arm"] is not None:
        assert f"-i {how['arm'].partition(':')[0]}" not in summary.next
    for width in (30, 40, 80, 200):
        lines = [line.plain for line in summary_lines(summary, width)]
        assert max(map(len, lines)) <= width
        assert width < 80 or len(lines) < 30
    assert summary_section(summary)
