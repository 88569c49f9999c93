"""Import a model in a public format as a run: weights, tokenizer, config, and one measured row."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bitnetctl import checkpoint, data
from bitnetctl.checkpoint import Checkpoint
from bitnetctl.config import RunConfig, load_recipe, parse_arm, parse_config
from bitnetctl.config.load import apply_override
from bitnetctl.config.schema import join_arm
from bitnetctl.data.tokenizer import end_of_text
from bitnetctl.errors import BitnetctlError, ConfigError, DataError, one_line
from bitnetctl.files import remove, replacing, storage_errors, temporary_folder, write_atomic, write_synced
from bitnetctl.formats.masters import group_size
from bitnetctl.formats.model_content import ModelContent, exported_name
from bitnetctl.formats.packed_from_file import packed_from_file
from bitnetctl.formats.reading import read_model
from bitnetctl.hardware import resolve_device
from bitnetctl.model.packed import PackedModel
from bitnetctl.plugins import registry
from bitnetctl.records import Manifest, PlannedRuns, RecordWriter, RunPaths, utc_now, write_manifest
from bitnetctl.records.checksum import csv_checksum
from bitnetctl.records.manifest import ImportedModel
from bitnetctl.records.paths import TOKENIZER_NAME
from bitnetctl.records.status import refuse_case_collisions
from bitnetctl.trainer.evaluate import Probe, ternary_health
from bitnetctl.trainer.provenance import data_metadata, environment

_SETTINGS = "tokenizer_config.json"
_OVERRIDABLE = ("data", "optimizer", "schedule", "probe")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The run that a model has become, with a line for everything that was compared or left out."""

    paths: RunPaths
    config: RunConfig
    notes: tuple[str, ...]


def import_model(
    path: Path,
    runs_dir: Path,
    *,
    name: str | None = None,
    recipe: str = "portable",
    steps: int | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    progress: Callable[[str, int, int | None], None] = data.no_progress,
    log: Callable[[str], None] = lambda line: None,
) -> Imported:
    """Read a model and write it as a finished run, with a row that the probe measured on `data.source`.

    Optimizer, schedule, batch and text are those of the recipe with `overrides`, for a later `--extend`. `steps` are
    those that it was trained for, by default as the file says, else 1. Packed weights get masters that quantize to the
    same codes and scales. Raises ConfigError for a name that is taken and for a model that cannot be expressed,
    DataError for damaged files; nothing is then written.
    """
    paths = RunPaths(runs_dir, _run_name(path) if name is None else name)
    if paths.folder.exists() or paths.csv.exists():
        raise ConfigError(f"run {paths.name}: exists in {runs_dir}; choose another --name")
    refuse_case_collisions([paths.name], runs_dir)
    progress(f"reading {path}", 0, None)
    file = read_model(path)
    config, notes = _config(file, paths, path, recipe, steps, overrides)
    composition = registry.compose(config.interventions)
    effective = composition.configure(config)
    with temporary_folder() as staging:
        tokens = _prepare(file, effective, paths, staging, progress, log)
        quantizers, target = composition.quantizers(), resolve_device(device)
        packed = packed_from_file(file, effective.model, quantizers, tokens.vocab_size, path, target)
        model = packed.model
        row = _measure(model, file.quant_lambda, effective, tokens, progress)
        csv = staging / "rows.csv"
        writer = RecordWriter(csv)
        writer.open()
        writer.append(row)
        writer.close()
        manifest = _manifest(file, path, paths, config, effective, tokens, csv)
        state = Checkpoint(
            step=config.steps,
            config_hash=config.hash,
            data_fingerprint=tokens.fingerprint,
            model={name: view.detach().cpu() for name, view in model.parameters(0).items()},
            interventions=composition.state_dict(),
            records=csv.read_bytes(),
            quantization=file.quant_lambda,
        )
        settings = staging / _SETTINGS
        _write(paths, manifest, state, tokens.tokenizer_content(), settings.read_bytes() if settings.exists() else b"")
    return Imported(paths=paths, config=config, notes=(*file.notes, *notes, *packed.notes))


def _run_name(path: Path) -> str:
    """Return the name of a file without its suffix, or of a folder, in letters that a run's name may have."""
    name = path.resolve().name
    stem = Path(name).stem if path.is_file() else name
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", stem).strip(".-")[:200] or "imported"


