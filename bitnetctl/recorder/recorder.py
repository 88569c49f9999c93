"""The recorder: one row for each evaluation of a training of any program, and a warning where it collapses."""

import json
import logging
import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, SupportsFloat, TypeAlias

import torch
from torch import Tensor, nn

from bitnetctl.config.load import validated
from bitnetctl.errors import ConfigError, one_line
from bitnetctl.hardware import device_name
from bitnetctl.recorder.files import RecordedFiles
from bitnetctl.recorder.measure import CallableProbe, Model
from bitnetctl.recorder.probe import HeldOutProbe
from bitnetctl.records import PlannedRuns, Row, Status, finite_value, read
from bitnetctl.records.collapse import CollapseTracker, Health, classify, collapse_reason
from bitnetctl.records.manifest import ExternalRun
from bitnetctl.records.schema import NAMES
from bitnetctl.trainer.evaluate import ternary_health

_log = logging.getLogger("bitnetctl")
# a run has diverged where one of them is not finite
_FINITE = ("Loss", "HeldOutLoss", "UniquePredictions")

Number: TypeAlias = SupportsFloat | None
"""A number, a tensor of one, or None where it is unknown."""
TernaryCodes: TypeAlias = Mapping[str, Tensor]
"""The ternary weights by name, as -1, 0 and 1, of any shape."""


class HealthChange(NamedTuple):
    """What the evaluations of a run say now; `since` is the first step of that, `reason` says why it is collapsed."""

    run: str
    step: int
    health: Health
    since: int | None
    reason: str | None

    def __str__(self) -> str:
        since = "" if self.since is None else f" since step {self.since:,}"
        return f"{self.run}: {self.health}{since}" + (f": {self.reason}" if self.reason else "")


