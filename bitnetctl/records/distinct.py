"""Stub."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitnetctl.records.run import Run


@dataclass(frozen=True, kw_only=True)
class Double:
    run: Run
    same_as: Run
    reason: str


def distinct_runs(runs: Sequence[Run]) -> tuple[list[Run], list[Double]]:
    kept: list[Run] = []
    doubles: list[Double] = []
    first: dict[tuple[int | None, tuple[bytes, ...]], Run] = {}
    for run in runs:
        frame = run.records.frame
        key = tuple(
            f"{name} ".encode() + frame[name].to_numpy().tobytes() for name in frame if name != "TokensPerSecond"
        )
        same = first.setdefault((run.size, key), run)
        if same is run and run not in kept:
            kept.append(run)
        else:
            doubles.append(Double(run=run, same_as=same, reason=f"the same values as {same.path}"))
    return kept, doubles
