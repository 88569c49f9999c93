"""Where the files of a run are, and names and links that are refused."""

from pathlib import Path

import pytest

from bitnetctl.errors import ConfigError
from bitnetctl.records import RunPaths


def test_the_files_of_a_run() -> None:
    paths = RunPaths(Path("runs"), "x")
    assert paths.csv == Path("runs/x.csv")
    assert paths.folder == Path("runs/x")
    assert paths.manifest == Path("runs/x/run.json")
    assert paths.checkpoints == Path("runs/x/checkpoints")
    assert paths.lock == Path("runs/x/run.lock")
    assert RunPaths(Path(), "h256-a.b").csv == Path("h256-a.b.csv")


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b", "a\\b", ".x", "con", "x\n", "x.csv", "x.CSV", ".csv", "my results", "é", "a" * 201],
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        RunPaths(Path("runs"), name)


@pytest.mark.parametrize("link", ["x", "x.csv", "x/checkpoints", "x/run.json", "x/run.lock"])
def test_links_out_of_the_runs_folder_are_refused(tmp_path: Path, link: str) -> None:
    runs = tmp_path / "runs"
    (runs / link).parent.mkdir(parents=True)
    (runs / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of"):
        RunPaths(runs, "x")


def test_a_sibling_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").symlink_to(tmp_path / "runs-old")
    with pytest.raises(ConfigError, match="leads out of"):
        RunPaths(tmp_path / "runs", "x")


def test_links_inside_the_runs_folder_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "real")
    assert RunPaths(tmp_path / "runs", "x").csv.parent == tmp_path / "runs"


def test_a_circular_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "x")
    try:
        paths = RunPaths(tmp_path, "x")
    except ConfigError as error:
        assert "cannot be resolved" in str(error)  # noqa: PT017 - newer Pythons resolve a circular link to itself
    else:
        assert paths.folder == tmp_path / "x"