class Recorder:
    """Measures a model in training on a probe and writes a run's CSV and manifest, whatever program trains it.

    `path` is the CSV; the manifest lies in the folder of its name. `arm`, `size` (hidden size) and `seed` say which run
    it is, and `settings` what is the same for all seeds of the arm; of what is None nothing is known. `steps` are the
    planned ones, `boundary_step` the last of stage 1. With `planned_seeds` and `planned_arms` a seed that never comes
    to be is counted as missing. `vocab_size` is that of the probe; a model may have more columns, which are cut.

    `resume_step` is the step of the checkpoint from which a training continues; later rows are cut. Without it, a CSV
    that has rows is refused. `trainer` names the program with its version. `device` is where the tokens are given, by
    default where the module is; `rows_per_chunk` rows of the probe are evaluated at once.

    A change to possible collapse, collapsed or recovered is logged as a warning by the logger `bitnetctl`, and given to
    `on_warning`. As a context manager it ends the run: as failed where an error is raised.

    Raises ConfigError for values and files that do not fit, RunBusyError where another process records the run.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        probe: HeldOutProbe,
        vocab_size: int | None = None,
        arm: str | None = None,
        size: int | None = None,
        seed: int | None = None,
        steps: int | None = None,
        boundary_step: int | None = None,
        warmup_steps: int = 0,
        settings: Mapping[str, Any] | None = None,
        trainer: str | None = None,
        planned_seeds: Iterable[int] | None = None,
        planned_arms: Iterable[str] | None = None,
        resume_step: int | None = None,
        device: torch.device | str | None = None,
        rows_per_chunk: int | None = None,
        on_warning: Callable[[HealthChange], None] | None = None,
    ) -> None:
        csv = Path(path)
        if csv.suffix != ".csv":
            raise ConfigError(f"{csv}: a recorder writes a CSV; give it a name that ends in .csv")
        if vocab_size is not None and vocab_size != probe.vocab_size:
            raise ConfigError(f"{csv}: vocab_size is {vocab_size}, that of the probe {probe.vocab_size}")
        tree = {
            "trainer": trainer,
            "arm": arm,
            "size": size,
            "seed": seed,
            "steps": steps,
            "boundary_step": boundary_step,
            "warmup_steps": warmup_steps,
            "settings": dict(settings or {}),
        }
        external = validated(ExternalRun, tree, str(csv))
        if rows_per_chunk is not None and rows_per_chunk < 1:
            raise ConfigError(f"{csv}: rows_per_chunk is {rows_per_chunk}; give a number of rows, or None")
        _check(csv, external, resume_step)
        planned = _planned(csv, external, planned_seeds, planned_arms)
        self._external, self._on_warning = external, on_warning
        self._meter = CallableProbe(probe, device, rows_per_chunk)
        self._codes: TernaryCodes | None = None
        self._diverged_at: int | None = None
        self._is_open = True
        self.collapse = CollapseTracker(warmup_steps)
        self._files = RecordedFiles(csv, external, probe.metadata(), planned, resume_step)
        if self._files.last_step is not None:
            self._follow_earlier_rows(csv)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._files.paths.name

    @property
    def health(self) -> Health:
        """What the evaluations say up to now."""
        return self.collapse.health

    @property
    def last_step(self) -> int | None:
        """Step of the last row, None without rows."""
        return self._files.last_step

    def record(
        self,
        step: int,
        model: Model,
        *,
        module: nn.Module | None = None,
        loss: Number = None,
        learning_rate: Number = None,
        weight_decay: Number = None,
        gradient_norm: Number = None,
        objective: Number = None,
        tokens_per_second: Number = None,
        ternary_codes: TernaryCodes | Callable[[], TernaryCodes] | None = None,
    ) -> Row:
        """Measure the model after `step` optimizer steps, write the row and return it.

        `model` takes int64 tokens [P, T] and returns logits [P, T, V]: a tensor, a tuple that begins with it, or an
        object with `.logits`. `module` is what it calls, needed where it is neither a module nor a method of one: that
        is put into eval mode and back, and tells the device. No gradient is computed, and random states stay as they
        were. `loss` is the plain cross-entropy of the step's batch in nats, `objective` what the step minimised,
        `gradient_norm` the global norm before clipping, `ternary_codes` the ternary weights as -1, 0 and 1.

        Raises ConfigError for logits of another shape, RecordError for a step that does not increase.
        """
        if not self._is_open:
            raise ConfigError(f"{self.name}: the recorder is closed; make another, with resume_step to continue")
        row: dict[str, float | int | None] = {
            "Step": step,
            "Loss": _number(loss),
            "LR": _number(learning_rate),
            "WD": _number(weight_decay),
            "Objective": _number(objective),
            "GradNorm": _number(gradient_norm),
            "TokensPerSecond": _number(tokens_per_second),
            **self._meter.measure(model, module),
            **self._ternary_health(ternary_codes),
        }
        device = self._meter.device_of(model, module)
        if self._diverged_at is None and _is_diverged(row):
            self._diverged_at = step
        self._files.append(row, _device_name(device), self._diverged_at)
        self._follow(row)
        return row

    def finish(self) -> None:
        """End the run as finished, or as stopped where it has not reached its planned steps; once is enough."""
        steps, done = self._external.steps, self.last_step or 0
        if self._diverged_at is not None:
            self._end("diverged")
        else:
            self._end("stopped" if done < (steps or 1) else "finished")

    def fail(self, error: BaseException | str) -> None:
        """End the run as failed with an error; as stopped where it was interrupted."""
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            self._end("stopped", type(error).__name__)
        else:
            text = error if isinstance(error, str) else f"{type(error).__name__}: {one_line(error, 2000)}"
            self._end("failed", text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.fail(error)

    def _end(self, status: Status, message: str | None = None) -> None:
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._files.update(status, diverged_at=self._diverged_at, message=message)
        finally:
            self._files.close()

    def _follow_earlier_rows(self, csv: Path) -> None:
        """Take up what the rows of a resumed run say, without a warning."""
        records = read(csv)
        collapsed, healthy = classify(records)
        for index, step in enumerate(records.frame["Step"].tolist()):
            row = {name: records.value(name, index) for name in NAMES}
            state = True if collapsed[index] else False if healthy[index] else None
            self.collapse.add(step, state, collapse_reason(row))
            if self._diverged_at is None and _is_diverged(row):
                self._diverged_at = step

    def _follow(self, row: Row) -> None:
        """Count an evaluation, and warn where it changes what the run's evaluations say."""
        before = (self.collapse.health, self.collapse.since)
        self.collapse.add_row(row)
        collapse = self.collapse
        if (collapse.health, collapse.since) == before or collapse.health is Health.UNKNOWN:
            return
        is_collapsed = collapse.health in (Health.POSSIBLE, Health.COLLAPSED)
        step = int(row["Step"] or 0)
        change = HealthChange(
            self.name, step, collapse.health, collapse.since, collapse.reason if is_collapsed else None
        )
        if collapse.health is Health.HEALTHY:
            if before[0] is not Health.UNKNOWN:
                _log.info("%s", change)
            return
        _log.warning("%s", change)
        if self._on_warning is not None:
            self._on_warning(change)

    def _ternary_health(self, codes: TernaryCodes | Callable[[], TernaryCodes] | None) -> dict[str, float | None]:
        if callable(codes):
            codes = codes()
        if not codes:
            return {}
        previous, self._codes = self._codes, {name: _code(name, code) for name, code in codes.items()}
        if previous is not None and previous.keys() != self._codes.keys():
            raise ConfigError(f"{self.name}: other ternary weights than at the evaluation before")
        (health,) = ternary_health(self._codes, previous)
        return health


