"""Files of every released schema version stay readable, and a run resumes from them.

`tests/fixtures/schema-N` was written by `tests/fixtures/make.py` of that version and is never changed.
"""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import call
from training import open_trainer

from bitnetctl import checkpoint
from bitnetctl.config import canonical_hash, parse_config
from bitnetctl.errors import CheckpointError, ExitCode
from bitnetctl.plugins import registry
from bitnetctl.records import SCHEMA_VERSION, Manifest, PluginInfo, RunPaths, load_run, read, read_manifest
from bitnetctl.records.recorded import RunsFolder
from bitnetctl.trainer import loop
from bitnetctl.trainer.events import Event
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import resolve

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = sorted(path.name for path in FIXTURES.glob("schema-*"))


class Old:
    """A copy of the files of one version, with the values that they must give."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.version = version
        self.expected: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        self.finished, self.stopped = (
            RunPaths(folder / "runs", self.expected[name]) for name in ("finished", "stopped")
        )
        self.packed = [RunPaths(folder / "runs", name) for name in self.expected["packed"]]

    def manifest(self, paths: RunPaths) -> Manifest:
        manifest = read_manifest(paths.folder)
        assert manifest is not None
        return manifest


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Old:
    """The files, in the working directory of their runs, with their text, tokenizer and token cache."""
    folder = tmp_path / "old"
    shutil.copytree(FIXTURES / request.param, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return Old(folder, int(request.param.removeprefix("schema-")))


def test_every_version_has_its_files() -> None:
    assert f"schema-{SCHEMA_VERSION}" in VERSIONS
    assert f"schema-{checkpoint.SCHEMA_VERSION}" in VERSIONS


def test_the_rows_are_read(old: Old) -> None:
    for paths in (old.finished, old.stopped, *old.packed):
        records = read(paths.csv)
        assert records.notes == ()
        assert records.extra == ()
        assert records.frame["Loss"].tolist() == old.expected["losses"][paths.name]


def test_bits_per_byte_are_known_since_version_2(old: Old) -> None:
    records = read(old.finished.csv)
    assert records.has_values("HeldOutBitsPerByte") == (old.version >= 2)
    if old.version >= 2:
        # every token of this tokenizer is one byte, and no text ends within the probe
        expected = records.frame["HeldOutLoss"] / math.log(2)
        assert records.frame["HeldOutBitsPerByte"].tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_the_manifests_are_read(old: Old) -> None:
    for paths, status, steps in ((old.finished, "finished", 12), (old.stopped, "stopped", 6)):
        manifest = old.manifest(paths)
        assert (manifest.run, manifest.status, manifest.steps_done) == (paths.name, status, steps)
        run = load_run(paths.csv)
        assert (run.size, run.seed, run.planned_steps, run.is_complete) == (4, 0, 12, steps == 12)
    assert [plugin.name for plugin in old.manifest(old.stopped).plugins] == ["reduced-lr", "label-smoothing"]


def test_a_config_has_the_hash_it_had(old: Old) -> None:
    for name, expected in old.expected["hashes"].items():
        manifest = old.manifest(RunPaths(old.folder / "runs", name))
        config = parse_config(manifest.requested())
        assert config.hash == manifest.config_hash == expected
        assert config.run_name == name
        # settings left at their default still have the default, so that the run is found by them under its old name
        normalized = registry.normalize(config)
        assert [str(spec) for spec in normalized.interventions] == [str(spec) for spec in config.interventions]
        found = RunsFolder(old.folder / "runs").find(normalized)
        assert (found.paths.name, found.config_hash) == (name, expected)


def test_the_checkpoint_holds_what_was_saved(old: Old) -> None:
    assert checkpoint.steps(old.stopped.checkpoints) == [6]
    state = checkpoint.load(checkpoint.path_of(old.stopped.checkpoints, 6))
    assert state.step == 6
    assert state.config_hash == old.expected["hashes"][old.stopped.name]
    assert state.data_fingerprint == old.expected["data_fingerprint"]
    for kind, expected in old.expected["tensors"].items():
        checksums = {
            name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
            for name, tensor in getattr(state, kind).items()
        }
        assert checksums == expected


def resume(old: Old, *paths: RunPaths) -> list[Event]:
    """Train the stopped runs, as one pack, to their end and return the events."""
    paths = paths or (old.stopped,)
    configs = [parse_config(old.manifest(of_run).requested()) for of_run in paths]
    steps: list[str] = []
    options = TrainOptions(runs_dir=old.folder / "runs", device="cpu", progress=lambda what, *_: steps.append(what))
    with open_trainer(configs, options, names=[of_run.name for of_run in paths]) as session:
        assert session.start_step == 6
        events = list(loop.train(session))
    # tokens and references came from the old cache
    assert not any("rebuilding" in step or "recounting" in step or "training tokenizer" in step for step in steps)
    return events


def assert_resumed(old: Old, paths: RunPaths, before: bytes) -> None:
    assert paths.csv.read_bytes().startswith(before)
    assert read(paths.csv).frame["Step"].tolist() == [1, 3, 6, 9, 12]
    manifest = old.manifest(paths)
    assert (manifest.status, manifest.steps_done) == ("finished", 12)
    assert resolve(parse_config(manifest.requested()), old.folder / "runs").ended() is not None


def test_a_stopped_run_resumes(old: Old) -> None:
    before = old.stopped.csv.read_bytes()
    assert resume(old)
    assert_resumed(old, old.stopped, before)


def test_a_stopped_run_resumes_after_its_line_ends_were_changed(old: Old) -> None:
    before = old.stopped.csv.read_bytes()
    old.stopped.csv.write_bytes(b"\xef\xbb\xbf" + before.replace(b"\n", b"\r\n"))
    assert resume(old)
    assert_resumed(old, old.stopped, before)


@pytest.mark.parametrize("together", [True, False], ids=["pack", "alone"])
def test_a_stopped_pack_resumes(together: bool, old: Old) -> None:
    for paths in old.packed:
        assert old.manifest(paths).pack == [each.name for each in old.packed]
    before = [paths.csv.read_bytes() for paths in old.packed]
    for group in [old.packed] if together else [[paths] for paths in old.packed]:
        assert resume(old, *group)
    for paths, rows in zip(old.packed, before, strict=True):
        assert_resumed(old, paths, rows)


def test_a_run_that_was_rolled_back_keeps_its_lower_rate(old: Old) -> None:
    plain, rolled_back = old.packed
    (rollback,) = old.manifest(rolled_back).rollbacks
    assert (rollback.diverged_at, rollback.resumed_from) == (4, 3)
    assert rollback.tensor == "the weight model.embed_tokens.weight"
    assert load_run(rolled_back.csv).diverged_at == 4
    resume(old, *old.packed)
    assert old.manifest(rolled_back).rollbacks == [rollback]
    rates = [read(paths.csv).frame["LR"].tolist() for paths in (plain, rolled_back)]
    assert rates[1] == [rate * factor for rate, factor in zip(rates[0], [1, 1, 0.5, 0.5, 0.5], strict=True)]


def test_a_finished_run_has_ended(old: Old) -> None:
    config = parse_config(old.manifest(old.finished).requested())
    assert resolve(config, old.folder / "runs").ended() == old.manifest(old.finished)


@pytest.mark.parametrize("command", ["analyze", "verify"])
def test_old_files_are_judged(command: str, old: Old) -> None:
    done = call(command, "runs", "origin.csv", "--json")
    assert done.code not in (ExitCode.USAGE, ExitCode.INTERNAL), done.err
    assert json.loads(done.out)


def test_the_origins_five_columns(old: Old) -> None:
    records = read(old.folder / "origin.csv")
    assert records.title == "BitNet scaling test: hidden=256, 10000 steps, WD 0.1 -> 0.0, Step 5000"
    assert records.frame["UniquePredictions"].tolist() == [20, 5, 2, 6, 11]
    assert not records.has_values("HeldOutLoss")
    run = load_run(old.folder / "origin.csv")
    assert (run.size, run.boundary_step, run.ceiling) == (256, 5000, (20, True))


def test_a_plugin_of_an_old_manifest_has_no_code(old: Old) -> None:
    known = {"name": "reduced-lr", "version": "0.1.0", "distribution": "bitnetctl", "settings": {"peak": 1e-3}}
    plugin = PluginInfo.model_validate(known)
    assert (plugin.module, plugin.source_sha256) == (None, None)


def test_the_files_are_small() -> None:
    for version in VERSIONS:
        assert sum(path.stat().st_size for path in (FIXTURES / version).rglob("*") if path.is_file()) < 110_000


STATES: dict[str, Any] = {
    "version as text": {"schema_version": "1"},
    "list of checksums": {"sha256": ["a"]},
    "checksum of another file": {"sha256": {"../../../../text.txt": "a"}},
    "checksum of an endless file": {"sha256": {"/dev/zero": "a"}},
    "step as text": {"step": "6"},
    "step before the first": {"step": -1},
    "interventions as a number": {"interventions": 5},
    "interventions of another shape": {"interventions": [[], {}]},
    "too few interventions": {"interventions": []},
    "hash as a number": {"config_hash": 5},
}


@pytest.mark.parametrize("change", STATES)
def test_a_state_of_another_shape_is_refused(change: str, old: Old) -> None:
    path = checkpoint.path_of(old.stopped.checkpoints, 6) / "state.json"
    state = json.loads(path.read_text(encoding="utf-8")) | STATES[change]
    del state["state_sha256"]
    path.write_text(json.dumps({**state, "state_sha256": canonical_hash(state)}), encoding="utf-8")
    with pytest.raises(CheckpointError):
        resume(old)


@pytest.mark.parametrize("content", ["[" * 100_000, "5", "null", "[]", "{}"])
def test_a_state_that_is_no_state_is_refused(content: str, old: Old) -> None:
    path = checkpoint.path_of(old.stopped.checkpoints, 6)
    (path / "state.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("harm", ["empty", "shape"])
def test_weights_of_another_model_are_refused(harm: str, old: Old) -> None:
    path = checkpoint.path_of(old.stopped.checkpoints, 6)
    state = checkpoint.load(path)
    model = {} if harm == "empty" else {name: torch.zeros(3) for name in state.model}
    checkpoint.save(old.stopped.checkpoints, replace(state, model=model))
    with pytest.raises(CheckpointError, match="does not fit the run"):
        resume(old)
