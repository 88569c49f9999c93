"""The training loop; the caller renders the events that it yields.

The order matters: a step is trained, then evaluated, then its rows are written, then a checkpoint that contains them
is saved. A stop request is honoured at the step boundary, after all of these.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from bitnetctl import checkpoint
from bitnetctl.checkpoint import Checkpoint
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import StorageError
from bitnetctl.hardware import memory_in_use
from bitnetctl.inference.text_samples import TextSampler
from bitnetctl.records import Row
from bitnetctl.records.samples import Samples, write_samples
from bitnetctl.trainer.artifacts import RunArtifacts, failure_message
from bitnetctl.trainer.evaluate import Probe, ternary_health
from bitnetctl.trainer.events import (
    Diverged,
    Evaluated,
    Event,
    Failed,
    Finished,
    Progress,
    RolledBack,
    Saved,
    Started,
    Stopped,
)
from bitnetctl.trainer.options import TrainOptions

MAX_ROLLBACKS = 3
_TICK_SECONDS = 0.25
# without a requested interval a checkpoint is due when saving takes at most this fraction of the time since the last
_SAVING_FRACTION = 0.005
_MAX_UNSAVED_SECONDS = 900


@dataclass(kw_only=True)
class Trainer:
    """A pack with all that its training needs.

    `codes` are the ternary values at the last evaluation; `text_sampler` is for runs that write text at the end.
    """

    pack: Pack
    probe: Probe
    artifacts: Sequence[RunArtifacts]
    data_fingerprint: str
    options: TrainOptions
    start_step: int
    codes: dict[str, Tensor] | None
    text_sampler: TextSampler | None = None


def train(trainer: Trainer) -> Iterator[Event]:
    """Train the pack from its start step to the end, yielding events."""
    pack, steps = trainer.pack, trainer.pack.steps
    config = pack.replicas[0].config
    yield Started(
        names=[artifacts.name for artifacts in trainer.artifacts],
        configs=[artifacts.run.config for artifacts in trainer.artifacts],
        effective=[replica.config for replica in pack.replicas],
        start_step=trainer.start_step,
        num_parameters=pack.model.num_parameters,
        device=str(pack.device),
    )
    reported: set[int] = set()
    saving = _Saving(trainer)
    clock = _Clock(pack.tokens_per_step)
    for step in range(trainer.start_step + 1, steps + 1):
        clock.start()
        pack.step(step)
        is_evaluated = config.is_evaluated(step)
        is_tick = clock.is_tick()
        if is_evaluated or is_tick:
            pack.wait()
        clock.stop()
        is_saved = saving.is_due(step, is_evaluated) and step < steps
        must_stop = trainer.options.should_stop() and step < steps

        yield from _report_failed(trainer, reported)
        if is_evaluated or is_saved or must_stop:
            pack.mark_diverged(step)
        yield from _report_diverged(trainer, step, reported)
        if is_evaluated:
            yield from _evaluate(trainer, step, clock.tokens_per_second())
        if is_saved or must_stop:
            saving.save(step)
            yield from _report_failed(trainer, reported)
            yield Saved(step=step)
        if len(reported) == len(pack.replicas):
            break
        if must_stop:
            for run, _ in pack.alive:
                trainer.artifacts[run].update("stopped", step)
            yield Stopped(step=step)
            return
        if is_tick:
            yield Progress(step=step, losses=pack.loss_R.tolist(), memory_bytes=memory_in_use(pack.device))
    _finish(trainer)
    yield from _report_failed(trainer, reported)
    yield Finished(step=steps)


def _evaluate(trainer: Trainer, step: int, tokens_per_second: float) -> Iterator[Event]:
    """Write a row of each run that has not diverged."""
    pack = trainer.pack
    measured = trainer.probe.measure(pack.model, pack.quant_lambdas(step))
    codes = pack.model.ternary_codes()
    health = ternary_health(codes, trainer.codes)
    trainer.codes = codes
    for run, _ in pack.alive:
        step_values = _step_values(pack, run, step)
        row: Row = {**step_values, **measured[run], **health[run], "TokensPerSecond": tokens_per_second}
        trainer.artifacts[run].append(row)
        yield Evaluated(run=run, row=row)


def _step_values(pack: Pack, run: int, step: int) -> dict[str, float | int]:
    """Return the columns of a row that come from the training step itself."""
    replica = pack.replicas[run]
    return {
        "Step": step,
        "Loss": pack.loss_R[run].item(),
        "LR": replica.learning_rate(step),
        "WD": replica.weight_decay(step),
        "Objective": pack.objective_R[run].item(),
        "GradNorm": pack.grad_norm_R[run].item(),
    }


def _report_diverged(trainer: Trainer, step: int, reported: set[int]) -> Iterator[Event]:
    """Roll each newly diverged run back, or write its last row, with the values that are not finite."""
    for run, replica in enumerate(trainer.pack.replicas):
        if replica.diverged_at is not None and replica.failure is None and run not in reported:
            reported.add(run)
            tensor = trainer.pack.first_nonfinite_tensor(run)
            if trainer.options.on_divergence == "rollback" and len(trainer.artifacts[run].rollbacks) < MAX_ROLLBACKS:
                yield _roll_back(trainer, run, replica.diverged_at, tensor)
                continue
            row = {**_step_values(trainer.pack, run, step), "UniquePredictions": math.nan}
            trainer.artifacts[run].append(row)
            message = f"{tensor} not finite at step {replica.diverged_at}"
            trainer.artifacts[run].update("diverged", step, diverged_at=replica.diverged_at, message=message)
            yield Evaluated(run=run, row=row)
            yield Diverged(run=run, step=replica.diverged_at)


def _report_failed(trainer: Trainer, reported: set[int]) -> Iterator[Event]:
    """Record each run that the code of a plug-in has ended; the others continue."""
    for run, error in trainer.pack.failed:
        if run not in reported:
            reported.add(run)
            artifacts = trainer.artifacts[run]
            artifacts.fail(failure_message(error), is_fault_of_plugin=True)
            yield Failed(name=artifacts.name, message=failure_message(error))


def _roll_back(trainer: Trainer, run: int, diverged_at: int, tensor: str) -> RolledBack:
    """Mark a run that diverged to be resumed from its last checkpoint; the pack continues without it."""
    artifacts = trainer.artifacts[run]
    resumed_from = artifacts.roll_back(diverged_at, tensor, trainer.start_step)
    trainer.options.log(
        f"{artifacts.name}: {tensor} not finite at step {diverged_at:,}; it resumes from step {resumed_from:,} "
        f"with half the learning rate ({len(artifacts.rollbacks)} of {MAX_ROLLBACKS} times)"
    )
    return RolledBack(run=run, step=resumed_from)


def _checkpoint(trainer: Trainer, run: int, step: int, *, resumable: bool) -> Checkpoint:
    pack, artifacts = trainer.pack, trainer.artifacts[run]
    replica = pack.replicas[run]
    weights = {name: view.detach() for name, view in pack.model.parameters(run).items()}
    codes = {key: code[run].contiguous() for key, code in (trainer.codes or {}).items()}
    return Checkpoint(
        step=step,
        config_hash=artifacts.run.config_hash,
        data_fingerprint=trainer.data_fingerprint,
        model=weights,
        optimizer=pack.optimizer_state(run) if resumable else {},
        codes=codes if resumable else {},
        interventions=replica.composition.state_dict(),
        quantization=float(replica.quant_lambda(step)),
    )


def _finish(trainer: Trainer) -> None:
    pack, steps, keep_weights = trainer.pack, trainer.pack.steps, trainer.options.keep_weights
    for run, _ in pack.alive if keep_weights else ():
        with pack.failing_alone(run):
            trainer.artifacts[run].save(_checkpoint(trainer, run, steps, resumable=False))
    # after the weights are safe: a process may end while text is written, and goes on from there
    samples = _samples(trainer)
    for run, _ in pack.alive:
        artifacts = trainer.artifacts[run]
        if run in samples:
            _keep_samples(trainer, run, samples[run])
        if keep_weights:
            checkpoint.keep_only(artifacts.paths.checkpoints, steps)
        artifacts.update("finished", steps)
        if not keep_weights:
            checkpoint.keep_only(artifacts.paths.checkpoints, -1)


def _samples(trainer: Trainer) -> dict[int, Samples]:
    """Return the text that every run of the pack writes; no run is lost for an error on the way."""
    pack, sampler = trainer.pack, trainer.text_sampler
    if sampler is None or not pack.alive:
        return {}
    try:
        written = sampler.sample(pack.model, pack.quant_lambdas(pack.steps), pack.steps)
    except Exception as error:
        trainer.options.log(f"{trainer.artifacts[0].name}: its pack writes no text: {failure_message(error)}")
        return {}
    return {run: samples for run, samples in enumerate(written) if samples is not None}


def _keep_samples(trainer: Trainer, run: int, samples: Samples) -> None:
    artifacts = trainer.artifacts[run]
    try:
        write_samples(artifacts.paths.samples, samples)
    except StorageError as error:
        trainer.options.log(f"{artifacts.name}: its text is not kept: {error}")


class _Saving:
    """When a checkpoint is due: at the requested interval, else at evaluations, as saving is cheap enough by then."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._cost_seconds = 0.0
        self._saved_at = time.perf_counter()

    def is_due(self, step: int, is_evaluated: bool) -> bool:
        every = self._trainer.options.checkpoint_every
        if every is not None:
            return step % every == 0
        if step == 1 or not is_evaluated:
            return False
        wait_seconds = min(self._cost_seconds / _SAVING_FRACTION, _MAX_UNSAVED_SECONDS)
        return time.perf_counter() - self._saved_at >= wait_seconds

    def save(self, step: int) -> None:
        """Save every run that has not diverged."""
        start = time.perf_counter()
        for run, _ in self._trainer.pack.alive:
            with self._trainer.pack.failing_alone(run):
                self._trainer.artifacts[run].save(_checkpoint(self._trainer, run, step, resumable=True))
        self._saved_at = time.perf_counter()
        self._cost_seconds = self._saved_at - start


class _Clock:
    """Measures the time of training steps alone, without evaluations and checkpoints."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._seconds_since_row = 0.0
        self._steps_since_row = 0
        self._last_tick = time.perf_counter()
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Count the step."""
        self._seconds_since_row += time.perf_counter() - self._started
        self._steps_since_row += 1

    def is_tick(self) -> bool:
        """Return whether a `Progress` event is due."""
        now = time.perf_counter()
        if now - self._last_tick < _TICK_SECONDS:
            return False
        self._last_tick = now
        return True

    def tokens_per_second(self) -> float:
        """Return the tokens per second of one run since the last row."""
        rate = self._steps_since_row * self._tokens_per_step / max(self._seconds_since_row, 1e-9)
        self._seconds_since_row, self._steps_since_row = 0.0, 0
        return round(rate, 1)
