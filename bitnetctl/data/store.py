"""Tokens on disk: built once for a text, split and tokenizer, then memory-mapped."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import platformdirs
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from bitnetctl.config import DataConfig, canonical_hash
from bitnetctl.data.sources import (
    Block,
    Meter,
    Progress,
    Source,
    TextHash,
    block_characters,
    ignore,
    one_line,
    open_source,
    read_hash,
    split_blocks,
)
from bitnetctl.data.tokenizer import TokenizerPlan, end_of_text, open_tokenizer, vocab_size
from bitnetctl.errors import DataError
from bitnetctl.files import storage_errors, sync_folder

Tokens = npt.NDArray[np.uint16 | np.uint32]

_FORMAT = 1
_ENCODE_CHARACTERS = 1 << 20
_STALE_SECONDS = 24 * 3600.0
_WAIT_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """Training and held-out tokens, memory-mapped, and what they are."""

    train_N: Tokens
    held_out_N: Tokens
    vocab_size: int
    fingerprint: str
    tokenizer_fingerprint: str
    source: str
    tokenizer: str
    tokenizer_path: Path
    end_of_text: int | None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    dtype: Literal["<u2", "<u4"]
    vocab_size: int
    end_of_text: int | None
    train_tokens: int
    held_out_tokens: int
    fingerprint: str
    tokenizer_fingerprint: str
    files: dict[str, _File]


class _DamagedError(Exception):
    """A cached folder is not what its meta.json says."""


def cache_folder() -> Path:
    """Folder of this user's token cache; follows XDG_CACHE_HOME."""
    return Path(platformdirs.user_cache_dir("bitnetctl"))


def prepare(config: DataConfig, *, progress: Progress = ignore) -> TokenData:
    """Return the tokens of a config's text, from the cache or built into it.

    Text and cached tokens are read and hashed every time, so neither an edited text nor altered tokens come from the
    cache. Without `held_out_source`, blocks of about 64 Ki characters, spread evenly over the text, are held out and
    the tokenizer is trained on the rest. Every document, and every part of one that the split leaves, is followed by
    the end-of-text token. Raises DataError for what the user can mend, StorageError when the disk refuses.
    """
    plan = open_tokenizer(config.tokenizer)
    text = _Text.open(config, progress)
    key = canonical_hash({"format": _FORMAT, "text": text.identity, "tokenizer": plan.identity})
    folder = cache_folder() / "tokens" / key[:32]
    try:
        return _open(folder, config)
    except FileNotFoundError:
        pass
    except _DamagedError as damage:
        progress(f"rebuilding the damaged token cache ({damage})", 0, None)
    with _sole_builder(folder, progress):
        with contextlib.suppress(FileNotFoundError, _DamagedError):
            # another process may have built it while we waited
            return _open(folder, config)
        _build(folder, text, plan, config, progress)
    try:
        return _open(folder, config)
    except (FileNotFoundError, _DamagedError) as error:
        raise DataError(f"{folder}: the token cache was damaged while it was built ({error}); try again") from error


@dataclass(frozen=True, kw_only=True)
class _Text:
    """Both sides of the split, read once: what they are and how to read them again."""

    train: Source
    held_out: Source | None
    train_hash: TextHash
    held_out_hash: TextHash | None
    fraction: float

    @classmethod
    def open(cls, config: DataConfig, progress: Progress) -> "_Text":
        train = open_source(config.source)
        held_out = None if config.held_out_source is None else open_source(config.held_out_source)
        if held_out is not None and (shared := train.files & held_out.files):
            raise DataError(
                f"data.held_out_source {held_out.spec}: {min(shared)} is also in data.source {train.spec}; "
                "held-out text must not be trained on"
            )
        train_hash = read_hash(train, progress)
        held_out_hash = None if held_out is None else read_hash(held_out, progress)
        if held_out_hash is not None and held_out_hash.digest == train_hash.digest:
            raise DataError(
                f"data.held_out_source {config.held_out_source} is the same text as data.source "
                f"{train.spec}; held-out text must not be trained on"
            )
        return cls(
            train=train,
            held_out=held_out,
            train_hash=train_hash,
            held_out_hash=held_out_hash,
            fraction=config.held_out_fraction,
        )

    @property
    def identity(self) -> dict[str, str | float]:
        """What the tokens depend on."""
        if self.held_out_hash is not None:
            return {"train": self.train_hash.digest, "held_out": self.held_out_hash.digest}
        return {"train": self.train_hash.digest, "held_out_fraction": self.fraction}

    @property
    def characters(self) -> int:
        """Length of both sides."""
        return self.train_hash.characters + (self.held_out_hash.characters if self.held_out_hash else 0)

    def blocks(self) -> Iterator[Block]:
        """Read both sides again; raises DataError if the text is no longer what it was."""
        fraction = self.fraction if self.held_out is None else 0.0
        yield from self._side(self.train, self.train_hash, fraction)
        if self.held_out is not None and self.held_out_hash is not None:
            yield from self._side(self.held_out, self.held_out_hash, 1.0)

    def training_blocks(self, meter: Meter) -> Iterator[str]:
        """Read what a tokenizer may be trained on."""
        for block in self.blocks():
            meter.add(len(block.text))
            if not block.held_out:
                yield block.text

    def _side(self, source: Source, known: TextHash, fraction: float) -> Iterator[Block]:
        size = block_characters(known.characters, fraction)
        again = TextHash()
        for block in split_blocks(source.pieces(), fraction=fraction, size=size):
            again.update(block.text, block.ends)
            yield block
        if again.digest != known.digest:
            raise DataError(f"data source {source.spec}: the text changed while it was being read; try again")


