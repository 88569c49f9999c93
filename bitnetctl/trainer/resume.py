"""Which checkpoints a pack resumes from, and what differs from the previous session."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitnetctl import checkpoint
from bitnetctl.checkpoint import Checkpoint
from bitnetctl.config import RunConfig, parse_config
from bitnetctl.engine.optim import require_alike
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import CheckpointError, ConfigError, RecordError, one_line
from bitnetctl.records import Manifest, read_manifest
from bitnetctl.records.recorded import differences
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.options import Log, Resume
from bitnetctl.units import listed


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """The step after which a pack resumes, with a checkpoint and a manifest of every run; both are empty at step 0."""

    step: int = 0
    checkpoints: Sequence[Checkpoint] = ()
    manifests: Sequence[Manifest | None] = ()

    @property
    def previous(self) -> Manifest | None:
        """Manifest of the first run from its previous session; None for a new run."""
        return self.manifests[0] if self.manifests else None


def resume_point(acquired: Sequence[RunArtifacts], resume: Resume, log: Log) -> ResumePoint:
    """Return the last step that every run of a pack can resume from.

    Raises CheckpointError where steps were done and no checkpoint of them can be used, ConfigError where `resume` is
    "never" and a run exists.
    """
    if isinstance(resume, Path):
        return _resume_at([_named(acquired[0], resume)], acquired[:1])
    available = [_steps(artifacts) for artifacts in acquired]
    if resume == "never":
        if any(available) or any(artifacts.paths.csv.exists() for artifacts in acquired):
            raise ConfigError(f"run {acquired[0].name} exists; take --resume auto, another --name, or remove it")
        return ResumePoint()
    for step in sorted(set.intersection(*available), reverse=True):
        try:
            checkpoints = [_load(artifacts, step) for artifacts in acquired]
        except CheckpointError as error:
            log(str(error))
            continue
        return _resume_at(checkpoints, acquired)
    if any(available):
        raise CheckpointError(f"no checkpoint of run {acquired[0].name} can be used; {_start_over(acquired[0])}")
    for artifacts in acquired:
        previous = read_manifest(artifacts.paths.folder)
        if previous is not None and previous.steps_done:
            raise CheckpointError(
                f"run {artifacts.name}: {previous.steps_done} steps were done, but its checkpoints are gone; put them "
                f"back, or {_start_over(artifacts)}"
            )
    return ResumePoint()


def _named(artifacts: RunArtifacts, path: Path) -> Checkpoint:
    """Load the checkpoint that the user names."""
    saved = checkpoint.load(path, artifacts.paths.csv)
    if saved.config_hash != artifacts.run.config_hash:
        raise CheckpointError(
            f"checkpoint {path} belongs to another config: {_difference(path.parent.parent, artifacts)}"
        )
    if not saved.optimizer:
        raise CheckpointError(
            f"checkpoint {path} is of a finished run, which --extend trains on; there is nothing to resume"
        )
    return saved


def _resume_at(checkpoints: Sequence[Checkpoint], acquired: Sequence[RunArtifacts]) -> ResumePoint:
    for artifacts, saved in zip(acquired, checkpoints, strict=True):
        if saved.config_hash != artifacts.run.config_hash:
            raise CheckpointError(
                f"run {artifacts.name} holds checkpoints of another config: "
                f"{_difference(artifacts.paths.folder, artifacts)}; choose another --name"
            )
    manifests = [read_manifest(artifacts.paths.folder) for artifacts in acquired]
    return ResumePoint(step=checkpoints[0].step, checkpoints=checkpoints, manifests=manifests)


def _difference(folder: Path, artifacts: RunArtifacts) -> str:
    """Return in which fields the config of the run in a folder differs, as far as its manifest tells."""
    with contextlib.suppress(RecordError, ConfigError):
        manifest = read_manifest(folder)
        if manifest is not None:
            return listed(differences(parse_config(manifest.requested()), artifacts.run.config)) or "the hash differs"
    return "there is no run.json that tells which"


def _steps(artifacts: RunArtifacts) -> set[int]:
    folder = artifacts.paths.checkpoints
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder; put the checkpoints back, or {_start_over(artifacts)}")
    return set(checkpoint.steps(folder))


def _load(artifacts: RunArtifacts, step: int) -> Checkpoint:
    path = checkpoint.path_of(artifacts.paths.checkpoints, step)
    if path.is_symlink():
        raise CheckpointError(f"checkpoint {path}: is a link; put the folder itself there, or take --resume")
    return checkpoint.load(path, artifacts.paths.csv)


def _start_over(artifacts: RunArtifacts) -> str:
    return f"remove {artifacts.paths.folder} and {artifacts.paths.csv.name} to start over"


def restore(pack: Pack, saved: Sequence[Checkpoint], data_fingerprint: str) -> dict[str, Tensor]:
    """Load the checkpoints into the pack and return their ternary values; raises CheckpointError for what does not fit.

    A checkpoint may come from anyone, and a plug-in's state may not fit its code any more.
    """
    codes = pack.model.ternary_codes()
    without_optimizer = (pack.steps, pack.replicas[0].config.extended_steps)
    for run, (replica, state) in enumerate(zip(pack.replicas, saved, strict=True)):
        if state.data_fingerprint != data_fingerprint:
            raise CheckpointError(
                "the training text or tokenizer changed since the checkpoint was saved; "
                "restore it, or start over under another --name"
            )
        try:
            if state.step > pack.steps:
                raise ValueError(f"that has {pack.steps} steps")
            require_alike(state.model, pack.model.parameters(run))
            pack.model.load(run, state.model)
            # the last checkpoint of a run has no optimizer state
            if state.step not in without_optimizer:
                require_alike(state.codes, {key: code[run] for key, code in codes.items()})
                pack.load_optimizer_state(run, state.optimizer)
            replica.composition.load_state_dict(state.interventions)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = one_line(error)
            raise CheckpointError(f"the checkpoint of step {state.step} does not fit the run: {reason}") from error
    if saved[0].step in without_optimizer:
        return codes
    return {key: torch.stack([state.codes[key] for state in saved]).to(pack.device) for key in codes}


def refuse_other_config(previous: Manifest | None, effective: RunConfig) -> None:
    """Raise CheckpointError where the interventions of a run to be resumed give another config than they gave before.

    Their `configure` may read what is not in the config of the run: the environment, a file, another version of itself.
    """
    if previous is None or previous.effective_config is None:
        return
    try:
        recorded = parse_config(previous.effective_config)
    except ConfigError:
        return
    unchanged = {"interventions": ()}
    texts = differences(recorded.model_copy(update=unchanged), effective.model_copy(update=unchanged))
    if texts:
        raise CheckpointError(
            f"run {previous.run}: its interventions give another config than before: {listed(texts)}; put back what "
            "they read, or start over under another --name"
        )


def changes(previous: Manifest, metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs from the previous session and may change the run's values."""
    for name in ("engine", "precision", "threads"):
        old = getattr(previous, name)
        if old not in (None, metadata[name]):
            yield f"{name} {metadata[name]} ({old} before)"
    code = {plugin.name: plugin.source_sha256 for plugin in previous.plugins}
    for plugin in metadata["plugins"]:
        if code.get(plugin.name) not in (None, plugin.source_sha256):
            yield f"other code of {plugin.name}"
