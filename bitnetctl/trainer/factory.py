"""Makes the trainer of a pack: text, probe, model, resume point, manifests."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bitnetctl import checkpoint, data
from bitnetctl.allowance import usable_cpus
from bitnetctl.config import DataConfig, ProbeConfig, RunConfig
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.select import (
    Engine,
    Execution,
    choose,
    choose_threads,
    make_pack,
    uncaptured_engine,
    without_update_if_needed,
)
from bitnetctl.engine.selfcheck import proven
from bitnetctl.errors import BitnetctlError, ConfigError, PluginError, RunEndedError, StoppedBySignal, one_line
from bitnetctl.files import require_space
from bitnetctl.hardware import device_name, prepare_cpu, resolve_device
from bitnetctl.inference.text_samples import TextSampler, takes_under_one_percent
from bitnetctl.model.parameters import num_parameters
from bitnetctl.model.parts import Quantized
from bitnetctl.plugins import registry
from bitnetctl.records import Manifest
from bitnetctl.trainer import loop
from bitnetctl.trainer.artifacts import RunArtifacts, failure_message, record_failure
from bitnetctl.trainer.evaluate import Probe
from bitnetctl.trainer.events import Event, Stopped
from bitnetctl.trainer.loop import Trainer
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.provenance import data_metadata, environment
from bitnetctl.trainer.resolved import ResolvedRun
from bitnetctl.trainer.resume import ResumePoint, changes, refuse_other_config, restore, resume_point
from bitnetctl.units import plural


class TrainerFactory:
    """Makes trainers on one device; the text and probe of a pack are kept for the next.

    `workers` processes share the CPUs, if they train on them.
    """

    def __init__(self, options: TrainOptions, workers: int = 1) -> None:
        self.options = options
        self.device = resolve_device(options.device)
        self._tokens: dict[DataConfig, data.TokenData] = {}
        self._probes: dict[tuple[DataConfig, ProbeConfig], Probe] = {}
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        prepare_cpu()
        # torch knows of CPU affinity and OMP_NUM_THREADS, not of the quota of a container
        cpus = usable_cpus() // (workers if self.device.type == "cpu" else 1)
        self._threads = max(1, min(torch.get_num_threads(), cpus))
        torch.set_num_threads(self._threads)

    def prepare(self, config: RunConfig) -> tuple[data.TokenData, Probe]:
        """Return tokens and probe of a run's effective config; raises DataError before anything is created."""
        if config.data not in self._tokens:
            self._tokens[config.data] = data.prepare(config.data, progress=self.options.progress, log=self.options.log)
        tokens = self._tokens[config.data]
        key = (config.data, config.probe)
        if key not in self._probes:
            probe_data = data.probe_data(
                tokens,
                positions=config.probe.positions,
                sequence_length=config.data.sequence_length,
                progress=self.options.progress,
            )
            if probe_data.no_bytes is not None:
                self.options.log(f"tokenizer {tokens.tokenizer}: HeldOutBitsPerByte is unknown: {probe_data.no_bytes}")
            self._probes[key] = Probe(config.probe, probe_data, tokens.vocab_size, self.device)
        return tokens, self._probes[key]

    def execution(
        self, config: RunConfig, previous: Manifest | None = None, *, custom: frozenset[Quantized] = frozenset()
    ) -> Execution:
        """Return engine and precision for an effective config: as requested, else as in the previous session.

        `custom` is what its interventions quantize.
        """
        options, vocab_size = self.options, self.prepare(config)[0].vocab_size
        engine, precision = options.engine, options.precision
        if previous is not None:
            engine = previous.engine or "auto" if engine == "auto" else engine
            precision = previous.precision or "auto" if precision == "auto" else precision
        # this device may not have the engine or precision of the previous session
        for choice in ((engine, precision), (options.engine, precision)):
            with contextlib.suppress(ConfigError):
                return choose(config, vocab_size, self.device, *choice, custom=custom)
        return choose(config, vocab_size, self.device, options.engine, options.precision, custom=custom)

    @contextlib.contextmanager
    def open(self, acquired: Sequence[RunArtifacts]) -> Iterator[Trainer]:
        """Yield the trainer of runs that pack together, resumed where they stopped; releases them at the end."""
        with _errors_after_a_stop(self.options.should_stop), contextlib.ExitStack() as stack:
            for artifacts in acquired:
                stack.callback(artifacts.release)
            tokens, probe = self.prepare(acquired[0].run.effective)
            start = resume_point(acquired, self.options.resume, self.options.log)
            first = acquired[0].run
            execution = self.execution(first.effective, start.previous, custom=first.custom_quantizers)
            self.options.progress(f"building {plural(len(acquired), 'model')}", 0, None)
            pack, execution = self._make_pack(acquired, tokens, execution)
            for replica, manifest in zip(pack.replicas, start.manifests, strict=bool(start.manifests)):
                refuse_other_config(manifest, replica.config)
            stack.callback(torch.set_num_threads, self._threads)
            self.options.progress("choosing the number of threads", 0, None)
            threads = self._set_threads(pack, start.previous)
            if start.checkpoints:
                self.options.progress(f"loading the checkpoint of step {start.step:,}", 0, None)
            codes = restore(pack, start.checkpoints, tokens.fingerprint) if start.checkpoints else None
            # after the weights are restored, which an optimizer may copy
            pack.make_optimizers()
            engine = self._actual_engine(pack, execution.engine, acquired)
            metadata = {
                **environment(),
                "device": device_name(self.device),
                "engine": engine,
                "precision": execution.precision,
                "kernels": sorted(execution.kernels) if isinstance(pack, CapturedPack) else [],
                "threads": threads,
                "data": data_metadata(tokens),
                "pack": [artifacts.name for artifacts in acquired],
                "not_captured": self._not_captured(pack, acquired),
            }
            tokenizer = tokens.tokenizer_content() if self.options.keep_weights else None
            for run, artifacts in enumerate(acquired):
                self._begin(artifacts, start, run, pack.replicas[run].config, metadata, tokenizer)
                pack.replicas[run].halved_after = [rollback.resumed_from for rollback in artifacts.rollbacks]
            yield Trainer(
                pack=pack,
                probe=probe,
                artifacts=acquired,
                data_fingerprint=tokens.fingerprint,
                options=self.options,
                start_step=start.step,
                codes=codes,
                text_sampler=self._text_sampler(tokens, acquired[0].run.effective),
            )

    def require_room(self, config: RunConfig, runs: int) -> None:
        """Raise StorageError where the checkpoints of `runs` runs of this effective config would not fit."""
        tokens, _ = self.prepare(config)
        state_bytes = 12 * num_parameters(config.model, tokens.vocab_size)
        require_space(self.options.runs_dir, runs * (checkpoint.KEPT + 1) * state_bytes)

    def _text_sampler(self, tokens: data.TokenData, config: RunConfig) -> TextSampler | None:
        """Return what lets the runs write text at the end; None where they do not."""
        wanted = self.options.samples
        if wanted is None:
            wanted = takes_under_one_percent(config, len(tokens.train_N))
        return TextSampler(tokens, config) if wanted else None

    def _make_pack(
        self, acquired: Sequence[RunArtifacts], tokens: data.TokenData, execution: Execution
    ) -> tuple[Pack, Execution]:
        """Return the pack of the runs, and how it is computed: with those fast paths only that are proven here."""
        # new instances for each run, since interventions may keep state
        compositions = [registry.compose(artifacts.run.config.interventions) for artifacts in acquired]
        effective = [
            composition.configure(artifacts.run.config)
            for composition, artifacts in zip(compositions, acquired, strict=True)
        ]
        execution = without_update_if_needed(execution, effective, compositions)
        # compiling takes longer than its check is worth to who asks for it
        requested = execution.engine == "compile" and self.options.engine == "compile"
        if not requested and all(composition.capturable_step for composition in compositions):
            interpolates = any(
                composition.overrides("quantization") or config.model.quantization not in (0.0, 1.0)
                for composition, config in zip(compositions, effective, strict=True)
            )
            execution = proven(
                execution, effective, tokens.vocab_size, self.device, interpolates=interpolates, log=self.options.log
            )
        return make_pack(effective, compositions, tokens, self.device, execution), execution

    def _set_threads(self, pack: Pack, previous: Manifest | None) -> int:
        """Set and return the number of threads; a resumed run keeps its number: sums depend on it in the last bit."""
        known = previous.threads if previous is not None else None
        threads = min(known, self._threads) if known else choose_threads(pack, self._threads)
        torch.set_num_threads(threads)
        return threads

    def _actual_engine(self, pack: Pack, engine: Engine, acquired: Sequence[RunArtifacts]) -> Engine:
        """Return the engine that the pack runs with; it is corrected in run.json if a step cannot be captured."""
        if engine == "compile":
            self.options.log("compiling before the first step; what is compiled is kept for the next time")
        if not isinstance(pack, CapturedPack):
            return uncaptured_engine(engine)
        # own kernels go on without a graph, and so must a resumed run
        without_graph = engine if engine == "fused" else uncaptured_engine(engine)
        if pack.graphs is None:
            return without_graph
        pack.graphs.on_error = functools.partial(self._correct_engine, acquired, without_graph)
        return engine

    def _not_captured(self, pack: Pack, acquired: Sequence[RunArtifacts]) -> str | None:
        """Return why a pack that could be captured is not, and log it."""
        reason = pack.not_captured if isinstance(pack, CapturedPack) else None
        if reason is not None:
            self.options.log(f"{acquired[0].name}: its pack trains without a CUDA graph, which is slower: {reason}")
        return reason

    def _correct_engine(self, acquired: Sequence[RunArtifacts], engine: Engine, error: str) -> None:
        self.options.log(f"{acquired[0].name}: its pack continues without a CUDA graph, which is slower: {error}")
        for artifacts in acquired:
            artifacts.correct(engine=engine, not_captured=error)

    def _begin(
        self,
        artifacts: RunArtifacts,
        start: ResumePoint,
        run: int,
        effective: RunConfig,
        metadata: dict[str, object],
        tokenizer: bytes | None,
    ) -> None:
        """Open the files of a run; log what differs from the previous session."""
        metadata = {
            **metadata,
            "effective_config": effective.model_dump(mode="json"),
            "plugins": registry.plugin_infos(artifacts.run.config.interventions),
        }
        previous = start.manifests[run] if start.manifests else None
        resumed = start.checkpoints[run] if start.checkpoints else None
        if previous is not None and (different := ", ".join(changes(previous, metadata))):
            self.options.log(f"{previous.run}: resumes with {different}; run.json names both")
        if resumed is not None and resumed.step == effective.extended_steps:
            self.options.log(f"{artifacts.name}: starts with rows and weights of the run that it extends")
        elif resumed is not None and not artifacts.paths.csv.exists():
            self.options.log(
                f"{artifacts.name}: its CSV is missing; restored from the checkpoint of step {resumed.step}"
            )
        artifacts.begin(metadata, resumed, tokenizer)