def _config(
    file: ModelContent, paths: RunPaths, path: Path, recipe: str, steps: int | None, overrides: Sequence[str]
) -> tuple[RunConfig, tuple[str, ...]]:
    """Return the config of the run, and a note where the arm that trained it cannot be used here.

    The model is that of the file; the rest is that of the exported run where the file has it, else of the recipe.
    """
    done = steps or file.step or 1
    if file.config is None:
        tree: dict[str, Any] = {**load_recipe(recipe), "recipe": "custom"}
        tree["model"] = {**file.model, "quantization": file.quant_lambda}
        tree["interventions"] = [spec.model_dump() for spec in parse_arm(_arm(file))]
    else:
        # a file may come from anyone, and is not to say which text is read
        text = load_recipe(recipe)["data"]["source"]
        tree = {**file.config, "continues": None, "data": {**file.config["data"], "source": text}}
    of_data = {"tokenizer": f"file:{paths.tokenizer.as_posix()}"}
    tree |= {"steps": done, "data": {**tree.get("data", {}), **of_data}}
    if file.context_length is not None:
        tree["data"]["sequence_length"] = file.context_length
    for text in overrides:
        section = text.partition("=")[0].strip().partition(".")[0]
        if section not in _OVERRIDABLE:
            raise ConfigError(f"--set {text!r}: the model is that of {path}; {', '.join(_OVERRIDABLE)} can be set")
        apply_override(tree, text)
    if file.tokenizer is None and tree["data"]["tokenizer"] == of_data["tokenizer"]:
        raise ConfigError(
            f"{path}: has no tokenizer that is read here; name the one that it was trained with: "
            "--set data.tokenizer=file:tokenizer.json"
        )
    config = parse_config(tree, source=str(path))
    try:
        # a file may come from anyone, and is not to say which code is run
        if any(spec.file is not None for spec in config.interventions):
            raise ConfigError("its plug-in is not installed")
        return registry.normalize(config), ()
    except ConfigError as error:
        if file.config is None or file.quant_lambda not in (0.0, 1.0):
            raise
        model = config.model.model_copy(update={"quantization": file.quant_lambda})
        arm = parse_arm(_arm(file))
        note = f"{config.arm} cannot be used here ({error}); the run has the arm {join_arm(arm)}"
        return registry.normalize(config.model_copy(update={"interventions": arm, "model": model})), (note,)


def _arm(file: ModelContent) -> str:
    """Return the arm whose quantizer has the scales of a file: empty for one scale, or one for each projection."""
    size = group_size(file.quantized)
    if size is None:
        return ""
    is_half = all(torch.equal(scale_OG.half().float(), scale_OG) for _, scale_OG in file.quantized.values())
    return f"group-scale:size={size}" + (",half=true" if is_half else "")


def _prepare(
    file: ModelContent,
    config: RunConfig,
    paths: RunPaths,
    staging: Path,
    progress: Callable[[str, int, int | None], None],
    log: Callable[[str], None],
) -> data.TokenData:
    """Return the tokens of the text, in the vocabulary of the tokenizer that the run will have in its folder."""
    chosen = config.data
    if file.tokenizer is not None and chosen.tokenizer == f"file:{paths.tokenizer.as_posix()}":
        try:
            tokenizer = Tokenizer.from_str(file.tokenizer)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise DataError(f"its tokenizer is none: {one_line(error)}") from error
        write_synced(staging / TOKENIZER_NAME, file.tokenizer.encode())
        end = file.end_of_text
        if end is not None and tokenizer.token_to_id(end) not in (None, end_of_text(tokenizer)):
            # as in a folder of transformers: nothing else names the token
            write_synced(staging / _SETTINGS, json.dumps({"eos_token": end}).encode())
        chosen = chosen.model_copy(update={"tokenizer": f"file:{staging / TOKENIZER_NAME}"})
    return replace(data.prepare(chosen, progress=progress, log=log), tokenizer=config.data.tokenizer)


def _measure(
    model: PackedModel,
    quant_lambda: float,
    config: RunConfig,
    tokens: data.TokenData,
    progress: Callable[[str, int, int | None], None],
) -> dict[str, float | int | None]:
    """Return the row of the imported step; what belongs to a training step is unknown."""
    probe_data = data.probe_data(
        tokens,
        positions=config.probe.positions,
        sequence_length=config.data.sequence_length,
        progress=progress,
    )
    progress("measuring", 0, None)
    probe = Probe(config.probe, probe_data, tokens.vocab_size, model.device)
    [measured] = probe.measure(model, [quant_lambda])
    [health] = ternary_health(model.ternary_codes(), None)
    return {"Step": config.steps, "Loss": None, "LR": None, "WD": None, **measured, **health}


def _manifest(
    file: ModelContent,
    path: Path,
    paths: RunPaths,
    config: RunConfig,
    effective: RunConfig,
    tokens: data.TokenData,
    csv: Path,
) -> Manifest:
    now = utc_now()
    return Manifest.model_validate(
        {
            "run": paths.name,
            "status": "finished",
            "config": config.model_dump(mode="json"),
            "config_hash": config.hash,
            "effective_config": effective.model_dump(mode="json"),
            "imported": ImportedModel(source=path.resolve().name, run=file.run and exported_name(file.run, file.step)),
            "planned": PlannedRuns(seeds=[config.seed], arms=[config.arm]),
            "plugins": registry.plugin_infos(config.interventions),
            "created_at": now,
            "updated_at": now,
            "steps_done": config.steps,
            "data": data_metadata(tokens),
            "csv_sha256": csv_checksum(csv),
            **environment(),
        }
    )


def _write(paths: RunPaths, manifest: Manifest, state: Checkpoint, tokenizer: bytes, settings: bytes) -> None:
    """Write the folder of the run, then its CSV; raises StorageError, and neither is then there."""
    with storage_errors(paths.folder), replacing(paths.folder) as temporary:
        temporary.mkdir()
        write_synced(temporary / TOKENIZER_NAME, tokenizer)
        if settings:
            write_synced(temporary / _SETTINGS, settings)
        checkpoint.save(temporary / paths.checkpoints.name, state)
        write_manifest(temporary, manifest)
    try:
        write_atomic(paths.csv, state.records)
    except BitnetctlError:
        remove(paths.folder)
        raise
