"""Runs to be judged, written as CSVs and manifests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitnetctl.config import build_config, parse_arm
from bitnetctl.records import Manifest, Run, load_run, utc_now, write_manifest

STAGE_1 = [4000, 40, 20, 8, 2, 2]
CURED = [*STAGE_1, 10, 30, 60, 62, 60]
"""Distinct predictions at step 1 and every 2,000 of 20,000 steps: a cure by the founding document."""

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


def table(unique: Sequence[Any], steps: int = 20_000, **columns: Any) -> str:
    """A CSV with a row at step 1 and at equal distances; a column is one value or one for each row."""
    every = steps // (len(unique) - 1)
    known: dict[str, Any] = {
        "Step": [1, *range(every, steps + 1, every)],
        "Loss": 7.0,
        "UniquePredictions": unique,
        "LR": 0.001,
        "WD": [0.1 if step <= steps // 2 else 0.0 for step in [1, *range(every, steps + 1, every)]],
    }
    known |= columns
    lists = [value if isinstance(value, list | tuple) else [value] * len(unique) for value in known.values()]
    lines = [",".join(known), *(",".join(map(str, row)) for row in zip(*lists, strict=True))]
    return "\n".join([*lines, ""])


def write_run(
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
    """Write a CSV, by default named as this tool names it and with 8,192 probe positions, and load it."""
    path = folder / (name or f"h{size}-{steps}-{arm}-s{seed}-abcdef.csv")
    columns = {"ProbePositions": 8192} | columns
    text = table(unique, steps, **{column: value for column, value in columns.items() if value is not None})
    path.write_text(text, encoding="utf-8")
    return load_run(path)


def write_sound_run(folder: Path, seed: int = 0, **changes: Any) -> Run:
    """Write a healthy run in all columns, a little different for every seed."""
    columns = {**LEVELS, "HeldOutLoss": 4.7 + seed / 1000, "unique": [8000, *[200 + seed] * 10]} | changes
    return write_run(folder, columns.pop("unique"), seed=seed, **columns)


def manifested(
    folder: Path,
    unique: Sequence[Any],
    status: str,
    *,
    seed: int = 0,
    arm: str = "",
    overrides: Sequence[str] = (),
    **fields: Any,
) -> Run:
    """Write a run of the origin recipe with its manifest, and load it."""
    config = build_config(
        "origin", size=256, steps=20_000, seed=seed, overrides=overrides, interventions=parse_arm(arm)
    )
    (folder / config.run_name).mkdir()
    columns = {**LEVELS, **fields.pop("columns", {})}
    (folder / f"{config.run_name}.csv").write_text(table(unique, **columns), encoding="utf-8")
    manifest = Manifest.model_validate(
        {
            "run": config.run_name,
            "status": status,
            "config": config.model_dump(mode="json"),
            "config_hash": config.hash,
            "created_at": utc_now(),
            "updated_at": utc_now(),
            **fields,
        }
    )
    write_manifest(folder / config.run_name, manifest)
    return load_run(folder / f"{config.run_name}.csv")
