"""Which files a pattern names."""

import os
from pathlib import Path

import pytest
from texts import failure

from bitnetctl.data.listing import named_files
from bitnetctl.data.sources import open_source

pytestmark = pytest.mark.usefixtures("token_cache")


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name}\n")


def read(root: Path, pattern: str) -> list[str]:
    """The names of the files that are read, within `root`."""
    return [path.relative_to(root).as_posix() for path in open_source(f"file:{root}/{pattern}").files]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("?.md", ["c.md"]),
        ("**/*.txt", ["a.txt", "b.txt", "deep/d.txt", "deep/er/e.txt"]),
        ("deep/**", ["deep/d.txt", "deep/er/e.txt"]),
        ("deep/**/e.*", ["deep/er/e.txt"]),
        ("**/er/*", ["deep/er/e.txt"]),
        ("d*/*.txt", ["deep/d.txt"]),
        ("deep/../a.txt", ["deep/../a.txt"]),
        # hidden files and the copies of attributes that macOS makes are read when they are named
        (".hidden.txt", [".hidden.txt"]),
        (".h*", [".hidden.txt"]),
        ("._a.txt", ["._a.txt"]),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    make(tmp_path, "a.txt", "b.txt", "c.md", "deep/d.txt", "deep/er/e.txt")
    make(tmp_path, ".hidden.txt", "._a.txt", ".git/x.txt", "deep/._d.txt")
    assert read(tmp_path, pattern) == expected


def test_attributes_of_macos_match_no_pattern(tmp_path: Path) -> None:
    make(tmp_path, "._a.txt")
    assert "the glob matches no file; hidden files must be named" in failure(f"file:{tmp_path}/.*")


def test_a_name_with_glob_characters_is_a_name_where_it_exists(tmp_path: Path) -> None:
    make(tmp_path, "part[1].txt", "part1.txt", "set[2]/x.txt", "set2/y.txt", "a*b.txt", "axb.txt")
    assert read(tmp_path, "part[1].txt") == ["part[1].txt"]
    assert read(tmp_path, "set[2]/*.txt") == ["set[2]/x.txt"]
    assert read(tmp_path, "a*b.txt") == ["a*b.txt"]
    (tmp_path / "part[1].txt").unlink()
    assert read(tmp_path, "part[1].txt") == ["part1.txt"]


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "deep/a.txt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("file:~/**/*.txt").files == (tmp_path / "deep" / "a.txt",)


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "deep/b.txt")
    for name in ("latest", "current", "deep/up", "deep/self"):
        (tmp_path / name).symlink_to(tmp_path if name != "deep/self" else tmp_path / "deep")
    assert read(tmp_path, "**/*.txt") == ["a.txt", "deep/b.txt"]
    # other patterns go through links as often as they say, and the file is the same one
    source = open_source(f"file:{tmp_path}/*/*.txt")
    assert len(source.files) == 2
    assert source.links > 0


def test_a_folder_behind_a_link_is_read(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/a.txt", "corpus/b.txt")
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path, "corpus/**/*.txt") == ["corpus/b.txt", "corpus/link/a.txt"]


def test_the_real_file_is_read_rather_than_its_link(tmp_path: Path) -> None:
    make(tmp_path, "z.txt")
    (tmp_path / "a.txt").symlink_to("z.txt")
    os.link(tmp_path / "z.txt", tmp_path / "zz.txt")
    source = open_source(f"file:{tmp_path}/*.txt")
    assert source.files == (tmp_path / "z.txt",)
    assert (source.links, source.copies) == (2, 0)


def test_what_names_no_file(tmp_path: Path) -> None:
    make(tmp_path, "deep/a.txt")
    assert "there is no such file" in failure(f"file:{tmp_path}/b.txt")
    assert "there is no such file" in failure(f"file:{tmp_path}/deep/a.txt/b.txt")
    assert "the glob matches no file" in failure(f"file:{tmp_path}/*.txt")
    assert "there is no such file; {a,b} is no pattern" in failure(f"file:{tmp_path}/{{a,b}}.txt")
    assert "the pattern matches folders only" in failure(f"file:{tmp_path}/*")
    assert f"is a folder; use 'file:{tmp_path}/deep/**/*.txt'" in failure(f"file:{tmp_path}/deep/")
    assert "there is no such file" in failure(f"file:{tmp_path}/{'x' * 5000}")


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "deep/a.txt")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    message = failure(f"file:{tmp_path}/deep/*.txt")
    assert f"{tmp_path}/deep: cannot read: Permission denied; check the name and its permissions" in message


def test_a_file_in_a_closed_folder_is_not_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", refuse)
    message = failure(f"file:{tmp_path}/closed/a.txt")
    assert f"{tmp_path}/closed: cannot read: Permission denied; check its permissions" in message


def test_files_are_sorted(tmp_path: Path) -> None:
    make(tmp_path, "b.txt", "a/z.txt", "a.txt")
    names = [path.relative_to(tmp_path).as_posix() for path in named_files("x", f"{tmp_path}/**/*.txt")]
    assert names == ["a.txt", "a/z.txt", "b.txt"]
