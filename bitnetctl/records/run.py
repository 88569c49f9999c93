"""One run: its CSV and, where there is one, the manifest beside it."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bitnetctl.config import RunConfig
from bitnetctl.records.manifest import ExternalRun, Manifest
from bitnetctl.records.metrics import roundest
from bitnetctl.records.naming import printable_name
from bitnetctl.records.paths import CHECKPOINTS_NAME, STEP_PREFIX, WEIGHTS_NAME
from bitnetctl.records.reader import Records
from bitnetctl.records.samples import Samples
from bitnetctl.records.schema import NAMES, Row

if TYPE_CHECKING:
    import pandas as pd

    from bitnetctl.records.schema import Floats, Integers


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run to be analysed or judged; None is unknown throughout.

    `config` is the requested config, `effective` that after interventions; both come from the manifest, that of an
    external run has none. Without a manifest, `size`, `arm`, `seed` and `planned_steps` come from the run's name,
    `size` and `seed` from the title too. `samples` is text that it wrote,
    `bundle` the zip that it was unpacked from for the time of a command.
    """

    path: Path
    name: str
    records: Records
    manifest: Manifest | None
    config: RunConfig | None
    effective: RunConfig | None
    size: int | None
    arm: str | None
    seed: int | None
    planned_steps: int | None
    samples: Samples | None = None
    bundle: str | None = None

    @cached_property
    def _columns(self) -> dict[str, list[float | None]]:
        """Results of `column`; lists of all columns at once would take too much memory for a long run."""
        return {}

    @cached_property
    def _values(self) -> "dict[str, Floats]":
        """Results of `values`; reading them from the frame each time would take seconds for a thousand runs."""
        return {}

    @cached_property
    def steps(self) -> "Integers":
        """Steps of the evaluations, ascending."""
        return self.records.frame["Step"].to_numpy()

    @property
    def source(self) -> str:
        """The file as text, with the run's name where it is a log that holds several."""
        file = printable_name(str(self.path))
        return file if self.records.origin is None or self.name in (self.path.stem, file) else f"{file}: {self.name}"

    @property
    def external(self) -> ExternalRun | None:
        """What is known of a run that another program trained, None for any other."""
        return None if self.manifest is None else self.manifest.external

    @property
    def keeps_weights(self) -> bool:
        """Whether a checkpoint with weights lies in its folder."""
        folder = self.path.with_suffix("") / CHECKPOINTS_NAME
        return self.manifest is not None and any(folder.glob(f"{STEP_PREFIX}*/{WEIGHTS_NAME}"))

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up, 0 where they are unknown."""
        if self.effective is not None:
            return self.effective.schedule.warmup_steps
        return 0 if self.external is None else self.external.warmup_steps

    @property
    def frame(self) -> "pd.DataFrame":
        """The rows as a pandas frame with the CSV's columns; `records.unknown` tells unknown cells from NaN."""
        return self.records.frame

    @property
    def final_step(self) -> int:
        """Step of the last row."""
        return int(self.steps[-1])

    @cached_property
    def boundary_interval(self) -> tuple[int, int] | None:
        """The first and the last step that can be the last of stage 1; equal where it is known.

        It is known from the manifest or, where WD is constant, as half of the planned steps. The WD column tells only
        that it lies between two logged steps.
        """
        if self.effective is not None:
            return self.effective.boundary_step, self.effective.boundary_step
        if self.external is not None and self.external.boundary_step is not None:
            return self.external.boundary_step, self.external.boundary_step
        decay = self.finite("WD")
        known = decay == decay
        changed = (known & (decay != decay[0]) & known[0]).nonzero()[0]
        if len(changed):
            before = known[: changed[0]].nonzero()[0][-1]
            return int(self.steps[before]), int(self.steps[changed[0]]) - 1
        has_stages = self.records.origin is None or bool(known.any())
        return (self.planned_steps // 2, self.planned_steps // 2) if self.planned_steps and has_stages else None

    @property
    def boundary_step(self) -> int | None:
        """Last step of stage 1; of an interval, the step with the most trailing zeros, as boundaries have as a rule."""
        return None if self.boundary_interval is None else roundest(*self.boundary_interval)

    @cached_property
    def diverged_at(self) -> int | None:
        """First step with a value that is not finite, by the manifest or the rows."""
        import numpy as np

        if self.manifest is not None and self.manifest.rollbacks:
            # a rollback halved the learning rate: with that of its config the run diverged
            return self.manifest.rollbacks[0].diverged_at
        if self.manifest is not None and self.manifest.diverged_at is not None:
            return self.manifest.diverged_at
        by_loss = self.records.diverged_at()
        if by_loss is not None:
            return by_loss
        diverged = ~np.isfinite(self.values("UniquePredictions")) & ~self.records.unknown["UniquePredictions"]
        return int(self.steps[diverged.argmax()]) if diverged.any() else None

    @property
    def ended_diverged_at(self) -> int | None:
        """`diverged_at` of a run that did not go on; None for one that was rolled back and did."""
        if self.manifest is not None and self.manifest.rollbacks:
            return self.manifest.diverged_at
        return self.diverged_at

    @property
    def has_failed(self) -> bool:
        """Whether it diverged or crashed, by its rows or its manifest; an unfinished run has not failed."""
        status = self.manifest.status if self.manifest else None
        return self.diverged_at is not None or status in ("diverged", "failed")

    @property
    def stage1_end_index(self) -> int | None:
        """Index of the last evaluation of stage 1, step 1 apart; None where there is none, and until stage 2."""
        if self.boundary_step is None or self.final_step < self.boundary_step:
            return None
        indices = ((self.steps > 1) & (self.steps <= self.boundary_step)).nonzero()[0]
        return int(indices[-1]) if len(indices) else None

    @property
    def is_complete(self) -> bool | None:
        """Whether the last row is at the planned steps; None where these are unknown."""
        return None if self.planned_steps is None else self.final_step >= self.planned_steps

    @property
    def ceiling(self) -> tuple[float, bool] | None:
        """Largest possible UniquePredictions, and whether it is inferred.

        It is ProbePositions or, where that is unknown, the value at step 1: an untrained model predicts almost as many
        tokens as there are prompts.
        """
        positions = self.finite("ProbePositions")
        positions = positions[positions == positions]
        if len(positions):
            return float(positions.min()), False
        first = self.records.value("UniquePredictions", 0)
        return (first, True) if first is not None and math.isfinite(first) and self.steps[0] == 1 else None

    def values(self, name: str) -> "Floats":
        """Return a column as an array; `records.unknown` tells unknown cells from NaN."""
        import numpy as np

        if name not in self._values:
            frame = self.records.frame
            self._values[name] = frame[name].to_numpy(np.float64) if name in frame else np.full(len(frame), np.nan)
        return self._values[name]

    def finite(self, name: str) -> "Floats":
        """Return a column as an array, with NaN where it is unknown or not finite."""
        import numpy as np

        values = self.values(name)
        return np.where(np.isfinite(values), values, np.nan)

    def column(self, name: str) -> list[float | None]:
        """Return a column as a list: None is unknown, NaN and infinity are known."""
        if name not in self._columns:
            unknown = self.records.unknown[name].tolist()
            self._columns[name] = [
                None if missing else value for value, missing in zip(self.values(name).tolist(), unknown, strict=True)
            ]
        return self._columns[name]

    def row(self, index: int) -> Row:
        """Return one row by column name."""
        return {name: self.column(name)[index] for name in NAMES}


@dataclass(frozen=True, kw_only=True, eq=False)
class EmptyRun:
    """A run without an evaluation: its CSV has no rows or is missing, or it was planned and never started.

    `config` is the requested config, from the manifest or from the command that planned the run; None for a run that
    another program trains, of which the manifest tells.
    """

    path: Path
    name: str
    manifest: Manifest | None
    config: RunConfig | None


@dataclass(frozen=True, kw_only=True, eq=False)
class UnreadRun:
    """A CSV that cannot be read: `reason` is the whole message, `problem` the part after the path.

    What its manifest or, without one, its name tells of the run is None where they do not.
    """

    path: Path
    reason: str
    problem: str
    config: RunConfig | None
    size: int | None
    arm: str | None
    seed: int | None
    planned_steps: int | None
