"""Which files the paths of a command line stand for."""

import os
from pathlib import Path

import pytest
from rows import FIVE, csv_file

from bitnetctl.errors import ConfigError
from bitnetctl.records.find import find_csvs, find_files, is_litter, original_stem

ROWS = FIVE + "1,2,3,4,5\n"
LITTER = ["._x.csv", ".~lock.x.csv#", ".x.csv.swp", "~$x.csv", "Thumbs.db", "desktop.ini", ".DS_Store"]


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("name", LITTER)
def test_files_that_programs_put_beside_others_are_left_out(tmp_path: Path, name: str) -> None:
    path = csv_file(tmp_path, ROWS)
    litter = csv_file(tmp_path, b"\0\5\26\7\0\2\0\0Mac OS X", name)
    (tmp_path / ".hidden.csv").write_text(ROWS, encoding="utf-8")
    assert is_litter(name)
    assert find_csvs([str(tmp_path)]) == [path]
    assert find_csvs([f"{tmp_path}/*.csv"]) == [path]
    # as a shell expands a pattern
    found = find_files([str(litter), str(path)])
    assert (found.csvs, found.skipped) == ([path], [litter])
    with pytest.raises(ConfigError, match="not a CSV but a hidden file that another program put there"):
        find_csvs([str(litter)])
    assert names(find_csvs([f"{tmp_path}/.hidden.csv"])) == [".hidden.csv"]


@pytest.mark.parametrize("name", ["x.csv", "run[1].csv", "~x.csv", "x#.csv", "copy.csv", "._"])
def test_names_that_are_no_litter(name: str) -> None:
    assert is_litter(name) == (name == "._")


def test_glob_characters_in_names(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]*"
    folder.mkdir()
    paths = [csv_file(folder, ROWS, name) for name in ("run[1].csv", "what?.csv")]
    assert find_csvs([str(folder)]) == paths
    assert find_csvs([str(path) for path in paths]) == paths
    assert find_csvs([f"{tmp_path}/a*/run*.csv"]) == paths[:1]


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = csv_file(tmp_path, ROWS)
    assert find_csvs(["~/x.csv"]) == find_csvs(["~"]) == find_csvs(["~/*.csv"]) == [path]
    monkeypatch.chdir(tmp_path)
    csv_file(tmp_path, ROWS, "~")
    assert find_csvs(["~"]) == [Path("~")]


def test_the_folder_of_a_run_stands_for_its_csv(tmp_path: Path) -> None:
    path = csv_file(tmp_path, ROWS)
    folder = tmp_path / "x"
    folder.mkdir()
    with pytest.raises(ConfigError, match="no CSV in this folder"):
        find_csvs([str(folder)])
    (folder / "run.json").write_text("{}", encoding="utf-8")
    assert find_csvs([str(folder)]) == [path]
    assert find_csvs([str(path), str(folder)]) == [path]


def test_a_folder_with_the_runs_below(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    path = csv_file(tmp_path / "runs", ROWS)
    assert find_csvs([str(tmp_path)]) == [path]
    other = csv_file(tmp_path, ROWS, "y.csv")
    assert find_csvs([str(tmp_path)]) == [other]


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfc\xdfe.csv"))
    try:
        path.write_text(ROWS, encoding="utf-8")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    assert find_csvs([str(tmp_path)]) == [path]


@pytest.mark.parametrize(
    ("stem", "original"),
    [
        ("h64-40-baseline-s0-abcdef (1)", "h64-40-baseline-s0-abcdef"),
        ("h64-40-baseline-s0-abcdef(2)", "h64-40-baseline-s0-abcdef"),
        ("h64-40-baseline-s0-abcdef - Copy", "h64-40-baseline-s0-abcdef"),
        ("h64-40-baseline-s0-abcdef - Copy (3)", "h64-40-baseline-s0-abcdef"),
        ("h64-40-baseline-s0-abcdef copy 2", "h64-40-baseline-s0-abcdef"),
        ("h64-40-baseline-s0-abcdef (copy)", "h64-40-baseline-s0-abcdef"),
        ("h64-40-baseline-s0-abcdef (3rd copy)", "h64-40-baseline-s0-abcdef"),
        ("h64-40-baseline-s0-abcdef 2", "h64-40-baseline-s0-abcdef"),
        ("h64-40-baseline-s0-abcdef~2", "h64-40-baseline-s0-abcdef"),
        ("Copy of h64-40-baseline-s0-abcdef", "h64-40-baseline-s0-abcdef"),
        ("h64-40-baseline-s0-abcdef", "h64-40-baseline-s0-abcdef"),
        ("copy", "copy"),
        ("(1)", "(1)"),
        ("run (2024)", "run (2024)"),
    ],
)
def test_the_name_of_a_copy(stem: str, original: str) -> None:
    assert original_stem(stem) == original


def test_a_pattern_below_a_folder_with_glob_characters(tmp_path: Path) -> None:
    folder = tmp_path / "runs [old] *"
    folder.mkdir()
    csv = folder / "h256.csv"
    csv.touch()
    assert find_csvs([f"{folder}/*.csv"]) == [csv]
    with pytest.raises(ConfigError, match="no file matches"):
        find_csvs([f"{folder}/no/*.csv"])


def test_a_link_to_nowhere_is_a_run_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    (tmp_path / "y.csv").symlink_to("nowhere")
    assert [csv.name for csv in find_csvs([str(tmp_path)])] == ["x.csv", "y.csv"]
