"""How far the runs of a pack are from the same runs trained alone, column by column.

    python -m benchmarks.pack_agreement [--runs 6] [--steps 400] [--diverge]

Prints, for every CSV column, the largest difference over all rows and seeds, relative to the value of the solo run
where that is above 1. `--diverge` gives the last run of the pack a learning rate of 1e3 and compares the others.
"""

import argparse
import csv
import tempfile
from pathlib import Path

from bitnetctl.config import RunConfig, build_config
from bitnetctl.records import NAMES
from bitnetctl.trainer import loop
from bitnetctl.trainer.factory import open_trainer
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import resolve

_TIMED = ("TokensPerSecond",)


def main() -> None:
    """Train the pack and the solo runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--diverge", action="store_true")
    arguments = parser.parse_args()

    configs = [build_config("quick", steps=arguments.steps, seed=seed) for seed in range(arguments.runs)]
    compared = configs[:-1] if arguments.diverge else configs
    if arguments.diverge:
        configs[-1] = build_config(
            "quick",
            steps=arguments.steps,
            seed=arguments.runs - 1,
            overrides=["schedule.peak_learning_rate=1e3", "optimizer.max_norm=none"],
        )
    with tempfile.TemporaryDirectory() as folder:
        _train([configs], Path(folder) / "pack")
        _train([[config] for config in compared], Path(folder) / "solo")
        differences = {name: 0.0 for name in NAMES if name not in _TIMED}
        for config in compared:
            packed = _rows(Path(folder) / "pack", config)
            for row, solo in zip(packed, _rows(Path(folder) / "solo", config), strict=True):
                for name in differences:
                    differences[name] = max(differences[name], _difference(row[name], solo[name]))
        ends = _rows(Path(folder) / "pack", configs[-1])[-1] if arguments.diverge else None
    print(f"{len(compared)} runs of a pack of {len(configs)} against solo, {arguments.steps} steps")
    for name, value in differences.items():
        print(f"  {name:<20} {value:.2e}")
    if ends is not None:
        print(
            f"the diverged run ends at step {ends['Step']} with loss {ends['Loss']}, gradient norm {ends['GradNorm']}"
        )


def _train(packs: list[list[RunConfig]], runs_dir: Path) -> None:
    for pack in packs:
        runs = [resolve(config, runs_dir) for config in pack]
        with open_trainer(runs, TrainOptions(runs_dir=runs_dir, keep_weights=False)) as trainer:
            for _ in loop.train(trainer):
                pass


def _rows(runs_dir: Path, config: RunConfig) -> list[dict[str, str]]:
    with (runs_dir / f"{config.run_name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _difference(packed: str, solo: str) -> float:
    if packed == solo:
        return 0.0
    return abs(float(packed) - float(solo)) / max(1.0, abs(float(solo)))


if __name__ == "__main__":
    main()
