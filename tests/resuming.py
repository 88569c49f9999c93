"""Compare a run that was stopped and resumed with an undisturbed one; loaded as a pytest plugin by conftest.py."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.records import read_manifest
from bitnetctl.trainer import checkpoint
from bitnetctl.trainer.checkpoint import Checkpoint
from bitnetctl.trainer.events import Event, Started

TinyConfig = Callable[..., RunConfig]
Train = Callable[..., list[Event]]
Figures = Callable[[Path], list[bytes]]

RUNS, UNDISTURBED = Path("runs"), Path("undisturbed")


def saved(folder: Path, name: str, step: int) -> Checkpoint:
    return checkpoint.load(checkpoint.path_of(folder / name / "checkpoints", step))


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert ours
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.fixture
def assert_undisturbed(figures: Figures) -> Callable[..., None]:
    """Compare finished runs with the undisturbed ones: every byte of the figures, every bit of the weights."""

    def check(*names: str, steps: int = 12) -> None:
        for name in names:
            assert figures(RUNS / f"{name}.csv") == figures(UNDISTURBED / f"{name}.csv")
            assert_equal(saved(RUNS, name, steps).model, saved(UNDISTURBED, name, steps).model)
            found = read_manifest(RUNS / name)
            assert found is not None
            assert (found.status, found.steps_done) == ("finished", steps)

    return check


def assert_same_state(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Compare all that a run goes on from; of the rows, all but the measured speed."""
    assert_equal(ours.model, theirs.model)
    assert_equal(ours.optimizer, theirs.optimizer)
    assert_equal(ours.codes, theirs.codes)
    assert (ours.step, ours.interventions) == (theirs.step, theirs.interventions)
    rows = [[line.rpartition(b",")[0] for line in state.records.splitlines()] for state in (ours, theirs)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 1


def start_of(events: list[Event]) -> int:
    assert isinstance(events[0], Started)
    return events[0].start_step


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
