"""Runs made by hand: rows, the CSV they are written to and, for a config, the manifest beside it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.plugins import registry
from bitnetctl.records import NAMES, Manifest, Run, load_run, write_manifest
from bitnetctl.records.schema import HEADER

Rows = Sequence[Mapping[str, Any]]

TIME = "2026-01-01T00:00:00+00:00"
REFERENCES = {"UniqueTargets": 900, "ProbePositions": 4096, "UnigramLoss": 6.0, "BigramLoss": 4.0, "BigramUnique": 300}

STAGE_1 = [4000, 40, 20, 8, 2, 2]
CURED = [*STAGE_1, 10, 30, 60, 62, 60]
"""Distinct predictions at step 1 and every 2,000 of 20,000 steps: cured, by the founding document's criteria."""

LEVELS: dict[str, Any] = {
    "HeldOutLoss": 4.7,
    "UniqueTargets": 1298,
    "ProbePositions": 8192,
    "TopShare": 0.08,
    "ContextInformation": 1.3,
    "UnigramLoss": 6.36,
    "BigramLoss": 4.03,
    "BigramUnique": 394,
}
"""The other columns of a healthy run."""


def quick(arm: str = "", *, size: int = 64, seed: int = 0, steps: int = 1000, **overrides: Any) -> RunConfig:
    """Build a quick config that is evaluated every 100 steps; `optimizer__name="adam"` sets optimizer.name."""
    fields = {"probe__eval_every_steps": 100, "schedule__warmup_steps": 100} | overrides
    texts = [f"{name.replace('__', '.')}={value}" for name, value in fields.items()]
    config = build_config("quick", size=size, seed=seed, steps=steps, overrides=texts, interventions=parse_arm(arm))
    return registry.normalize(config)


def continued(config: RunConfig, steps: int = 400) -> RunConfig:
    """Return the config of a run that extends one of so many steps."""
    source = config.model_copy(update={"steps": steps})
    return config.model_copy(update={"continues": f"{source.hash[:12]}@{steps}"})


def curve(steps: Iterable[int], **columns: Any) -> list[dict[str, Any]]:
    """Return rows with the five required columns; a column is one value or one for each row, None for an empty cell."""
    rows = []
    for index, step in enumerate(steps):
        row = {"Step": step, "Loss": 5.0, "UniquePredictions": 100, "LR": 1e-3, "WD": 0.1}
        for name, value in columns.items():
            row[name] = value[index] if isinstance(value, Sequence) and not isinstance(value, str) else value
        rows.append(row)
    return rows


def two_stages(unique: Sequence[Any], steps: int = 20_000, **columns: Any) -> list[dict[str, Any]]:
    """Return a row for step 1 and the others at equal distances, with weight decay in the first half only."""
    every = steps // (len(unique) - 1)
    at = [1, *range(every, steps + 1, every)]
    decay = [0.1 if step <= steps // 2 else 0.0 for step in at]
    return curve(at, **{"Loss": 7.0, "UniquePredictions": unique, "WD": decay} | columns)


def csv_text(rows: Rows, title: str = "") -> str:
    """Return rows as a CSV with the columns that any of them has."""
    names = [name for name in NAMES if any(name in row for row in rows)]
    lines = [",".join("" if row.get(name) is None else str(row[name]) for name in names) for row in rows]
    return title + "\n".join([",".join(names), *lines]) + "\n"


def write_csv(path: Path, rows: Rows, title: str = "") -> Path:
    """Write rows to a CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(csv_text(rows, title), encoding="utf-8")
    return path


def write_run(folder: Path, config: RunConfig, rows: Rows, *, name: str | None = None, **fields: Any) -> Path:
    """Write CSV and manifest of a run; `fields` are the manifest's. Returns the CSV."""
    name = name or config.run_name
    path = write_csv(folder / f"{name}.csv", rows)
    (folder / name).mkdir(exist_ok=True)
    effective = registry.compose(config.interventions).configure(config)
    tree = {
        "run": name,
        "status": "finished",
        "config": config.model_dump(mode="json"),
        "effective_config": effective.model_dump(mode="json"),
        "config_hash": config.hash,
        "created_at": TIME,
        "updated_at": TIME,
        "steps_done": rows[-1]["Step"] if rows else 0,
    }
    write_manifest(folder / name, Manifest.model_validate(tree | fields))
    return path


def simple_run(
    folder: Path, config: RunConfig, *, loss: float = 5.0, unique: int = 100, prompt: int = 10, **fields: Any
) -> Path:
    """Write a run that is the same at every evaluation after step 1; only its training loss tells seeds apart."""
    steps = [1, *range(100, config.steps + 1, 100)]
    rest = len(steps) - 1
    rows = curve(
        steps,
        Loss=5.0 + config.seed / 1000,
        HeldOutLoss=[7.6] + [loss] * rest,
        UniquePredictions=[1000] + [unique] * rest,
        RandomPromptUnique=[20] + [prompt] * rest,
        WD=[0.1 if step <= config.boundary_step else 0.0 for step in steps],
        **REFERENCES,
    )
    return write_run(folder, config, rows, **fields)


def empty_run(folder: Path, config: RunConfig, status: str = "failed", *, has_csv: bool = True, **fields: Any) -> Path:
    """Write a run without an evaluation: a header-only CSV, or none, and its manifest. Returns where its CSV is."""
    path = write_run(folder, config, [], status=status, **fields)
    if has_csv:
        path.write_bytes(HEADER)
    else:
        path.unlink()
    return path


def origin_run(
    folder: Path,
    unique: Sequence[Any],
    status: str = "finished",
    *,
    seed: int = 0,
    arm: str = "",
    overrides: Sequence[str] = (),
    columns: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Run:
    """Write a run of the origin recipe, by default healthy in the other columns, and load it."""
    config = build_config("origin", size=256, seed=seed, overrides=overrides, interventions=parse_arm(arm))
    rows = two_stages(unique, **LEVELS | dict(columns or {}))
    return load_run(write_run(folder, config, rows, status=status, **fields))


def bare_run(
    folder: Path,
    unique: Sequence[Any] = CURED,
    *,
    size: int = 256,
    steps: int = 20_000,
    arm: str = "baseline",
    seed: int = 0,
    name: str | None = None,
    **columns: Any,
) -> Run:
    """Write a CSV without a manifest, by default named as this tool names it, and load it; None drops a column."""
    given = {column: value for column, value in ({"ProbePositions": 8192} | columns).items() if value is not None}
    name = name or f"h{size}-{steps}-{arm}-s{seed}-abcdef.csv"
    return load_run(write_csv(folder / name, two_stages(unique, steps, **given)))


def healthy_run(folder: Path, seed: int = 0, **changes: Any) -> Run:
    """Write a bare run that is healthy in all columns, a little different for every seed."""
    columns = {**LEVELS, "HeldOutLoss": 4.7 + seed / 1000, "unique": [8000, *[200 + seed] * 10]} | changes
    return bare_run(folder, columns.pop("unique"), seed=seed, **columns)
