"""Runs made by hand: a CSV and, for a config, the manifest beside it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.plugins import registry
from bitnetctl.records import NAMES, Manifest, write_manifest

TIME = "2026-01-01T00:00:00+00:00"
REFERENCES = {"UniqueTargets": 900, "ProbePositions": 4096, "UnigramLoss": 6.0, "BigramLoss": 4.0, "BigramUnique": 300}


def quick(arm: str = "", *, size: int = 64, seed: int = 0, steps: int = 1000, **overrides: Any) -> RunConfig:
    """Build a quick config that is evaluated every 100 steps; `optimizer__name="adam"` sets optimizer.name."""
    fields = {"probe__eval_every_steps": 100, "schedule__warmup_steps": 100} | overrides
    texts = [f"{name.replace('__', '.')}={value}" for name, value in fields.items()]
    config = build_config("quick", size=size, seed=seed, steps=steps, overrides=texts, interventions=parse_arm(arm))
    return registry.normalize(config)


def curve(steps: Iterable[int], **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Return rows with the five required columns; a column is given by its values, None for an empty cell."""
    rows = []
    for place, step in enumerate(steps):
        row = {"Step": step, "Loss": 5.0, "UniquePredictions": 100, "LR": 1e-3, "WD": 0.1}
        rows.append(row | {name: values[place] for name, values in columns.items()})
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], title: str = "") -> Path:
    """Write rows under the columns that any of them has."""
    names = [name for name in NAMES if any(name in row for row in rows)]
    lines = [",".join("" if row.get(name) is None else str(row[name]) for name in names) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(title + "\n".join([",".join(names), *lines]) + "\n", encoding="utf-8")
    return path


def write_run(
    folder: Path, config: RunConfig, rows: Sequence[Mapping[str, Any]], *, name: str | None = None, **fields: Any
) -> Path:
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
    """Write a run that is the same at every evaluation after step 1."""
    steps = [1, *range(100, config.steps + 1, 100)]
    rest = len(steps) - 1
    rows = curve(
        steps,
        HeldOutLoss=[7.6] + [loss] * rest,
        UniquePredictions=[1000] + [unique] * rest,
        RandomPromptUnique=[20] + [prompt] * rest,
        WD=[0.1 if step <= config.boundary_step else 0.0 for step in steps],
    )
    return write_run(folder, config, [row | REFERENCES for row in rows], **fields)
