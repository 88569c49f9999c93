"""Extend a finished run: a new run that starts with its rows and weights and trains to a later step."""

from dataclasses import replace

from bitnetctl import checkpoint
from bitnetctl.config import RunConfig, parse_config
from bitnetctl.data.listing import expand
from bitnetctl.errors import CheckpointError, ConfigError
from bitnetctl.records import Manifest, RunPaths, read_manifest
from bitnetctl.trainer.resolved import ResolvedRun


def extended_config(source: RunPaths, steps: int) -> RunConfig:
    """Return the config of a finished run with more steps; raises ConfigError where it cannot be extended."""
    manifest = _finished(source)
    longer = {"steps": steps, "continues": f"{manifest.config_hash[:12]}@{manifest.steps_done}"}
    config = parse_config({**manifest.requested(), **longer}, source=f"--extend {source.name}")
    scheme, _, path = config.data.tokenizer.partition(":")
    if scheme == "file" and not expand(path).exists() and source.tokenizer.exists():
        # an imported run may have been moved with its tokenizer; that it is the same one is seen by the checkpoint
        own = config.data.model_copy(update={"tokenizer": f"file:{source.tokenizer.as_posix()}"})
        config = config.model_copy(update={"data": own})
    return config


def begin_extension(run: ResolvedRun, source: RunPaths) -> None:
    """Save the end of `source` as the first checkpoint of the run that extends it, unless it has one.

    The optimizer of a finished run is not kept, so its moments start anew. Raises CheckpointError where the weights are
    gone or damaged.
    """
    if checkpoint.steps(run.paths.checkpoints) or run.paths.csv.exists():
        return
    step = _finished(source).steps_done
    if step not in checkpoint.steps(source.checkpoints):
        raise CheckpointError(f"run {source.name}: its weights were not kept; sweep keeps them with --keep-weights")
    saved = checkpoint.load(checkpoint.path_of(source.checkpoints, step), source.csv)
    checkpoint.save(run.paths.checkpoints, replace(saved, config_hash=run.config_hash))


def _finished(source: RunPaths) -> Manifest:
    manifest = read_manifest(source.folder)
    if manifest is None:
        raise ConfigError(f"--extend {source.folder}: no run there; give the name of one in --runs-dir, or its folder")
    if manifest.status != "finished":
        raise ConfigError(f"--extend {source.name}: the run is {manifest.status}, not finished")
    return manifest
