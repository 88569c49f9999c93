"""The token cache: reuse, damage, refused writes, several processes at once."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import data_config, prose

from bitnetctl import data
from bitnetctl.data import documents, store
from bitnetctl.errors import DataError, StoppedBySignal, StorageError

pytestmark = pytest.mark.usefixtures("token_cache")


def test_a_second_start_uses_the_cache(corpus: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    first = data.prepare(data_config(corpus), progress=lambda what, done, total: steps.append(what))
    assert {"reading text", "comparing held-out text", "training tokenizer", "encoding text"} == set(steps)
    assert [folder / "meta.json" for folder in token_cache.iterdir()] == [*token_cache.glob("*/meta.json")]
    monkeypatch.setattr(store, "_build", None)
    again = data.prepare(data_config(corpus, batch_size=2, order="shuffled"))
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.train_N, np.memmap)
    assert not again.train_N.flags.writeable
    assert (again.source, again.tokenizer) == (f"file:{corpus}", "bpe:300")
    with pytest.raises(DataError, match="too few for one batch of 4096 x 32"):
        data.prepare(data_config(corpus, batch_size=4096))


def test_other_text_split_or_tokenizer_are_other_tokens(corpus: Path) -> None:
    prints = [data.prepare(data_config(corpus)).fingerprint]
    prints.append(data.prepare(data_config(corpus, tokenizer="bpe:301")).fingerprint)
    prints.append(data.prepare(data_config(corpus, held_out_fraction=0.2)).fingerprint)
    corpus.write_text(corpus.read_text() + "more\n")
    prints.append(data.prepare(data_config(corpus)).fingerprint)
    assert len(set(prints)) == 4


@pytest.mark.parametrize("name", ["train.bin", "held_out.bin", "tokenizer.json", "meta.json"])
@pytest.mark.parametrize("harm", ["cut", "remove", "replace"])
def test_a_damaged_cache_is_rebuilt_and_reported(corpus: Path, name: str, harm: str) -> None:
    first = data.prepare(data_config(corpus))
    folder = first.tokenizer_path.parent
    content = (folder / name).read_bytes()
    if harm == "remove":
        (folder / name).unlink()
    elif harm == "cut":
        (folder / name).write_bytes(content[:-2])
    elif name in ("tokenizer.json", "meta.json"):
        # the same size with another tokenizer; another fingerprint
        (folder / name).write_bytes(
            content.replace(b'"BPE"', b'"BPX"').replace(b'fingerprint": "', b'fingerprint": "x')
        )
    else:
        (folder / name).write_bytes(content + b"\0\0")
    steps: list[str] = []
    again = data.prepare(data_config(corpus), progress=lambda what, done, total: steps.append(what))
    assert any(step.startswith("rebuilding the damaged token cache (") for step in steps)
    assert again.fingerprint == first.fingerprint
    assert (folder / name).read_bytes() == content
    assert not list(folder.parent.glob(".*"))


def test_an_inconsistent_meta_json_is_damage(corpus: Path) -> None:
    first = data.prepare(data_config(corpus))
    path = first.tokenizer_path.parent / "meta.json"
    steps: list[str] = []
    for field, value in {"fingerprint": "0", "train_tokens": 1000, "format": 0, "files": {}}.items():
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, field: value}))
        steps.clear()
        data.prepare(data_config(corpus), progress=lambda what, *_: steps.append(what))
        assert any("rebuilding" in step for step in steps), field
        assert json.loads(path.read_text()) == meta


def test_a_half_written_folder_is_never_used_and_deleted_after_a_day(corpus: Path, token_cache: Path) -> None:
    old, new = token_cache / ".aside-old", token_cache / ".aside-new"
    for temporary in (old, new):
        temporary.mkdir(parents=True)
        (temporary / "train.bin").write_bytes(b"half")
    yesterday = time.time() - 2 * 24 * 3600
    for path in (old, old / "train.bin"):
        os.utime(path, (yesterday, yesterday))
    data.prepare(data_config(corpus))
    assert not old.exists()
    assert new.exists()


def test_an_interrupted_build_leaves_nothing(corpus: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.prepare(data_config(corpus))
    assert not list(token_cache.iterdir())


def test_a_full_disk_is_one_clear_line(corpus: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bitnetctl.data.token_file.os.fsync", full)
    with pytest.raises(StorageError, match="cannot write: No space left on device"):
        data.prepare(data_config(corpus))
    assert not list(token_cache.iterdir())


def test_a_cache_that_cannot_be_made_is_one_clear_line(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        data.prepare(data_config(corpus))


def test_text_that_changes_while_it_is_read_is_refused(
    corpus: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(what: str, done: int, total: int | None) -> None:
        if what == "encoding text":
            corpus.write_text(prose(800, seed=5))

    # the text is read to be hashed, compared, to train BPE and to be encoded; the edit comes during the last reading
    monkeypatch.setattr(store, "_ENCODE_CHARACTERS", 1)
    monkeypatch.setattr(documents, "_READ_BYTES", 1000)
    with pytest.raises(DataError, match="the text changed while it was being read; try again"):
        data.prepare(data_config(corpus), progress=edit)
    assert not list(token_cache.iterdir())


def test_without_locks_the_second_of_two_builds_uses_the_first(
    corpus: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **named: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    sync_folder = store.sync_folder  # type: ignore[attr-defined]
    inner: list[data.TokenData] = []

    def slow_sync(folder: Path) -> None:
        """Let another process finish just before this one does."""
        monkeypatch.setattr(store, "sync_folder", sync_folder)
        inner.append(data.prepare(data_config(corpus)))
        inode.append(inner[0].tokenizer_path.parent.stat().st_ino)
        sync_folder(folder)

    inode: list[int] = []
    monkeypatch.setattr(store, "sync_folder", slow_sync)
    tokens = data.prepare(data_config(corpus))
    assert tokens.fingerprint == inner[0].fingerprint
    assert tokens.tokenizer_path.parent.stat().st_ino == inode[0]
    assert [path.name for path in token_cache.iterdir()] == [tokens.tokenizer_path.parent.name]


def test_two_processes_at_once(corpus: Path, token_cache: Path) -> None:
    program = (
        "import sys; from bitnetctl.config import DataConfig; from bitnetctl import data;"
        "tokens = data.prepare(DataConfig(source=sys.argv[1], tokenizer='bpe:300'));"
        "print(tokens.fingerprint, int(tokens.train_N.sum(dtype='i8')), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", program, f"file:{corpus}"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0] == results[1]
    assert len(list(token_cache.iterdir())) == 1
    tokens = data.prepare(data_config(corpus))
    assert results[0] == (f"{tokens.fingerprint} {tokens.train_N.sum(dtype='i8')} False\n", "")


def test_one_builds_and_the_other_waits(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_WAIT_SECONDS", 0.01)
    encode, waits = store._encode, threading.Event()
    waited: list[str] = []
    others: list[data.TokenData] = []

    def wait(what: str, done: int, total: int | None) -> None:
        waited.append(what)
        if what.startswith("waiting"):
            waits.set()

    second = threading.Thread(target=lambda: others.append(data.prepare(data_config(corpus), progress=wait)))

    def hold(*arguments: Any) -> None:
        second.start()
        assert waits.wait(30)
        encode(*arguments)

    monkeypatch.setattr(store, "_encode", hold)
    tokens = data.prepare(data_config(corpus))
    second.join(30)
    assert others[0].fingerprint == tokens.fingerprint
    assert set(waited) == {"reading text", "waiting for another process that prepares the same text"}


def test_leftovers_of_a_killed_process_block_nothing(corpus: Path, token_cache: Path) -> None:
    program = (
        "import os, sys; from bitnetctl.config import DataConfig; from bitnetctl import data;"
        "from bitnetctl.data import store;"
        "store._encode = lambda *_: os.kill(os.getpid(), 9);"
        "data.prepare(DataConfig(source=sys.argv[1], tokenizer='bpe:300'))"
    )
    killed = subprocess.run([sys.executable, "-c", program, f"file:{corpus}"], check=False)
    assert killed.returncode == -9
    (temporary,) = token_cache.glob(".*")
    steps: list[str] = []
    # the dates of lock files do not matter: a process holds a lock
    for stamp in (0, 1 << 33):
        for path in (token_cache.parent / "locks").iterdir():
            os.utime(path, (stamp, stamp))
        data.prepare(data_config(corpus), progress=lambda what, done, total: steps.append(what))
        shutil.rmtree(next(path for path in token_cache.iterdir() if path != temporary))
    assert temporary.exists()
    assert not [step for step in steps if step.startswith("waiting")]


def test_the_age_of_leftovers_is_by_the_clock_of_the_file_system(
    corpus: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the machine's clock is a year ahead of the file server's; another process is building
    temporary = token_cache / ".aside-living"
    temporary.mkdir(parents=True)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 365 * 24 * 3600)
    data.prepare(data_config(corpus))
    assert temporary.exists()


@pytest.mark.parametrize("at", ["reading text", "comparing held-out text", "training tokenizer", "encoding text"])
def test_an_exception_of_the_progress_callback_ends_the_build(corpus: Path, token_cache: Path, at: str) -> None:
    def stop(what: str, done: int, total: int | None) -> None:
        if what == at:
            raise StoppedBySignal

    with pytest.raises(StoppedBySignal):
        data.prepare(data_config(corpus), progress=stop)
    assert not token_cache.exists() or not list(token_cache.iterdir())
    assert data.prepare(data_config(corpus)).vocab_size == 300
