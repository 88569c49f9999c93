"""From claimed runs to a session that trains: text, probe, model, resume point, manifests."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bitnetctl import data
from bitnetctl.config import DataConfig, ProbeConfig, RunConfig
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.select import Engine, Execution, choose, choose_threads, hosted_engine, make_pack
from bitnetctl.errors import BitnetctlError, ConfigError, RunEndedError, StoppedBySignal
from bitnetctl.files import require_space
from bitnetctl.hardware import device_name, prepare_cpu, resolve_device
from bitnetctl.model.parameters import num_parameters
from bitnetctl.plugins import registry
from bitnetctl.plugins.registry import effective_config
from bitnetctl.records import Manifest, RunPaths, read_manifest
from bitnetctl.records.status import ended
from bitnetctl.trainer import checkpoint, loop
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.evaluate import Probe
from bitnetctl.trainer.events import Event, Stopped
from bitnetctl.trainer.loop import OnDivergence, Trainer
from bitnetctl.trainer.provenance import data_metadata, environment
from bitnetctl.trainer.resume import Log, Resume, changes, restore, resume_point


@dataclass(frozen=True, kw_only=True)
class Options:
    """How runs are carried out: nothing here changes a figure of a run beyond rounding."""

    runs_dir: Path = Path("runs")
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    checkpoint_every: int | None = None
    resume: Resume = "auto"
    keep_weights: bool = True
    on_divergence: OnDivergence = "stop"
    should_stop: Callable[[], bool] = lambda: False
    progress: data.Progress = data.no_progress
    log: Log = field(default=lambda text: None)


class TrainerFactory:
    """Opens packs on one device; text and probe prepared for one pack are kept for the next."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = resolve_device(options.device)
        self._tokens: dict[DataConfig, data.TokenData] = {}
        self._probes: dict[tuple[DataConfig, ProbeConfig], Probe] = {}
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        prepare_cpu()
        self._threads = torch.get_num_threads()

    def prepare(self, config: RunConfig) -> tuple[data.TokenData, Probe]:
        """Return tokens and probe of a run's effective config; raises DataError before anything is created."""
        if config.data not in self._tokens:
            self._tokens[config.data] = data.prepare(config.data, progress=self.options.progress)
        tokens = self._tokens[config.data]
        key = (config.data, config.probe)
        if key not in self._probes:
            references = data.probe_data(
                tokens,
                positions=config.probe.positions,
                sequence_length=config.data.sequence_length,
                progress=self.options.progress,
            )
            self._probes[key] = Probe(config.probe, references, tokens.vocab_size, self.device)
        return tokens, self._probes[key]

    def execution(self, config: RunConfig, before: Manifest | None = None) -> Execution:
        """Return how a run with this effective config is carried out; a resumed one as before, unless asked for."""
        requested = self.options
        tokens, _ = self.prepare(config)
        engine = requested.engine if requested.engine != "auto" or before is None else before.engine or "auto"
        precision = (
            requested.precision if requested.precision != "auto" or before is None else before.precision or "auto"
        )
        # a device may have one of them, or none
        for ways in ((engine, precision), (requested.engine, precision)):
            with contextlib.suppress(ConfigError):
                return choose(config, tokens.vocab_size, self.device, *ways)
        return choose(config, tokens.vocab_size, self.device, requested.engine, requested.precision)

    @contextlib.contextmanager
    def open(self, outputs: Sequence[RunArtifacts]) -> Iterator[Trainer]:
        """Yield the session of claimed runs of one shape, resumed where they were; releases them at the end."""
        with _ended_by_stop(self.options.should_stop), contextlib.ExitStack() as stack:
            for output in outputs:
                stack.callback(output.release)
            compositions = [registry.compose(output.config.interventions) for output in outputs]
            effective = [
                composition.configure(output.config) for composition, output in zip(compositions, outputs, strict=True)
            ]
            tokens, probe = self.prepare(effective[0])
            start_step, saved = resume_point(outputs, self.options.resume, self.options.log)
            before = [read_manifest(output.paths.folder) if saved else None for output in outputs]
            execution = self.execution(effective[0], before[0])
            pack = make_pack(effective, compositions, tokens, self.device, execution)
            # a resumed run keeps its number of threads: sums must come out to the last bit
            known = before[0].threads if before[0] is not None else None
            threads = min(known, self._threads) if known else choose_threads(pack, self._threads)
            torch.set_num_threads(threads)
            stack.callback(torch.set_num_threads, self._threads)
            codes = restore(pack, saved, tokens.fingerprint) if saved else None
            if execution.engine == "compile":
                self.options.log("compiling before the first step; what is compiled is kept for the next time")
            engine = hosted_engine(execution.engine)
            if isinstance(pack, CapturedPack) and pack.graphs is not None:
                note = functools.partial(_log_uncaptured, outputs, engine, self.options.log)
                engine, pack.graphs.on_error = execution.engine, note
            for output, config, manifest in zip(outputs, effective, before, strict=True):
                facts = {
                    **environment(),
                    "effective_config": config.model_dump(mode="json"),
                    "device": device_name(self.device),
                    "engine": engine,
                    "precision": execution.precision,
                    "threads": threads,
                    "data": data_metadata(tokens),
                    "plugins": registry.plugin_infos(output.config.interventions),
                    "pack": [replica.paths.name for replica in outputs],
                }
                if manifest is not None and (other := ", ".join(changes(manifest, facts))):
                    self.options.log(f"{manifest.run}: goes on with {other}; run.json names both")
                output.begin(facts, start_step)
            for replica, output in zip(pack.replicas, outputs, strict=True):
                replica.halved_after = [rollback.resumed_from for rollback in output.rollbacks]
            yield Trainer(
                pack=pack,
                probe=probe,
                outputs=outputs,
                data_fingerprint=tokens.fingerprint,
                start_step=start_step,
                checkpoint_every=self.options.checkpoint_every,
                keep_weights=self.options.keep_weights,
                on_divergence=self.options.on_divergence,
                log=self.options.log,
                should_stop=self.options.should_stop,
                codes=codes,
            )

    def require_room(self, config: RunConfig, runs: int) -> None:
        """Raise StorageError where the checkpoints of `runs` runs of this effective config would not fit."""
        tokens, _ = self.prepare(config)
        state_bytes = 12 * num_parameters(config.model, tokens.vocab_size)
        require_space(self.options.runs_dir, runs * (checkpoint.KEPT + 1) * state_bytes)


