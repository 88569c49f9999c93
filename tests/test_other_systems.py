"""macOS and Windows, as far as they differ by what Python lacks there: no /proc, no users, fewer signals."""

import errno
import os
import signal
import sys
from pathlib import Path

import platformdirs
import psutil
import pytest
from calling import call, training

from bitnetctl import allowance, files, hardware
from bitnetctl.errors import ExitCode
from bitnetctl.files import blame, cache_folder, home_folder, owner, sync_folder, write_atomic
from bitnetctl.locks import Lock
from bitnetctl.signals import StopRequest

POSIX_ONLY = {
    os: ("getuid", "geteuid", "mkfifo", "fchmod", "sched_getaffinity", "O_DIRECTORY", "O_CLOEXEC"),
    signal: ("SIGHUP", "SIGUSR1", "SIGUSR2"),
}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system without the names of POSIX that this package uses, and without /proc and /sys."""
    for module, names in POSIX_ONLY.items():
        for name in names:
            monkeypatch.delattr(module, name, raising=False)
    for name in ("pwd", "grp", "resource"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    monkeypatch.setattr(allowance, "_CONTROL_GROUPS", tmp_path / "none")
    monkeypatch.setattr(allowance, "_OWN_GROUPS", tmp_path / "none")
    read = Path.read_text

    def without_proc(self: Path, *arguments: str, **named: str) -> str:
        if self.parts[:2] in (("/", "proc"), ("/", "sys")):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))
        return read(self, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", without_proc)
    hardware.cpu_info.cache_clear()


@pytest.mark.usefixtures("plain_environment", "elsewhere")
def test_a_run_trains_and_a_pack_has_several(tiny_text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(*training(tiny_text))
    assert done.code == ExitCode.SUPPORTED, done.err
    plan = call(
        "sweep", *training(tiny_text)[1:-4], "--sizes", "32", "--steps", "20", "--seeds", "3", "--dry-run", "--json"
    )
    assert plan.code == ExitCode.SUPPORTED, plan.err
    # of three, one is there
    assert [shape["runs_in_a_pack"] for shape in plan.json["shapes"]] == [2]


@pytest.mark.usefixtures("elsewhere")
def test_stop_signals_are_those_that_there_are() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.usefixtures("elsewhere")
def test_users_and_folders_without_posix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert owner(7001) == "user 7001"
    monkeypatch.delenv("HOME")
    assert home_folder() is None
    write_atomic(tmp_path / "a" / "x", b"1")
    monkeypatch.setattr(os, "access", lambda path, kind: False)
    assert blame(tmp_path / "a" / "x").startswith("it belongs to user ")


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_the_cache_is_where_the_system_has_it(platform: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(files, "home_folder", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "Caches" / name))
    assert cache_folder() == tmp_path / "Caches" / "bitnetctl"


def test_a_lock_that_windows_refuses_is_that_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.lock").touch()

    def refuse(self: object, *arguments: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(PermissionError):
        Lock(tmp_path / "x.lock").acquire()


@pytest.mark.parametrize(("number", "is_raised"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_syncs_files_only(
    tmp_path: Path, number: int, is_raised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if is_raised:
        with pytest.raises(OSError, match="Input/output error"):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)
