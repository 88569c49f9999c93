"""How runs are judged, apart from the criteria."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How runs are judged, apart from the criteria.

    `sizes` and `seeds` are those requested: one without a run makes support impossible, other runs are left out and
    counted. `requested_steps` replaces the steps that the criteria require, with a note. Runs of unknown seed are one
    seed, unless `distinct_seeds`. With `strict` other versions, devices, engines or precisions make a verdict invalid.
    """

    sizes: Sequence[int] | None = None
    seeds: Sequence[int] | None = None
    requested_steps: int | None = None
    distinct_seeds: bool = False
    strict: bool = False
