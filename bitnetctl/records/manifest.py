"""The manifest beside a run's CSV: the requested config, the environment, and how the run ended."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticSerializationError

from bitnetctl.config import canonical_hash
from bitnetctl.errors import ConfigError, RecordError, cannot_read, one_line
from bitnetctl.files import write_atomic
from bitnetctl.records.naming import printable_name
from bitnetctl.records.paths import MANIFEST_NAME
from bitnetctl.records.schema import SCHEMA_VERSION

Status: TypeAlias = Literal["running", "stopped", "finished", "diverged", "failed"]


def utc_now() -> str:
    """Return the time as an ISO 8601 UTC string, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_utc(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError("not an ISO 8601 time in UTC")
    return text


def _printable(value: Any) -> Any:
    # a command-line argument that is not UTF-8 holds surrogates, which cannot be encoded
    return printable_name(value) if isinstance(value, str) else value


_Text: TypeAlias = Annotated[str, BeforeValidator(_printable)]
_UtcTime: TypeAlias = Annotated[str, AfterValidator(_check_utc)]
_Count: TypeAlias = Annotated[int, Field(ge=0)]
_Seconds: TypeAlias = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class _Document(BaseModel):
    # "constants" keeps NaN, which the JSON writer refuses; the default would write null
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class PluginInfo(_Document):
    """An intervention of a run: its plug-in, settings and source code."""

    name: str
    version: str | None = None
    distribution: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    module: str | None = Field(None, description="where its class is defined")
    source_sha256: str | None = Field(None, description="hash of that module's file")
    put_back: list[str] = Field(default_factory=list, description="what it changed in the process, which was undone")


class Rollback(_Document):
    """A divergence after which the run was rolled back to a checkpoint and resumed at half the learning rate."""

    diverged_at: _Count
    resumed_from: _Count
    tensor: str


class _Provenance(_Document):
    """Software, hardware and settings with which one session trains a run."""

    versions: dict[str, str] = Field(default_factory=dict)
    git: dict[str, Any] | None = None
    device: str | None = None
    engine: str | None = Field(None, description="eager, graph, compile or fused")
    kernels: list[str] | None = Field(
        None, description="parts of a step that own kernels compute; unknown in an older file"
    )
    not_captured: str | None = Field(None, description="why its pack has left the CUDA graph")
    precision: str | None = Field(None, description="of the matmuls: fp32, bf16 or int8")
    threads: int | None = None
    plugins: list[PluginInfo] = Field(default_factory=list)
    command: list[_Text] | None = None
    pack: list[str] = Field(default_factory=list, description="names of the runs trained together")


class PlannedRuns(_Document):
    """What the command that trains a run has planned, whether or not it comes to be."""

    seeds: list[int] = Field(description="of every run with this run's config but for the seed, ascending")
    arms: list[str] = Field(description="of every run of the command, in its order")


class ExternalRun(_Document):
    """What is known of a run that another program trained and this one measured; None is unknown."""

    trainer: _Text | None = Field(None, description="program that trained it, with its version")
    arm: _Text | None = None
    size: _Count | None = Field(None, description="hidden size")
    seed: _Count | None = None
    steps: _Count | None = Field(None, description="planned steps")
    boundary_step: _Count | None = Field(None, description="last step of stage 1")
    warmup_steps: _Count = 0
    settings: dict[str, Any] = Field(default_factory=dict, description="of the training, equal for seeds of one arm")


class ImportedModel(_Document):
    """Where the weights of a run come from that was not trained here; None is unknown."""

    source: _Text = Field(description="name of the file or folder")
    run: _Text | None = Field(None, description="the exported run, as NAME@STEP")


class Session(_Provenance):
    """A part of the training of a run, within one process."""

    from_step: _Count | None = Field(None, description="step it started from; unknown in an older file")


class Manifest(_Provenance):
    """The content of `run.json`; fields that a newer version added are ignored when read.

    The inherited fields are the provenance of the last session; `sessions` has that of every session whose steps are
    part of the run.
    """

    schema_version: int = SCHEMA_VERSION
    run: str
    status: Status
    config: dict[str, Any] | None = Field(None, description="the requested RunConfig; of an external run none")
    config_hash: str = Field(description="of the config, or of what is known of an external run")
    effective_config: dict[str, Any] | None = Field(None, description="the RunConfig after interventions")
    external: ExternalRun | None = Field(None, description="of a run that another program trained")
    imported: ImportedModel | None = Field(None, description="of a run whose weights come from a file")
    planned: PlannedRuns | None = Field(None, description="by the command that last started it; unknown in older files")
    created_at: _UtcTime
    updated_at: _UtcTime
    steps_done: _Count = 0
    diverged_at: _Count | None = Field(None, description="first step with a loss that is not finite")
    message: _Text | None = None
    is_fault_of_plugin: bool = Field(False, description="whether it failed by an error in the code of a plug-in")
    rollbacks: list[Rollback] = Field(default_factory=list, description="divergences that the run was rolled back from")
    sessions: list[Session] = Field(default_factory=list)
    data: dict[str, Any] = Field(default_factory=dict, description="fingerprints, vocabulary, token counts")
    elapsed_seconds: _Seconds = Field(0.0, description="wall-clock seconds over all sessions")
    csv_sha256: str | None = Field(None, description="of the rows of a run that ended, with LF at their ends")
    sha256: str | None = Field(None, description="of the rest of this file")

    @model_validator(mode="after")
    def _check_described(self) -> Self:
        if (self.config is None) == (self.external is None):
            raise ValueError("config: needed, unless external tells of a run that another program trained")
        return self

    def requested(self) -> dict[str, Any]:
        """Return the requested config; raises ConfigError for a run that another program trained."""
        if self.config is None:
            raise ConfigError(f"run {self.run}: another program trained it, so it has no config")
        return self.config


def sessions_until(step: int, manifest: Manifest | None) -> list[Session]:
    """Return the sessions that trained the first `step` steps of a run."""
    if manifest is None or step == 0:
        return []
    # an older file has its last session only, without the step it resumed from
    known = manifest.sessions or [Session.model_validate(manifest.model_dump())]
    return [session for session in known if session.from_step is None or session.from_step < step]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace `folder/run.json`; raises StorageError, and RecordError for NaN and values that JSON cannot hold."""
    path = folder / MANIFEST_NAME
    try:
        tree = manifest.model_dump(mode="json", exclude={"sha256"})
        tree["sha256"] = canonical_hash(tree)
        text = json.dumps(tree, indent=2, sort_keys=True, allow_nan=False)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"{path}: the manifest holds what JSON cannot: {one_line(error)}") from error
    write_atomic(path, text.encode() + b"\n")


def read_manifest(folder_or_csv: Path | str) -> Manifest | None:
    """Read the manifest of a run, given its folder or its CSV; None where there is no manifest.

    Raises RecordError where it is damaged or cannot be read.
    """
    path = _manifest_path(folder_or_csv)
    tree = read_tree(path)
    if tree is None:
        return None
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise RecordError(f"{path}: damaged manifest: {where}: {one_line(first['msg'])}") from error


def _manifest_path(folder_or_csv: Path | str) -> Path:
    folder = Path(folder_or_csv)
    if folder.suffix.lower() == ".csv" and not folder.is_dir():
        folder = folder.with_suffix("")
    return folder / MANIFEST_NAME


def read_tree(path: Path) -> dict[str, Any] | None:
    """Read a `run.json` without checking its fields, which takes most of the time of `read_manifest`.

    Returns None where there is no such file; raises RecordError where it is damaged or cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: damaged manifest: not UTF-8") from error
    except OSError as error:
        raise RecordError(cannot_read(path, error)) from error
    try:
        tree = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(tree, dict):
            raise ValueError("the whole: not an object")
        return _without_checksum(tree)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: damaged manifest: {one_line(error)}") from error


def _without_checksum(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree without its checksum; raises ValueError where it does not match. Older files have none."""
    expected = tree.pop("sha256", None)
    if expected is not None and canonical_hash(tree) != expected:
        raise ValueError(
            "checksum differs; remove the file and the run resumes from its checkpoints; without one, remove the run"
        )
    return tree


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
