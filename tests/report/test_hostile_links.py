"""Links, locks and folders in the way: nothing is written or replaced outside the folder of runs."""

import errno
import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from calling import call
from configs import TinyConfig
from hostile import environment as environment, everything, refused, settings
from synthetic import quick, simple_run

from bitnetctl.errors import ExitCode


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the runs with something worth keeping in it."""
    folder = tmp_path / "outside"
    (folder / "checkpoints" / "step-00000004").mkdir(parents=True)
    for name in ("run.json", "run.lock", "x.csv", "checkpoints/step-00000004/state.json"):
        (folder / name).write_text("precious", encoding="utf-8")
    return folder


LINKS = {"{run}": ".", "{run}.csv": "x.csv", "{run}/run.json": "run.json", "{run}/run.lock": "run.lock"}
LINKS |= {"{run}/checkpoints": "checkpoints", "{run}/samples.json": "x.csv"}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_nothing_is_written_through_a_link_out_of_the_runs(
    link: str, command: str, outside: Path, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    config = tiny_config()
    path = tmp_path / "runs" / link.format(run=config.run_name)
    path.parent.mkdir(parents=True)
    path.symlink_to(outside / LINKS[link])
    before = everything(outside)
    assert "leads out of" in refused(call(command, *settings(config), "--runs-dir", tmp_path / "runs"))
    assert everything(outside) == before


def test_the_lock_of_a_sweep_is_no_link(outside: Path, tmp_path: Path, tiny_config: TinyConfig) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".claims.lock").symlink_to(outside / "run.lock")
    before = everything(outside)
    done = call("sweep", *settings(tiny_config()), "--runs-dir", tmp_path / "runs")
    assert done.code == ExitCode.USAGE
    assert "cannot write" in done.err.splitlines()[-1]
    assert everything(outside) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_disk_without_locks_is_refused(
    command: str, number: int, tmp_path: Path, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    done = call(command, *settings(tiny_config()), "--runs-dir", tmp_path / "runs")
    assert done.code == ExitCode.USAGE
    assert done.err.count("no locks (flock) here, take a folder on another disk\n") == done.err.count("error") == 1
    assert not list((tmp_path / "runs").rglob("run.json"))


def test_a_folder_in_place_of_a_lock_is_reported(tmp_path: Path, tiny_config: TinyConfig) -> None:
    config = tiny_config()
    (tmp_path / "runs" / config.run_name / "run.lock").mkdir(parents=True)
    assert "Is a directory" in refused(call("train", *settings(config), "--runs-dir", tmp_path / "runs"))


def test_runs_behind_links_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    csv_path = simple_run(tmp_path / "real", quick())
    (tmp_path / "link.csv").symlink_to(csv_path)
    (tmp_path / "runs").symlink_to(tmp_path / "real")
    for path in ("link.csv", "runs"):
        assert call("analyze", path).code == ExitCode.SUPPORTED
    assert len(call("analyze", "link.csv", "runs", csv_path, "--json").json["runs"]) == 1


@pytest.mark.parametrize("kind", ["dangling", "circle", "folder"])
def test_links_to_nothing(kind: str, tmp_path: Path) -> None:
    target = {"dangling": "nowhere", "circle": "x.csv", "folder": "."}[kind]
    (tmp_path / "x.csv").symlink_to(target)
    for command in ("analyze", "verify"):
        refused(call(command, "x.csv"))
        refused(call(command, "."))


@pytest.mark.parametrize("option", ["--markdown", "--html", "--csv"])
def test_a_report_replaces_a_link_and_not_its_target(option: str, outside: Path, tmp_path: Path) -> None:
    csv_path = simple_run(tmp_path, quick())
    (tmp_path / "report").symlink_to(outside / "x.csv")
    before = everything(outside)
    assert call("analyze", csv_path, option, "report").code == ExitCode.SUPPORTED
    assert everything(outside) == before
    assert not (tmp_path / "report").is_symlink()


@pytest.mark.parametrize("option", ["--markdown", "--html", "--csv"])
def test_a_report_never_replaces_a_run(option: str, tmp_path: Path) -> None:
    csv_path = simple_run(tmp_path, quick())
    (tmp_path / "again.csv").symlink_to(csv_path)
    before = csv_path.read_bytes()
    for path in (csv_path, Path(csv_path.name), tmp_path / "again.csv"):
        assert "is one of the files given" in refused(call("analyze", csv_path, option, path))
    assert csv_path.read_bytes() == before