class _TokenFile:
    """Append token ids to a new file, counting and hashing them."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self.count = 0

    def append(self, ids_N: npt.NDArray[np.int64]) -> None:
        content = ids_N.astype(self._dtype).tobytes()
        self._file.write(content)
        self._hash.update(content)
        self.count += len(ids_N)

    def finish(self) -> _File:
        self._file.flush()
        os.fsync(self._file.fileno())
        return _File(bytes=self.count * self._dtype.itemsize, sha256=self._hash.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextlib.contextmanager
def _sole_builder(folder: Path, progress: Progress) -> Iterator[None]:
    """Wait while another process builds the same tokens.

    Where locks do not work each process builds apart; that only takes longer, the first to be done counts.
    """
    locks = folder.parent.parent / "locks"
    with storage_errors(folder):
        locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{folder.name}.lock", thread_local=False, fallback_to_soft=False)
    with contextlib.suppress(OSError):
        while not lock.is_locked:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=_WAIT_SECONDS)
                break
            progress("waiting for another process that prepares the same text", 0, None)
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path, text: _Text, plan: TokenizerPlan, config: DataConfig, progress: Progress) -> None:
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = folder.parent / f".aside-{secrets.token_hex(8)}"
        aside.mkdir()
        _sweep(folder.parent, aside.stat().st_mtime)
        try:
            meter = Meter(progress, "training tokenizer", text.characters)
            tokenizer = plan.build(text.training_blocks(meter), aside, meter.again)
            content = tokenizer.to_str().encode()
            tokenizer_file = _write(aside / "tokenizer.json", content)
            dtype: Literal["<u2", "<u4"] = "<u2" if vocab_size(tokenizer) <= 1 << 16 else "<u4"
            with (
                _TokenFile(aside / "train.bin", dtype) as train,
                _TokenFile(aside / "held_out.bin", dtype) as held_out,
            ):
                _encode(text, tokenizer, plan.spec, train, held_out, progress)
                _check_lengths(train.count, held_out.count, config)
                files = {"train.bin": train.finish(), "held_out.bin": held_out.finish()}
            files["tokenizer.json"] = tokenizer_file
            meta = _Meta(
                format=_FORMAT,
                dtype=dtype,
                vocab_size=vocab_size(tokenizer),
                end_of_text=end_of_text(tokenizer),
                train_tokens=train.count,
                held_out_tokens=held_out.count,
                fingerprint=_fingerprint(files, dtype),
                tokenizer_fingerprint=tokenizer_file.sha256,
                files=files,
            )
            _write(aside / "meta.json", meta.model_dump_json(indent=1).encode())
            sync_folder(aside)
            _publish(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _encode(
    text: _Text, tokenizer: Tokenizer, spec: str, train: _TokenFile, held_out: _TokenFile, progress: Progress
) -> None:
    size = vocab_size(tokenizer)
    end = end_of_text(tokenizer)
    end_N = np.array([] if end is None else [end], dtype=np.int64)
    meter = Meter(progress, "encoding text", text.characters)
    previous: Block | None = None
    for blocks in _batches(text.blocks()):
        try:
            encodings = tokenizer.encode_batch_fast([block.text for block in blocks], add_special_tokens=False)
        except Exception as error:  # a model without an unknown token raises bare Exception
            raise DataError(f"tokenizer {spec}: cannot encode the text: {one_line(error)}") from error
        for block, encoding in zip(blocks, encodings, strict=True):
            if previous is not None and not previous.ends and previous.held_out != block.held_out:
                # the split interrupts the document: neither side may run on into text that does not follow
                (held_out if previous.held_out else train).append(end_N)
            ids_N = np.array(encoding.ids, dtype=np.int64)
            if ids_N.size and int(ids_N.max()) >= size:
                raise DataError(f"tokenizer {spec}: gives token {ids_N.max()} beyond its vocabulary of {size}")
            side = held_out if block.held_out else train
            side.append(ids_N)
            if block.ends:
                side.append(end_N)
            meter.add(len(block.text))
            previous = block
    meter.finish()


def _batches(blocks: Iterator[Block]) -> Iterator[list[Block]]:
    batch: list[Block] = []
    characters = 0
    for block in blocks:
        batch.append(block)
        characters += len(block.text)
        if characters >= _ENCODE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_lengths(train_tokens: int, held_out_tokens: int, config: DataConfig) -> None:
    needed = config.batch_size * config.sequence_length + 1
    if train_tokens < needed:
        raise DataError(
            f"data source {config.source}: {train_tokens} training tokens are too few for one batch of "
            f"{config.batch_size} x {config.sequence_length} tokens ({needed} with the last target); "
            "give more text or lower data.batch_size or data.sequence_length"
        )
    if held_out_tokens < config.sequence_length + 1:
        raise DataError(
            f"data source {config.held_out_source or config.source}: {held_out_tokens} held-out tokens are "
            f"too few for one probe row of {config.sequence_length} tokens and its last target; "
            "give more text, raise data.held_out_fraction or lower data.sequence_length"
        )


def _write(path: Path, content: bytes) -> _File:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return _File(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _fingerprint(files: dict[str, _File], dtype: str) -> str:
    return canonical_hash({"dtype": dtype, "files": {name: file.sha256 for name, file in files.items()}})


def _publish(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        try:
            _read_meta(folder)
            return  # another process was first, with the same tokens
        except (_DamagedError, FileNotFoundError):
            trash = folder.parent / f".aside-{secrets.token_hex(8)}"
            with contextlib.suppress(FileNotFoundError):
                folder.rename(trash)
            aside.rename(folder)
            shutil.rmtree(trash, ignore_errors=True)
    sync_folder(folder.parent)


def _sweep(folder: Path, now: float) -> None:
    """Drop what killed processes left; `now` is by the clock that stamps the files, whosever that is."""
    # a living process writes more often than once a day
    for aside in folder.glob(".aside-*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (aside, *aside.iterdir()))
            if now - newest > _STALE_SECONDS:
                shutil.rmtree(aside, ignore_errors=True)


def _read_meta(folder: Path) -> _Meta:
    """Return meta.json if the files fit it; raises FileNotFoundError without a folder, else _DamagedError."""
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        meta = _Meta.model_validate_json((folder / "meta.json").read_bytes())
        if meta.files.keys() != {"train.bin", "held_out.bin", "tokenizer.json"}:
            raise _DamagedError("meta.json lists other files")
        for name, file in meta.files.items():
            if (folder / name).stat().st_size != file.bytes:
                raise _DamagedError(f"{name} has another size than in meta.json")
            with (folder / name).open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                    raise _DamagedError(f"{name} is not the one of meta.json")
    except ValidationError as error:
        raise _DamagedError("meta.json is not readable") from error
    except OSError as error:
        raise _DamagedError(f"{Path(error.filename or folder).name}: {error.strerror or error}") from error
    width = np.dtype(meta.dtype).itemsize
    counted = {"train.bin": meta.train_tokens, "held_out.bin": meta.held_out_tokens}
    if (
        meta.fingerprint != _fingerprint(meta.files, meta.dtype)
        or meta.tokenizer_fingerprint != meta.files["tokenizer.json"].sha256
        or any(meta.files[name].bytes != count * width for name, count in counted.items())
    ):
        raise _DamagedError("meta.json contradicts itself")
    return meta


def _open(folder: Path, config: DataConfig) -> TokenData:
    meta = _read_meta(folder)
    _check_lengths(meta.train_tokens, meta.held_out_tokens, config)
    try:
        train_N: Tokens = np.memmap(folder / "train.bin", dtype=meta.dtype, mode="r", shape=(meta.train_tokens,))
        held_out_N: Tokens = np.memmap(
            folder / "held_out.bin", dtype=meta.dtype, mode="r", shape=(meta.held_out_tokens,)
        )
    except (OSError, ValueError) as error:
        raise _DamagedError(one_line(error)) from error
    return TokenData(
        train_N=train_N,
        held_out_N=held_out_N,
        vocab_size=meta.vocab_size,
        fingerprint=meta.fingerprint,
        tokenizer_fingerprint=meta.tokenizer_fingerprint,
        source=config.source,
        tokenizer=config.tokenizer,
        tokenizer_path=folder / "tokenizer.json",
        end_of_text=meta.end_of_text,
    )