@contextlib.contextmanager
def _errors_after_a_stop(should_stop: Callable[[], bool]) -> Iterator[None]:
    """Raise StoppedBySignal for an error after a stop request: Ctrl-C also ends the compiler's processes."""
    try:
        yield
    except BitnetctlError:
        raise
    except Exception as error:
        if not should_stop():
            raise
        reason = f"{type(error).__name__}: {one_line(error, 80)}"
        raise StoppedBySignal(f"stopped by a signal ({reason}); the same command resumes from what is saved") from error


@contextlib.contextmanager
def open_trainer(runs: Sequence[ResolvedRun], options: TrainOptions) -> Iterator[Trainer]:
    """Acquire runs that pack together and yield their trainer; nothing is created if their text is unusable.

    Raises RunBusyError where another process holds a run, RunEndedError where a run has ended.
    """
    factory = TrainerFactory(options)
    if isinstance(options.resume, Path):
        checkpoint.verify(options.resume)
    factory.require_room(runs[0].effective, len(runs))
    acquired: list[RunArtifacts] = []
    with contextlib.ExitStack() as stack:
        for run in runs:
            artifacts = RunArtifacts(run)
            artifacts.acquire()
            stack.callback(artifacts.release)
            # another process may have ended it while this one got ready
            if (manifest := run.ended()) is not None:
                raise RunEndedError(f"{run.name}: already {manifest.status}, nothing to train")
            acquired.append(artifacts)
        yield stack.enter_context(factory.open(acquired))


