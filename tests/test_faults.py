"""A fraction of the faults of `tests.faults`; that a loss would be noticed; and the library that makes the faults."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bitnetctl import checkpoint
from bitnetctl.config import RunConfig
from bitnetctl.records import read_manifest, write_manifest
from bitnetctl.trainer.events import Event

if TYPE_CHECKING:
    from faults.bench import Truth

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the faults need Linux"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) to build the faults with"),
]


@pytest.fixture(autouse=True)
def importable_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def cases_without_loss(folder: Path, *options: str) -> dict[str, int]:
    """Try the faults and return how many cases of each there were."""
    file = folder / "rows.json"
    command = [sys.executable, "-m", "tests.faults", *options, "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert not any(row["lost"] for row in rows)
    return {row["fault"]: row["cases"] for row in rows}


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("BITNETCTL_EVERY_FAULT"), reason="takes 40 minutes; set BITNETCTL_EVERY_FAULT=1")
def test_nothing_is_lost_by_any_fault(tmp_path: Path) -> None:
    assert sum(cases_without_loss(tmp_path).values()) > 150_000


@pytest.mark.slow
def test_nothing_is_lost(tmp_path: Path) -> None:
    tried = cases_without_loss(tmp_path, "--quick")
    few = {fault for fault, cases in tried.items() if cases < 2}
    assert few == {fault for fault in tried if fault.endswith("of all checkpoints damaged")}
    for file in ("run.json, lock, folders", "the CSV", "a checkpoint"):
        assert {f"killed before a write call: {file}", f"killed in the middle of, or after, one: {file}"} <= set(tried)
    assert sum(cases for fault, cases in tried.items() if fault.startswith("rolled back after it diverged")) >= 4
    for kind in ("killed before a write", "at a random moment", "sweep killed", "two sweeps", "pack killed"):
        assert any(kind in fault for fault in tried), kind
    for kind in ("ENOSPC", "EIO", "EROFS", "EACCES", "disk full", "run.json", "the CSV", "optimizer.safetensors"):
        assert any(kind in fault for fault in tried), kind


# losses that the fault tests must notice


@pytest.fixture
def truth(train: Callable[..., list[Event]], tiny_config: Callable[..., RunConfig], tmp_path: Path) -> "Truth":
    """An undisturbed run, and its like under `runs`."""
    from faults.bench import RUN, STEPS, Truth
    from faults.hook import Call

    for folder in ("undisturbed", "runs"):
        train(tiny_config(steps=STEPS), names=[RUN], runs_dir=folder)
    calls = [Call("rename", f"/{RUN}/checkpoints/step-{step:08d}") for step in (4, 8, 12)]
    return Truth(tmp_path / "undisturbed", calls, 0.0)


def lose_a_row(runs: Path) -> None:
    csv = runs / "run.csv"
    lines = csv.read_bytes().splitlines(keepends=True)
    csv.write_bytes(b"".join(lines[:2] + lines[3:]))


def double_a_row(runs: Path) -> None:
    csv = runs / "run.csv"
    lines = csv.read_bytes().splitlines(keepends=True)
    csv.write_bytes(b"".join(lines[:3] + lines[2:]))


def change_a_value(runs: Path) -> None:
    csv = runs / "run.csv"
    csv.write_bytes(csv.read_bytes().replace(b"\n4,", b"\n4,1", 1))


def change_a_weight(runs: Path) -> None:
    path = checkpoint.path_of(runs / "run" / "checkpoints", 12) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


def say_running(runs: Path) -> None:
    manifest = read_manifest(runs / "run")
    assert manifest is not None
    write_manifest(runs / "run", manifest.model_copy(update={"status": "running"}))


def leave_litter(runs: Path) -> None:
    (runs / ".run.csv.0123abcd").touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_a_row, "the CSV differs"),
        (double_a_row, "the CSV differs"),
        (change_a_value, "the CSV differs"),
        (change_a_weight, "the weights differ"),
        (say_running, "run.json does not say finished"),
        (leave_litter, "other files are there: ['.run.csv.0123abcd']"),
    ],
)
def test_a_loss_at_the_end_is_noticed(
    truth: "Truth", tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    runs = tmp_path / "runs"
    assert truth.finished(runs) is None
    spoil(runs)
    assert message in (truth.finished(runs) or "")


def test_a_loss_in_between_is_noticed(truth: "Truth", tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    csv = runs / "run.csv"
    whole = csv.read_bytes()
    # call 4 is after the last rename, call 3 before it
    assert truth.intact(runs, "run", 4) is None
    assert truth.intact(runs, "run", 3) == "run: of the checkpoints [4, 8], [12] are left"
    # a torn row is no loss
    csv.write_bytes(whole + b"13,1.")
    assert truth.intact(runs, "run", 4) is None
    for spoil in (lose_a_row, double_a_row, change_a_value):
        csv.write_bytes(whole)
        spoil(runs)
        assert "rows in the CSV are not those" in (truth.intact(runs, "run") or "")
    csv.write_bytes(whole)
    change_a_weight(runs)
    assert "model.safetensors is damaged" in (truth.intact(runs, "run") or "")


# the library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from faults import hook
    return hook.build(tmp_path_factory.mktemp("hook"))


WRITES = """
import os, sys
from pathlib import Path
from tests.faults.hook import Fault, Hook, Mode