@contextlib.contextmanager
def _ended_by_stop(should_stop: Callable[[], bool]) -> Iterator[None]:
    """Take an error after a stop was asked for as the stop: Ctrl-C, for one, ends compilers as well."""
    try:
        yield
    except BitnetctlError:
        raise
    except Exception as error:
        if not should_stop():
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise StoppedBySignal(f"stopped by a signal ({what}); the same command goes on from what is saved") from error


@contextlib.contextmanager
def open_trainer(configs: Sequence[RunConfig], options: Options, *, names: Sequence[str]) -> Iterator[Trainer]:
    """Claim the named runs of one shape and open their session; nothing is created if their text is unusable.

    Raises RunEndedError where a run has ended.
    """
    sessions = TrainerFactory(options)
    if isinstance(options.resume, Path):
        checkpoint.verify(options.resume)
    sessions.require_room(effective_config(configs[0]), len(configs))
    outputs: list[RunArtifacts] = []
    with contextlib.ExitStack() as stack:
        for name, config in zip(names, configs, strict=True):
            output = RunArtifacts(RunPaths(options.runs_dir, name), config)
            output.claim()
            stack.callback(output.release)
            # another process may have ended it while this one got ready
            if (manifest := ended(config, options.runs_dir, name)) is not None:
                raise RunEndedError(f"{name}: already {manifest.status}, nothing to train")
            outputs.append(output)
        yield stack.enter_context(sessions.open(outputs))


def train_runs(
    configs: Sequence[RunConfig], options: Options, *, names: Sequence[str] | None = None
) -> Iterator[Event]:
    """Train the runs one after the other, yielding what happens; ends after a stop."""
    for index, config in enumerate(configs):
        name = names[index] if names else config.run_name
        resume = options
        while True:
            try:
                with open_trainer([config], resume, names=[name]) as session:
                    rollbacks = len(session.outputs[0].rollbacks)
                    for event in loop.train(session):
                        yield event
                    was_set_back = len(session.outputs[0].rollbacks) > rollbacks
                    # a checkpoint that was named stays the newest until the run has saved one of its own
                    if max(checkpoint.steps(session.outputs[0].paths.checkpoints), default=0) >= session.start_step:
                        resume = replace(options, resume="auto")
            except RunEndedError as error:
                options.log(str(error))
                break
            # two packs at once would take twice the memory
            del session
            if isinstance(event, Stopped):
                return
            if not was_set_back:
                break


def _log_uncaptured(outputs: Sequence[RunArtifacts], engine: Engine, log: Log, error: str) -> None:
    """Tell the user and the manifests that a pack is stepped by the host."""
    log(f"{outputs[0].paths.name}: its pack goes on without a CUDA graph, which is slower: {error}")
    for output in outputs:
        output.correct(engine=engine)
