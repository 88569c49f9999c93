"""Names that are file names everywhere, writes that are whole or not at all, room on the disk."""

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from bitnetctl.errors import ConfigError, ExitCode, StorageError
from bitnetctl.files import (
    remove,
    remove_leftovers,
    replacing,
    require_space,
    safe_name,
    storage_errors,
    sync_folder,
    write_atomic,
)


@pytest.mark.parametrize(
    "name",
    ["h256-20000-wd-schedule+reduced-lr-s0-1a2b3c", "a", "7", "A.b_c=d", "a..b", "console", "auxiliary", "a" * 200],
)
def test_plain_names_pass(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "C:x", "~"),
        *("a\0b", "a\n", "a b", "é", "-rf", ".hidden", "_x", "a.", "a..", "a" * 201, "a" * 300),
        *("CON", "con", "nul", "Aux.txt", "COM1", "lpt9.csv", "prn.a.b"),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        safe_name(name, kind="plan")
    message = str(caught.value)
    assert message.startswith("plan name ")
    assert "\n" not in message
    assert len(message) < 300
    assert caught.value.exit_code is ExitCode.USAGE


@given(st.text() | st.text(alphabet="./\\aN:~-", max_size=5))
def test_a_name_never_leaves_its_folder(name: str) -> None:
    try:
        safe_name(name)
    except ConfigError:
        return
    assert (Path("/runs") / name).resolve() == Path("/runs", name)
    assert Path(name).parts == (name,)


def test_write_atomic_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "run.json"
    for content in (b"old", b"new"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, ExitCode.USAGE),
        (errno.EDQUOT, ExitCode.USAGE),
        (errno.EROFS, ExitCode.USAGE),
        (errno.EACCES, ExitCode.USAGE),
        (errno.EIO, ExitCode.INTERNAL),
    ],
)
@pytest.mark.parametrize("old", [b"old", None])
def test_a_refused_write_keeps_the_old_file_and_leaves_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: ExitCode, old: bytes | None
) -> None:
    path = tmp_path / "run.json"
    if old is not None:
        path.write_bytes(old)

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError) as caught:
        write_atomic(path, b"new")
    assert caught.value.exit_code is code
    remedy = "; take a folder on a disk that can be written" if number == errno.EROFS else ""
    assert str(caught.value) == f"{path}: cannot write: {os.strerror(number)}{remedy}"
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([] if old is None else [old])


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"old")

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(errno.ENOSPC))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: refuse(errno.EIO))
    with pytest.raises(StorageError, match="No space left") as caught:
        write_atomic(tmp_path / "run.json", b"new")
    assert caught.value.exit_code is ExitCode.USAGE


def test_leftovers_of_one_file_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ["a[b].csv", ".a[b].csv", ".ab.csv.0123abcd", ".a[b].csv.long-name", "a[b].csv.0123abcd"]
    for name in (*kept, ".a[b].csv.0123abcd", ".a[b].csv.fedc9876"):
        (tmp_path / name).write_bytes(b"")
    with monkeypatch.context() as patch:
        # what cannot be deleted is left
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: (_ for _ in ()).throw(PermissionError))
        remove_leftovers(tmp_path / "a[b].csv")
    remove_leftovers(tmp_path / "a[b].csv")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)
    remove_leftovers(tmp_path / "nowhere" / "a.csv")


def test_content_is_synced_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    seen: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_atomic(path, b"new")
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("below", ["run.json", "runs/run.json"])
def test_a_file_in_place_of_a_folder_is_the_users_to_mend(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        write_atomic(tmp_path / "file" / below, b"new")
    assert caught.value.exit_code is ExitCode.USAGE


def test_storage_errors_pass_other_errors_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), storage_errors(tmp_path):
        _ = 1 / 0


def test_sync_folder_needs_a_folder(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "none")


def test_require_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def usage(path: Any) -> SimpleNamespace:
        requested.append(Path(path))
        return SimpleNamespace(free=2 * 2**30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    folder = tmp_path / "not" / "yet"
    require_space(folder, 2 * 2**30)
    with pytest.raises(StorageError) as caught:
        require_space(folder, 3 * 2**30)
    assert caught.value.exit_code is ExitCode.USAGE
    assert str(caught.value) == f"{folder}: no space left: about 3.00 GiB needed, 2.00 GiB free"
    assert requested == [tmp_path, tmp_path]
    assert not folder.parent.exists()


def test_require_space_takes_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_space(Path("runs"), 1)
    with pytest.raises(StorageError, match="runs: no space left"):
        require_space(Path("runs"), 2**80)


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "saved"
    for content in ("one", "two"):
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
        assert [entry.name for entry in target.iterdir()] == [content]
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]


def test_a_block_that_raises_or_deletes_what_it_wrote_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "saved"
    target.mkdir()
    (target / "old").touch()
    with contextlib.suppress(KeyError), replacing(target) as temporary:
        temporary.mkdir()
        raise KeyError
    with replacing(target) as temporary:
        temporary.mkdir()
        remove(temporary)
    assert [entry.name for entry in target.iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]


def test_a_rename_that_is_refused_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "saved"
    target.mkdir()
    (target / "old").touch()
    rename, calls = Path.rename, iter((True, False, True))
    monkeypatch.setattr(
        Path, "rename", lambda path, to: rename(path, to) if next(calls) else (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError), replacing(target) as temporary:  # noqa: PT011 - any refusal
        temporary.mkdir()
    assert [entry.name for entry in target.iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]