folder = Path(sys.argv[1])
hook = Hook()
hook.arm(folder, Fault(Mode(int(sys.argv[2])), int(sys.argv[3]), 28))
said = []
def attempt(call, *arguments, **named):
    try:
        return call(*arguments, **named)
    except OSError as error:
        said.append(error.errno)
attempt(os.mkdir, folder / "a")
attempt((folder / "a" / "elsewhere").exists)
descriptor = attempt(os.open, folder / "file", os.O_WRONLY | os.O_CREAT)
if descriptor is not None:
    attempt(os.write, descriptor, b"0123456789")
    attempt(os.fsync, descriptor)
    attempt(os.ftruncate, descriptor, 4)
    os.close(descriptor)
attempt(os.rename, folder / "file", folder / "a" / "file")
attempt(os.open, folder / "a", os.O_RDONLY)
Path(str(folder) + "-beside").touch()
inside = os.open(folder / "a", os.O_RDONLY) if (folder / "a").exists() else None
if inside is not None:
    attempt(os.unlink, "file", dir_fd=inside)
attempt(os.rmdir, folder / "a")
print(*said, "|", *(f"{call.name}{call.path}" for call in hook.disarm()))
"""
CALLS = "mkdir/a open/file write/file fsync/file ftruncate/file rename/a/file unlink/a/file rmdir/a"


@pytest.mark.parametrize(
    ("mode", "at", "said"),
    [
        ("COUNT", 0, f"| {CALLS}"),
        ("REFUSE_ONCE", 3, f"28 | {CALLS}"),
        ("REFUSE_FROM", 6, f"28 28 28 | {CALLS}"),
        # half of the write is done, and only calls that need space are refused
        ("FILL_UP", 3, f"28 | {CALLS}"),
    ],
)
def test_calls_below_the_folder_are_counted_and_refused(
    library: Path, tmp_path: Path, mode: str, at: int, said: str
) -> None:
    assert writes(library, tmp_path / "folder", mode, at).stdout.strip() == said


@pytest.mark.parametrize(
    ("mode", "at", "left"),
    [
        ("KILL_BEFORE", 3, {"a": None, "file": b""}),
        ("KILL_AFTER", 3, {"a": None, "file": b"01234"}),
        ("KILL_BEFORE", 4, {"a": None, "file": b"0123456789"}),
        ("KILL_AFTER", 5, {"a": None, "file": b"0123"}),
        ("KILL_AFTER", 6, {"a": None, "a/file": b"0123"}),
    ],
)
def test_a_kill_leaves_what_was_done_before(
    library: Path, tmp_path: Path, mode: str, at: int, left: dict[str, bytes | None]
) -> None:
    folder = tmp_path / "folder"
    assert writes(library, folder, mode, at).returncode == -9
    assert left == {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def writes(library: Path, folder: Path, mode: str, at: int) -> "subprocess.CompletedProcess[str]":
    """Run WRITES with a fault."""
    from faults import hook

    folder.mkdir()
    number = hook.Mode[mode].value
    environment = {**os.environ, **hook.environment(library), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITES, str(folder), str(number), str(at)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
