"""Where the runs of a pack go on, from what, and what is other than before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from bitnetctl.engine.pack import Pack
from bitnetctl.errors import CheckpointError, ConfigError
from bitnetctl.records import Manifest, read_manifest
from bitnetctl.trainer import checkpoint
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.checkpoint import Checkpoint

Resume: TypeAlias = Literal["auto", "never"] | Path
Log: TypeAlias = Callable[[str], None]


def resume_point(outputs: Sequence[RunArtifacts], resume: Resume, log: Log) -> tuple[int, list[Checkpoint] | None]:
    """Return the last step that every run of the pack can go on from, with its checkpoints.

    Raises CheckpointError where something was computed and no checkpoint of it can be used.
    """
    first = outputs[0].paths
    if isinstance(resume, Path):
        saved = checkpoint.load(resume, first.csv)
        if saved.config_hash != outputs[0].config.hash:
            raise CheckpointError(f"checkpoint {resume} belongs to another config ({saved.config_hash[:12]})")
        if not saved.optimizer:
            raise CheckpointError(f"checkpoint {resume} is of a finished run; there is nothing to resume")
        return saved.step, [saved]
    available = [_steps(output) for output in outputs]
    if resume == "never":
        if any(available) or any(output.paths.csv.exists() for output in outputs):
            raise ConfigError(f"run {first.name} exists; take --resume auto, another --name, or remove it")
        return 0, None
    for step in sorted(set.intersection(*available), reverse=True):
        try:
            found = [_load(output, step) for output in outputs]
        except CheckpointError as error:
            log(str(error))
            continue
        for output, state in zip(outputs, found, strict=True):
            if state.config_hash != output.config.hash:
                raise CheckpointError(
                    f"run {output.paths.name} holds checkpoints of another config ({state.config_hash[:12]}); "
                    "choose another --name"
                )
        return step, found
    if any(available):
        raise CheckpointError(f"no checkpoint of run {first.name} can be used; {_start_over(outputs[0])}")
    for output in outputs:
        before = read_manifest(output.paths.folder)
        if before is not None and before.steps_done:
            raise CheckpointError(
                f"run {output.paths.name}: {before.steps_done} steps were done, but its checkpoints are gone; put them "
                f"back, or {_start_over(output)}"
            )
    return 0, None


def _steps(output: RunArtifacts) -> set[int]:
    folder = output.paths.checkpoints
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise CheckpointError(f"{folder}: is no folder; put the checkpoints back, or {_start_over(output)}")
    return set(checkpoint.steps(folder))


def _load(output: RunArtifacts, step: int) -> Checkpoint:
    path = checkpoint.path_of(output.paths.checkpoints, step)
    if path.is_symlink():
        raise CheckpointError(f"checkpoint {path}: is a link; put the folder itself there, or take --resume")
    return checkpoint.load(path, output.paths.csv)


def _start_over(output: RunArtifacts) -> str:
    return f"remove {output.paths.folder} and {output.paths.csv.name} to start over"


def restore(pack: Pack, saved: Sequence[Checkpoint], data_fingerprint: str) -> dict[str, Tensor]:
    """Load the checkpoints into the pack and return their ternary values; raises CheckpointError for what does not fit.

    A checkpoint may come from anyone, and a plug-in's state may not fit its code any more.
    """
    codes = pack.model.ternary_codes()
    for run, (replica, state) in enumerate(zip(pack.replicas, saved, strict=True)):
        if state.data_fingerprint != data_fingerprint:
            raise CheckpointError(
                "the training text or tokenizer changed since the checkpoint was saved; "
                "restore it, or start over under another --name"
            )
        try:
            if state.step > pack.steps:
                raise ValueError(f"that has {pack.steps} steps")
            _require_alike(state.model, pack.model.parameters(run))
            pack.model.load(run, state.model)
            # the last checkpoint of all holds nothing to train on with
            if state.step != pack.steps:
                _require_alike(state.codes, {key: code[run] for key, code in codes.items()})
                _require_alike(state.optimizer, pack.model.by_spec(replica.optimizer.state_like()))
                replica.optimizer.load_state(pack.model.by_flat_parameter(state.optimizer))
            replica.composition.load_state_dict(state.interventions)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            text = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint of step {state.step} does not fit the run: {text}") from error
    if saved[0].step == pack.steps:
        return codes
    return {key: torch.stack([state.codes[key] for state in saved]).to(pack.device) for key in codes}


def _require_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the tensors have the names, shapes and dtypes of the expected ones."""
    for name in sorted(found.keys() ^ expected.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'unknown'}")
    for name, like in expected.items():
        ours, theirs = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (found[name], like))
        if ours != theirs:
            raise ValueError(f"{name} is {ours}, not {theirs}")


def changes(before: Manifest, facts: Mapping[str, Any]) -> Iterator[str]:
    """Say what a run is carried out with from now on that it was not before: figures may differ for it."""
    for name in ("engine", "precision", "threads"):
        old = getattr(before, name)
        if old not in (None, facts[name]):
            yield f"{name} {facts[name]} ({old} before)"
    code = {plugin.name: plugin.source_sha256 for plugin in before.plugins}
    for plugin in facts["plugins"]:
        if code.get(plugin.name) not in (None, plugin.source_sha256):
            yield f"other code of {plugin.name}"
