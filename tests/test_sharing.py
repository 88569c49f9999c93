"""A folder of runs that several people write into: modes of what is made there, locks, and who is named."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from configs import TinyConfig
from filelock import FileLock, Timeout
from training import resolved

from bitnetctl import files
from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError, RunRefusedError, StorageError
from bitnetctl.files import blame, cache_folder, make_folder, replacing, share, write_atomic
from bitnetctl.locks import Lock
from bitnetctl.records.writer import RecordWriter
from bitnetctl.sweeps.queue import RunQueue
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.options import TrainOptions

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no modes")
RUNS = Path("runs")


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The usual umask, with which nobody else may write."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode) & 0o777)


@pytest.mark.parametrize(
    ("runs", "umask", "folder", "file"),
    [
        (0o755, 0o022, "0o755", "0o644"),
        (0o775, 0o022, "0o775", "0o664"),
        (0o2775, 0o022, "0o775", "0o664"),
        (0o2770, 0o077, "0o770", "0o660"),
        (0o777, 0o022, "0o777", "0o666"),
        # people who share /tmp keep their files apart
        (0o1777, 0o022, "0o755", "0o644"),
        (0o700, 0o077, "0o700", "0o600"),
    ],
)
def test_what_is_made_is_shared_as_its_folder_is(runs: int, umask: int, folder: str, file: str) -> None:
    RUNS.mkdir()
    RUNS.chmod(runs)
    os.umask(umask)
    make_folder(RUNS / "a" / "b")
    write_atomic(RUNS / "a" / "b" / "run.json", b"{}")
    write_atomic(RUNS / "c" / "new.csv", b"Step\n")
    with replacing(RUNS / "a" / "step-1") as temporary:
        temporary.mkdir()
        (temporary / "weights").write_bytes(b"1")
    lock = Lock(RUNS / "a" / "run.lock")
    lock.acquire()
    lock.release()
    for path in sorted(RUNS.rglob("*")):
        assert (path.name, mode(path)) == (path.name, folder if path.is_dir() else file)


def test_a_file_of_another_group_is_not_opened_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    RUNS.mkdir()
    RUNS.chmod(0o775)
    path = RUNS / "x"
    path.touch()
    real = Path.stat

    def of_another_group(self: Path, **named: bool) -> os.stat_result:
        found = list(real(self, **named))
        if self == path:
            # st_gid
            found[5] += 1
        return os.stat_result(found)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", of_another_group)
        share(path)
    assert mode(path) == "0o644"


def test_every_file_of_a_training_is_shared(tiny_config: TinyConfig) -> None:
    from bitnetctl import api

    RUNS.mkdir()
    RUNS.chmod(0o2775)
    api.train(tiny_config(), TrainOptions(runs_dir=RUNS, checkpoint_every=2, keep_weights=True))
    paths = sorted(RUNS.rglob("*"))
    assert {"run.lock", "run.json"} <= {path.name for path in paths}
    assert {mode(path) for path in paths if path.is_dir()} == {"0o775"}
    # safetensors writes files that only their owner may read
    assert {path.stat().st_mode & 0o070 for path in paths if path.is_file()} == {0o060}


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock file that may be read only, as one of another user; root could write it all the same."""
    path = Path("their.lock")
    path.touch()
    path.chmod(0o444)

    def refuse(self: FileLock, *arguments: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    return path


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_that_may_only_be_read_is_taken_and_excludes_others(theirs: Path) -> None:
    first, second = Lock(theirs), Lock(theirs)
    first.acquire()
    assert (first.is_held, second.is_held) == (True, False)
    for timeout in (0, 0.06):
        with pytest.raises(Timeout):
            second.acquire(timeout=timeout)
    first.release()
    second.acquire(timeout=0)
    second.release()
    assert not second.is_held


def test_both_ways_of_locking_exclude_each_other(theirs: Path) -> None:
    theirs.chmod(0o644)
    command = [sys.executable, "-c", HOLD, str(theirs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Timeout):
            Lock(theirs).acquire(timeout=0)
        other.communicate()
    Lock(theirs).acquire(timeout=0)


def test_a_lock_in_a_folder_that_cannot_be_written_is_that_error(theirs: Path) -> None:
    with pytest.raises(PermissionError):
        Lock(Path("none.lock")).acquire()


# users without rights: the checks are those of the system, which root passes


@pytest.fixture
def of_another(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files and folders that belong to user 7001 and cannot be written."""
    names: set[str] = set()
    access, real = os.access, Path.stat

    def foreign(self: Path, **named: bool) -> os.stat_result:
        found = list(real(self, **named))
        if self.name in names:
            found[4] = 7001
        return os.stat_result(found)

    monkeypatch.setattr(os, "access", lambda path, kind: Path(path).name not in names and access(path, kind))
    monkeypatch.setattr(Path, "stat", foreign)
    monkeypatch.setattr(files, "owner", lambda user: f"user {user}")
    return names


def test_who_can_share_what_is_named(of_another: set[str]) -> None:
    (RUNS / "a b").mkdir(parents=True)
    (RUNS / "x.lock").touch()
    assert blame(RUNS / "x.lock") == ""
    of_another |= {"x.lock", "a b"}
    assert blame(RUNS / "x.lock") == "it belongs to user 7001, who can share it: chmod g+w runs/x.lock"
    assert blame(RUNS / "a b") == "it belongs to user 7001, who can share it: chmod -R g+w 'runs/a b'"
    # of a folder above, only the folder itself is asked for
    assert blame(RUNS / "a b" / "c") == "runs/a b belongs to user 7001, who can share it: chmod g+w 'runs/a b'"


def test_a_refused_write_names_the_owner(of_another: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    RUNS.mkdir()
    of_another.add("runs")

    def refuse(self: Path, *arguments: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError) as caught:
        write_atomic(RUNS / "x.csv", b"")
    assert str(caught.value) == (
        "runs/x.csv: cannot write: Permission denied; runs belongs to user 7001, who can share it: chmod g+w runs"
    )


def test_a_run_of_another_user_is_left_out_and_named(of_another: set[str], tiny_config: TinyConfig) -> None:
    configs: list[RunConfig] = [tiny_config(seed=seed) for seed in range(3)]
    name = configs[1].run_name
    (RUNS / name / "checkpoints").mkdir(parents=True)
    of_another.add(name)
    queue = RunQueue(RUNS, lambda run: 1)
    taken = queue.acquire(resolved(configs, RUNS), lambda run: 3)
    assert [artifacts.name for artifacts in taken] == [configs[0].run_name, configs[2].run_name]
    for artifacts in taken:
        artifacts.release()
    message = f"runs/{name}: cannot write: it belongs to user 7001, who can share it: chmod -R g+w runs/{name}"
    assert queue.refused == {name: message}
    # also where only a part of it cannot be written
    of_another.discard(name)
    of_another.add("checkpoints")
    with pytest.raises(RunRefusedError, match="checkpoints: cannot write: it belongs to user 7001"):
        RunArtifacts(resolved(configs, RUNS)[1]).acquire()


def test_a_sweep_trains_the_others_and_says_so_at_the_end(of_another: set[str], tiny_config: TinyConfig) -> None:
    from bitnetctl.sweeps.executor import sweep_runs
    from bitnetctl.trainer.events import Finished

    configs: list[RunConfig] = [tiny_config(seed=seed) for seed in range(3)]
    for config in configs[:2]:
        (RUNS / config.run_name).mkdir(parents=True)
        of_another.add(config.run_name)
    said: list[str] = []
    finished: list[str] = []

    def sweep() -> None:
        for event in sweep_runs(resolved(configs, RUNS), TrainOptions(runs_dir=RUNS, log=said.append), pack=1):
            finished.extend([""] if isinstance(event, Finished) else [])

    with pytest.raises(RunRefusedError, match=r"\(and 1 other run\) cannot be trained: runs/.*: cannot write: it"):
        sweep()
    assert len(finished) == 1
    assert sum(": left out: " in line for line in said) == 2


def test_a_csv_of_another_user_is_replaced(of_another: set[str]) -> None:
    first = RecordWriter("x.csv")
    first.open()
    first.close()
    before = Path("x.csv").stat().st_ino
    of_another.add("x.csv")
    second = RecordWriter("x.csv")
    second.open()
    second.close()
    of_another.clear()
    assert Path("x.csv").stat().st_ino != before


# the cache


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No home, and a temporary folder of the test."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(files, "home_folder", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"bitnetctl-{os.getuid()}"


def test_without_a_home_the_cache_is_temporary_and_the_users_own(homeless: Path) -> None:
    assert cache_folder() == homeless
    assert not homeless.exists()
    files.require_own_cache()
    assert mode(homeless) == "0o700"
    homeless.rmdir()
    (homeless.parent / "trap").mkdir()
    homeless.symlink_to("trap")
    with pytest.raises(StorageError, match="is not yours; set XDG_CACHE_HOME"):
        files.require_own_cache()


def test_a_home_at_the_root_that_cannot_be_written_is_none(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "home_folder", lambda: Path("/"))
    monkeypatch.setattr(os, "access", lambda path, kind: False)
    assert cache_folder() == homeless
    monkeypatch.setattr(os, "access", lambda path, kind: True)
    assert cache_folder() == Path("/.cache/bitnetctl")


@pytest.mark.usefixtures("homeless")
def test_without_any_place_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(ConfigError, match=r"no home folder is known for the cache, and no temporary .* set TMPDIR"):
        cache_folder()
    with pytest.raises(ConfigError, match="set TMPDIR to a folder that can"), files.temporary_folder():
        pass


def test_the_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for text, folder in (
        ("~/c", tmp_path / "c"),
        ("/x", Path("/x")),
        ("c", tmp_path / ".cache"),
        ("", tmp_path / ".cache"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", text)
        assert cache_folder() == folder / "bitnetctl"


def test_a_cache_that_cannot_be_written_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError) as caught, files.storage_errors(cache_folder() / "tokens" / "x"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert str(caught.value).endswith("cannot write: Permission denied; set XDG_CACHE_HOME to another folder")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_pipe_is_written_into_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(path, b"report")
    assert os.read(reader, 100) == b"report"
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(StorageError, match=rf"; {tmp_path}/f is a file, not a folder$"):
        write_atomic(tmp_path / "f" / "x", b"")