def train_runs(runs: Sequence[ResolvedRun], options: TrainOptions) -> Iterator[Event]:
    """Train runs one after the other, yielding events; ends after a stop.

    A run that raises an error that is not bitnetctl's own, or one in the code of a plug-in, is recorded as failed.
    """
    for run in runs:
        try:
            if run.problem is not None:
                raise PluginError(run.problem)
            if (yield from _train_to_its_end(run, options)):
                return
        except PluginError as error:
            record_failure(run, failure_message(error), is_fault_of_plugin=True)
            raise
        except BitnetctlError:
            raise
        except Exception as error:
            record_failure(run, failure_message(error), is_fault_of_plugin=False)
            raise


def _train_to_its_end(run: ResolvedRun, options: TrainOptions) -> Generator[Event, None, bool]:
    """Train a run, again and again after rollbacks, until it ends; returns True if it was stopped."""
    while True:
        try:
            with open_trainer([run], options) as trainer:
                (artifacts,) = trainer.artifacts
                rollbacks = len(artifacts.rollbacks)
                for event in loop.train(trainer):
                    yield event
                was_rolled_back = len(artifacts.rollbacks) > rollbacks
                # a checkpoint that the user named stays the newest until the run has saved one of its own
                if max(checkpoint.steps(artifacts.paths.checkpoints), default=0) >= trainer.start_step:
                    options = replace(options, resume="auto")
        except RunEndedError as error:
            options.log(str(error))
            return False
        # before the next pack is made, since two would take twice the memory
        del trainer
        if isinstance(event, Stopped) or not was_rolled_back:
            return isinstance(event, Stopped)
