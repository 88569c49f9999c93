"""Read the files of a run and compare them with those of an undisturbed one."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitnetctl import checkpoint
from bitnetctl.checkpoint import Checkpoint
from bitnetctl.config import RunConfig
from bitnetctl.records import Manifest, read_manifest
from bitnetctl.trainer.events import Event, Started

Train = Callable[..., list[Event]]

RUNS, UNDISTURBED = Path("runs"), Path("undisturbed")


def manifest(run: RunConfig | str, runs_dir: Path = RUNS) -> Manifest:
    """Return the manifest of a run that has one."""
    manifest = read_manifest(runs_dir / (run if isinstance(run, str) else run.run_name))
    assert manifest is not None
    return manifest


def saved(folder: Path, name: str, step: int) -> Checkpoint:
    """Load a checkpoint of a run."""
    return checkpoint.load(checkpoint.path_of(folder / name / "checkpoints", step))


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert ours
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def csv_without_speed(csv: Path) -> list[bytes]:
    """Return the lines of a run's CSV without the last column, the measured speed: all that is reproducible."""
    header, *rows = csv.read_bytes().splitlines()
    assert header.endswith(b",TokensPerSecond")
    return [line.rpartition(b",")[0] for line in (header, *rows)]


def assert_undisturbed(*names: str, steps: int = 12) -> None:
    """Compare finished runs with the undisturbed ones: all of the CSV but the speed, all weights."""
    for name in names:
        assert csv_without_speed(RUNS / f"{name}.csv") == csv_without_speed(UNDISTURBED / f"{name}.csv")
        assert_equal(saved(RUNS, name, steps).model, saved(UNDISTURBED, name, steps).model)
        assert (manifest(name).status, manifest(name).steps_done) == ("finished", steps)


def assert_same_state(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Compare all that a run resumes from; of the rows, all but the measured speed."""
    assert_equal(ours.model, theirs.model)
    assert_equal(ours.optimizer, theirs.optimizer)
    assert_equal(ours.codes, theirs.codes)
    assert (ours.step, ours.interventions) == (theirs.step, theirs.interventions)
    rows = [[line.rpartition(b",")[0] for line in state.records.splitlines()] for state in (ours, theirs)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 1


def start_of(events: list[Event]) -> int:
    """Return the step after which a training started."""
    assert isinstance(events[0], Started)
    return events[0].start_step


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