def _check(csv: Path, external: ExternalRun, resume_step: int | None) -> None:
    """Raise ConfigError for steps that do not fit each other, and an arm without a name."""
    steps, boundary = external.steps, external.boundary_step
    if steps == 0:
        raise ConfigError(f"{csv}: steps is 0; give the number of planned steps, or None")
    if steps is not None and boundary is not None and boundary > steps:
        raise ConfigError(f"{csv}: boundary_step {boundary:,} is after the last of {steps:,} steps")
    if resume_step is not None and resume_step < 0:
        raise ConfigError(f"{csv}: resume_step is {resume_step}; give the step of the checkpoint")
    if external.arm is not None and not (external.arm.strip() and external.arm.isprintable()):
        raise ConfigError(f"{csv}: arm {external.arm!r} is not a name; give a few words on one line")
    try:
        json.dumps(external.settings, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{csv}: settings hold what JSON cannot: {one_line(error)}") from error


def _planned(csv: Path, external: ExternalRun, seeds: Iterable[int] | None, arms: Iterable[str] | None) -> PlannedRuns:
    """Return what was planned, the run itself included; raises ConfigError for what are no seeds and no arms."""
    if isinstance(arms, str):
        raise ConfigError(f"{csv}: planned_arms is {arms!r}; give a list of arms")
    try:
        every_seed = [operator.index(seed) for seed in seeds or ()]
    except TypeError as error:
        raise ConfigError(f"{csv}: planned_seeds: {error}; give a list of whole numbers") from error
    if min(every_seed, default=0) < 0:
        raise ConfigError(f"{csv}: planned_seeds has {min(every_seed)}; seeds begin at 0")
    own_seed, own_arm = ([] if one is None else [one] for one in (external.seed, external.arm))
    tree = {"seeds": sorted({*own_seed, *every_seed}), "arms": list(dict.fromkeys([*own_arm, *(arms or ())]))}
    return validated(PlannedRuns, tree, f"{csv}: planned")


def _number(value: Number) -> float | None:
    return None if value is None else float(value.detach() if isinstance(value, Tensor) else value)


def _is_diverged(row: Row) -> bool:
    """Whether a loss, or the count of predictions, is not finite."""
    return any(row.get(name) is not None and finite_value(row, name) is None for name in _FINITE)


def _code(name: str, code: Tensor) -> Tensor:
    """Return ternary weights as int8 [1, …]; raises ConfigError for other values."""
    if not isinstance(code, Tensor) or not code.numel():
        raise ConfigError(f"recorder: ternary_codes {name!r} is no tensor with values")
    small = code.detach().to(torch.int8)
    if bool((small != code).any()) or bool((small.abs() > 1).any()):
        raise ConfigError(f"recorder: ternary_codes {name!r} has other values than -1, 0 and 1: weights, not codes")
    return small.unsqueeze(0)


def _device_name(device: torch.device) -> str:
    return device_name(device) if device.type in ("cpu", "cuda") else str(device)
