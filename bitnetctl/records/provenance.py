"""Stub."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitnetctl.records.run import Run


@dataclass(frozen=True, kw_only=True)
class Differences:
    breaking: tuple[str, ...] = ()
    minor: tuple[str, ...] = ()


def provenance_differences(runs: Sequence[Run], *, same_arm: bool) -> Differences:
    differing = next(filter(None, (differing_settings(runs[0], other) for other in runs[1:])), None)
    if not differing:
        return Differences()
    return Differences(breaking=tuple(f"{name} {a} and {b}" for name, (a, b) in list(differing.items())[:3]))


_MAY_DIFFER = {"recipe", "steps", "seed", "interventions", "model.hidden_size", "probe.eval_every_steps"}


def differing_settings(run: Run, other: Run) -> dict[str, tuple[object, object]]:
    from bitnetctl.config.load import flatten

    if run.config is None or other.config is None:
        return {}
    ours, theirs = (dict(flatten(config.model_dump(mode="json"))) for config in (run.config, other.config))
    return {name: (ours[name], theirs[name]) for name in ours if name not in _MAY_DIFFER and ours[name] != theirs[name]}
