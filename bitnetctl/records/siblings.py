"""The runs that lie in a folder, as far as that can be told without reading their rows. No torch here."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bitnetctl.config import InterventionSpec, RunConfig, canonical_arm
from bitnetctl.config.load import flatten
from bitnetctl.errors import RecordError
from bitnetctl.records.find import is_litter, original_stem
from bitnetctl.records.manifest import ExternalRun, Manifest, read_tree
from bitnetctl.records.naming import parse_run_name
from bitnetctl.records.paths import LOCK_NAME, MANIFEST_NAME
from bitnetctl.records.provenance import MAY_DIFFER
from bitnetctl.records.reader import NoRowsError, read
from bitnetctl.records.recorded import complete_specs, full_label, settings_key

_Value = TypeVar("_Value")

_BEGINNING = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What run a name or a config stands for.

    `settings` is its config apart from `MAY_DIFFER`, `interventions` the `settings_key` of its arm, of which `full_arm`
    is a label with all settings; None where unknown.
    """

    size: int
    arm: str
    seed: int
    steps: int
    settings: str | None = None
    interventions: str | None = None
    full_arm: str | None = None

    @classmethod
    def of_name(cls, name: str) -> "Identity | None":
        """Return the identity that a run's name tells, without the settings of its arm."""
        named = parse_run_name(original_stem(name))
        return None if named is None else cls(**named._asdict())

    @classmethod
    def of_config(cls, config: RunConfig) -> "Identity":
        """Return the identity of a requested config."""
        tree = config.model_dump(mode="json")
        size = config.model.hidden_size
        return cls(
            size=size,
            arm=config.arm,
            seed=config.seed,
            steps=config.steps,
            settings=_settings(tree),
            interventions=settings_key(tree["interventions"]),
        )

    @classmethod
    def of_manifest(cls, manifest: Manifest | None) -> "Identity | None":
        """Return the identity that a manifest tells; None where it does not."""
        if manifest is None:
            return None
        if manifest.external is not None:
            return cls.of_external(manifest.external, manifest.data)
        return None if manifest.config is None else cls.of_tree(manifest.config)

    @classmethod
    def of_external(cls, external: ExternalRun, data: Mapping[str, Any]) -> "Identity | None":
        """Return the identity of a run that another program trained; None where a part of it is unknown.

        Such runs belong together if they were measured on the same probe.
        """
        size, arm, seed, steps = external.size, external.arm, external.seed, external.steps
        if size is None or arm is None or seed is None or steps is None:
            return None
        settings = json.dumps({"external": True, "probe": data.get("probe_fingerprint")})
        return cls(size=size, arm=canonical_arm(arm), seed=seed, steps=steps, settings=settings)

    @classmethod
    def of_tree(cls, tree: dict[str, Any], plugins: object = ()) -> "Identity | None":
        """Return the identity of a requested config as JSON, with the `plugins` of its manifest; None if it is none."""
        try:
            size, seed, steps = tree["model"]["hidden_size"], tree["seed"], tree["steps"]
            specs = complete_specs(tree["interventions"], plugins if isinstance(plugins, list) else ())
            arm, full_arm = _arms(json.dumps(specs))
            settings, interventions = _settings(tree), settings_key(specs)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            return None
        if not all(type(number) is int for number in (size, seed, steps)):
            return None
        return cls(
            size=size,
            arm=arm,
            seed=seed,
            steps=steps,
            settings=settings,
            interventions=interventions,
            full_arm=full_arm,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sibling:
    """A CSV, a run's folder, or both.

    `tree` is the manifest as JSON, None where there is none or `is_damaged`. `identity` comes from the manifest, else
    from the name.
    """

    name: str
    folder: Path
    csvs: Sequence[Path]
    tree: dict[str, Any] | None
    is_damaged: bool
    identity: Identity | None

    @property
    def csv(self) -> Path:
        """Where its CSV is, or would be."""
        return self.csvs[0] if self.csvs else self.folder.with_name(f"{self.name}.csv")

    @functools.cached_property
    def real_csvs(self) -> set[str]:
        """Paths of its CSVs without links, and of where one would be."""
        return {os.path.realpath(csv) for csv in (*self.csvs, self.csv)}

    @property
    def status(self) -> str | None:
        """Status in the manifest."""
        return self._field("status", str)

    @property
    def message(self) -> str | None:
        """Message of an error in the manifest."""
        return self._field("message", str)

    @property
    def is_fault_of_plugin(self) -> bool:
        """Whether the manifest says that the run failed by an error in the code of a plug-in."""
        return self.status == "failed" and bool(self._field("is_fault_of_plugin", bool))

    @property
    def steps_done(self) -> int:
        """Steps that the manifest says were done."""
        return self._field("steps_done", int) or 0

    @functools.cached_property
    def has_rows(self) -> bool:
        """Whether a CSV has a row; one that cannot be read counts as having some."""
        return any(map(_has_rows, self.csvs))

    def _field(self, name: str, kind: type[_Value]) -> _Value | None:
        value = self.tree.get(name) if self.tree else None
        return value if isinstance(value, kind) else None


def siblings_in(folder: Path) -> Iterator[Sibling]:
    """Yield the runs in a folder by name: every CSV and every folder with a manifest or a lock. Nothing is raised."""
    csvs: dict[str, list[Path]] = {}
    folders: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # a loop of links
                with contextlib.suppress(OSError):
                    stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - faster, for thousands of entries
                    if entry.name.startswith(".") or is_litter(entry.name):
                        continue
                    if suffix.lower() == ".csv" and entry.is_file():
                        csvs.setdefault(stem, []).append(Path(entry.path))
                    elif entry.is_dir():
                        folders.add(entry.name)
    except OSError:
        return
    for name in sorted(csvs.keys() | folders):
        sibling = _sibling(name, folder / name, csvs.get(name, ()), has_folder=name in folders)
        if sibling is not None:
            yield sibling


def _sibling(name: str, folder: Path, csvs: Sequence[Path], *, has_folder: bool) -> Sibling | None:
    tree, is_damaged = None, False
    if has_folder:
        try:
            tree = read_tree(folder / MANIFEST_NAME)
        except RecordError:
            is_damaged = True
    if not csvs and tree is None and not is_damaged and not (folder / LOCK_NAME).is_file():
        return None
    identity = Identity.of_name(name)
    if tree is not None:
        try:
            identity = _identity_in(tree)
        except ValueError:
            tree, is_damaged = None, True
    return Sibling(name=name, folder=folder, csvs=csvs, tree=tree, is_damaged=is_damaged, identity=identity)


def _identity_in(tree: dict[str, Any]) -> Identity | None:
    """Return the identity in a manifest as JSON, None where it tells none; raises ValueError where it is damaged."""
    if tree.get("external") is not None:
        external, data = ExternalRun.model_validate(tree["external"]), tree.get("data")
        return Identity.of_external(external, data if isinstance(data, dict) else {})
    config = tree.get("config")
    known = Identity.of_tree(config, tree.get("plugins")) if isinstance(config, dict) else None
    if known is None:
        raise ValueError("no config")
    return known


@functools.cache
def _defaults() -> dict[str, Any]:
    """Return the config's fields at their default: a manifest of an earlier version lacks those added since."""
    return dict(flatten(RunConfig().model_dump(mode="json")))


def _settings(tree: dict[str, Any]) -> str:
    fields = _defaults() | dict(flatten(tree))
    return json.dumps({name: fields[name] for name in sorted(fields) if name not in MAY_DIFFER})


@functools.lru_cache(maxsize=1024)
def _arms(interventions: str) -> tuple[str, str]:
    """Return the label of an arm given as JSON, and that with all settings.

    Raises ValueError or TypeError where it is not one.
    """
    try:
        specs = tuple(InterventionSpec.model_validate(spec) for spec in json.loads(interventions))
    except ValidationError as error:
        raise ValueError("not interventions") from error
    config = RunConfig(interventions=specs)
    return config.arm, full_label(config)


def _has_rows(csv: Path) -> bool:
    """Whether a CSV has a row: by its beginning, which tells for any file that is not very odd."""
    try:
        with csv.open("rb") as file:
            lines = file.read(_BEGINNING).split(b"\n")
        if lines[0].startswith(b"Step,") and len(lines) > 2 and lines[1].strip():
            return True
        read(csv)
    except NoRowsError:
        return False
    except (OSError, RecordError):
        return True
    return True
