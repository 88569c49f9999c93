"""The token cache: a text is split and tokenized once, then memory-mapped."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from filelock import Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from bitnetctl.config import DataConfig, canonical_hash
from bitnetctl.data.sources import Progress, ProgressMeter, counted, no_progress
from bitnetctl.data.split import Block, SplitText
from bitnetctl.data.token_bytes import Pieces, held_out_file, open_bytes
from bitnetctl.data.token_file import CachedFile, TokenFile
from bitnetctl.data.tokenizer import TokenizerSource, open_tokenizer, vocab_size
from bitnetctl.errors import DataError, one_line
from bitnetctl.files import (
    cache_folder as cache_folder,
    make_folder,
    remove,
    replacing,
    require_own_cache,
    storage_errors,
    sync_folder,
    write_synced,
)
from bitnetctl.locks import Lock
from bitnetctl.units import listed, plural

Tokens = npt.NDArray[np.uint16 | np.uint32]

_FORMAT = 2
_ENCODE_CHARACTERS = 1 << 20
_STALE_SECONDS = 24 * 3600.0  # older temporary folders are those of killed processes
_WAIT_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """Training and held-out tokens, memory-mapped; `fingerprint` is a hash of tokens and tokenizer.

    `counts` tells what of the text was not used and why, for the manifests of runs. `held_out_bytes_N` are the bytes of
    text of each held-out token, -1 where unknown; None where they follow from the token, or an older cache has none.
    """

    train_N: Tokens
    held_out_N: Tokens
    vocab_size: int
    fingerprint: str
    tokenizer_fingerprint: str
    source: str
    tokenizer: str
    tokenizer_path: Path
    end_of_text: int | None
    counts: Mapping[str, Any] = field(default_factory=dict)
    held_out_bytes_N: npt.NDArray[np.int16] | None = None

    def tokenizer_content(self) -> bytes:
        """Return the content of tokenizer.json, whose SHA-256 is `tokenizer_fingerprint`; raises DataError."""
        content = read_tokenizer(self.tokenizer_path, self.tokenizer_fingerprint)
        if content is None:
            raise DataError(f"{self.tokenizer_path}: the token cache was damaged or emptied; try again")
        return content


def read_tokenizer(path: Path, fingerprint: str) -> bytes | None:
    """Return the content of a tokenizer.json of this SHA-256; None for another, or one that cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == fingerprint else None


class _Meta(BaseModel):
    """Contents of meta.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2]
    dtype: Literal["<u2", "<u4"]
    vocab_size: int
    end_of_text: int | None
    end_of_text_token: str | None
    train_tokens: int
    held_out_tokens: int
    left_out_passages: int
    left_out_characters: int
    held_out_characters: int
    fingerprint: str
    tokenizer_fingerprint: str
    files: dict[str, CachedFile]


class _DamagedError(Exception):
    """A folder of the cache does not agree with its meta.json."""


def prepare(
    config: DataConfig, *, progress: Progress = no_progress, log: Callable[[str], None] = lambda line: None
) -> TokenData:
    """Return the tokens of a config's text, from the cache or newly built.

    Text and cached tokens are hashed every time, so an edited text or damaged tokens are noticed. Without
    `held_out_source`, blocks of about 64 Ki characters, spread evenly over the text, are held out, and the tokenizer
    is trained on the rest. Held-out text that is also training text is left out. The end-of-text token follows every
    document, and every part of a document that the split cuts off. `log` is called with a line for everything that was
    not used, or is missing. Raises DataError for an unusable source, tokenizer or cache, StorageError when writing
    fails.
    """
    tokenizer_source = open_tokenizer(config.tokenizer)
    text = SplitText.open(config, progress)
    key = canonical_hash({"format": _FORMAT, "text": text.identity, "tokenizer": tokenizer_source.identity})
    require_own_cache()
    folder = cache_folder() / "tokens" / key[:32]
    meta = _cached(folder, text, tokenizer_source, config, progress)
    try:
        tokens = _open(folder, meta, config, {**text.counts, **_left_out(meta), "end_of_text": meta.end_of_text_token})
    except _DamagedError as error:
        raise DataError(f"{folder}: the token cache was damaged while it was built ({error}); try again") from error
    for line in notes(tokens):
        log(line)
    return tokens


def notes(tokens: TokenData) -> Iterator[str]:
    """Yield a line for everything of a text that was not used, or is missing."""
    counts = tokens.counts
    names = {"links_not_read": "another name of a file", "copies_not_read": "copy of a file"}
    once = [f"{counts[key]:,} × {name}" for key, name in names.items() if counts.get(key)]
    if once:
        yield f"{tokens.source}: each text is read once; not read again: {listed(once)}"
    if counts.get("skipped"):
        yield f"{tokens.source}: left out because data.on_bad_document is skip: {counted(counts['skipped'])}"
    if files := counts.get("held_out_files_trained_on"):
        yield f"held-out text: left out {plural(files, 'file')} of data.source, or copies of them"
    if passages := counts.get("left_out_passages"):
        characters, total = counts["left_out_characters"], counts["held_out_characters"]
        yield (
            f"held-out text: left out {plural(passages, 'duplicate')} of training text, {characters:,} of {total:,} "
            f"characters ({characters / total:.1%})"
        )
    if counts and tokens.end_of_text is None:
        yield (
            f"tokenizer {tokens.tokenizer}: has no end-of-text token, so a document runs into the next; "
            "use one that has it where documents are short"
        )


def _left_out(meta: _Meta) -> dict[str, int]:
    return meta.model_dump(include={"left_out_passages", "left_out_characters", "held_out_characters"})


def _cached(
    folder: Path, text: SplitText, tokenizer_source: TokenizerSource, config: DataConfig, progress: Progress
) -> _Meta:
    """Return the meta.json of a folder of the cache, which is built where it is missing or damaged."""
    try:
        return _read_meta(folder)
    except FileNotFoundError:
        pass
    except _DamagedError as damage:
        progress(f"rebuilding the damaged token cache ({damage})", 0, None)
    with _build_lock(folder, progress):
        with contextlib.suppress(FileNotFoundError, _DamagedError):
            # another process may have built it in the meantime
            return _read_meta(folder)
        _build(folder, text, tokenizer_source, config, progress)
    try:
        return _read_meta(folder)
    except (FileNotFoundError, _DamagedError) as error:
        raise DataError(f"{folder}: the token cache was damaged while it was built ({error}); try again") from error


@contextlib.contextmanager
def _build_lock(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a folder of the cache, which only one process builds at a time.

    On a file system without locks every process builds its own copy, and the first to finish publishes it.
    """
    locks = folder.parent.parent / "locks"
    with storage_errors(folder):
        make_folder(locks)
    lock = Lock(locks / f"{folder.name}.lock")
    with contextlib.suppress(OSError):
        while not lock.is_held:
            try:
                lock.acquire(timeout=_WAIT_SECONDS)
            except Timeout:
                progress("waiting for another process that prepares the same text", 0, None)
    try:
        yield
    finally:
        lock.release()


def _build(
    folder: Path, text: SplitText, tokenizer_source: TokenizerSource, config: DataConfig, progress: Progress
) -> None:
    with storage_errors(folder), replacing(folder) as temporary:
        temporary.mkdir()
        _remove_stale(folder.parent, temporary.stat().st_mtime)
        repeats = text.repeats(progress)
        meter = ProgressMeter(progress, "training tokenizer", text.characters)
        tokenizer = tokenizer_source.build(text.training_blocks(meter), temporary, meter.repeat)
        end = tokenizer_source.end_of_text(tokenizer)
        content = tokenizer.to_str().encode()
        write_synced(temporary / "tokenizer.json", content)
        tokenizer_file = CachedFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        dtype: Literal["<u2", "<u4"] = "<u2" if vocab_size(tokenizer) <= 1 << 16 else "<u4"
        with (
            (temporary / "train.bin").open("xb") as train_content,
            (temporary / "held_out.bin").open("xb") as held_out_content,
            held_out_file(temporary, held_out_content, dtype, Pieces(tokenizer, end)) as held_out,
        ):
            train = TokenFile(train_content, dtype)
            meter = ProgressMeter(progress, "encoding text", text.characters)
            _encode(text.used_blocks(repeats), tokenizer, tokenizer_source.spec, end, (train, held_out), meter)
            _check_lengths(train.count, held_out.count, config, repeats.passages)
            files = {"train.bin": train.finish(), "held_out.bin": held_out.finish(), "tokenizer.json": tokenizer_file}
        meta = _Meta(
            format=_FORMAT,
            dtype=dtype,
            vocab_size=vocab_size(tokenizer),
            end_of_text=end,
            end_of_text_token=None if end is None else tokenizer.id_to_token(end),
            train_tokens=train.count,
            held_out_tokens=held_out.count,
            left_out_passages=repeats.passages,
            left_out_characters=repeats.characters,
            held_out_characters=repeats.held_out_characters,
            fingerprint=_fingerprint(files, dtype),
            tokenizer_fingerprint=tokenizer_file.sha256,
            files=files,
        )
        write_synced(temporary / "meta.json", meta.model_dump_json(indent=1).encode())
        sync_folder(temporary)
        with contextlib.suppress(_DamagedError, FileNotFoundError):
            _read_meta(folder)
            # without locks, another process was first, with the same tokens
            remove(temporary)


def _encode(
    blocks: Iterator[Block],
    tokenizer: Tokenizer,
    spec: str,
    end: int | None,
    sides: tuple[TokenFile, TokenFile],
    meter: ProgressMeter,
) -> None:
    """Append the tokens of all blocks to the training or held-out side."""
    size = vocab_size(tokenizer)
    end_N = np.array([] if end is None else [end], dtype=np.int64)
    previous = Block("", held_out=False, ends=True)
    for group in _groups(blocks):
        texts = ["" if block.left_out else block.text for block in group]
        try:
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise DataError(f"tokenizer {spec}: cannot encode the text: {one_line(error)}") from error
        for block, text, encoding in zip(group, texts, encodings, strict=True):
            if not previous.ends and not previous.left_out and _side(previous) != _side(block):
                # the split cut the document here: the next text of this side does not continue it
                sides[previous.held_out].append(end_N)
            ids_N = np.array(encoding.ids, dtype=np.int64)
            if ids_N.max(initial=0) >= size:
                raise DataError(f"tokenizer {spec}: gives token {ids_N.max()} beyond its vocabulary of {size}")
            sides[block.held_out].append(ids_N, text)
            if block.ends and not block.left_out:
                sides[block.held_out].append(end_N)
            meter.add(len(block.text))
            previous = block
    meter.finish()


def _side(block: Block) -> tuple[bool, bool]:
    return block.held_out, block.left_out


def _groups(blocks: Iterator[Block]) -> Iterator[list[Block]]:
    """Yield groups of blocks; a group is encoded in one call."""
    group: list[Block] = []
    characters = 0
    for block in blocks:
        group.append(block)
        characters += len(block.text)
        if characters >= _ENCODE_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def require_batch(train_tokens: int, config: DataConfig) -> None:
    """Raise DataError if the training tokens do not fill one batch, of all micro-batches of a step."""
    needed = config.tokens_per_step + 1
    if train_tokens < needed:
        micro_batches = config.gradient_accumulation
        factor, field = (f"{micro_batches} x ", "data.gradient_accumulation, ") if micro_batches > 1 else ("", "")
        raise DataError(
            f"data source {config.source}: {train_tokens} training tokens are too few for one batch of "
            f"{factor}{config.batch_size} x {config.sequence_length} tokens ({needed} with the last target); "
            f"give more text or lower {field}data.batch_size or data.sequence_length"
        )


def _check_lengths(train_tokens: int, held_out_tokens: int, config: DataConfig, duplicates: int) -> None:
    require_batch(train_tokens, config)
    if held_out_tokens < config.sequence_length + 1:
        because = f" after {plural(duplicates, 'duplicate')} of training text were left out" if duplicates else ""
        raise DataError(
            f"data source {config.held_out_source or config.source}: {held_out_tokens} held-out tokens are "
            f"too few for one probe row of {config.sequence_length} tokens and its last target{because}; "
            "give more text, raise data.held_out_fraction or lower data.sequence_length"
        )


def _fingerprint(files: dict[str, CachedFile], dtype: str) -> str:
    return canonical_hash({"dtype": dtype, "files": {name: file.sha256 for name, file in files.items()}})


def _remove_stale(folder: Path, now: float) -> None:
    """Delete temporary folders of killed processes; `now` is the time of the file system."""
    for temporary in folder.glob(".*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (temporary, *temporary.iterdir()))
            if now - newest > _STALE_SECONDS:
                shutil.rmtree(temporary, ignore_errors=True)


def _read_meta(folder: Path) -> _Meta:
    """Return meta.json; raises FileNotFoundError without a folder, _DamagedError if its files differ from meta.json."""
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        meta = _Meta.model_validate_json((folder / "meta.json").read_bytes())
        if meta.files.keys() != {"train.bin", "held_out.bin", "tokenizer.json"}:
            raise _DamagedError("meta.json lists other files")
        for name, file in meta.files.items():
            if (folder / name).stat().st_size != file.bytes:
                raise _DamagedError(f"the size of {name} differs from meta.json")
            with (folder / name).open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                    raise _DamagedError(f"the hash of {name} differs from meta.json")
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
        raise _DamagedError("meta.json is inconsistent")
    return meta


def open_tokens(folder: Path, config: DataConfig) -> TokenData:
    """Open a folder of the cache as the tokens of a config; raises DataError where it is damaged or gone."""
    try:
        meta = _read_meta(folder)
        return _open(folder, meta, config, {"end_of_text": meta.end_of_text_token})
    except (FileNotFoundError, _DamagedError) as error:
        raise DataError(f"{folder}: the token cache is damaged: {error}") from error


def _open(folder: Path, meta: _Meta, config: DataConfig, counts: Mapping[str, Any]) -> TokenData:
    _check_lengths(meta.train_tokens, meta.held_out_tokens, config, meta.left_out_passages)
    try:
        return TokenData(
            train_N=np.memmap(folder / "train.bin", dtype=meta.dtype, mode="r"),
            held_out_N=np.memmap(folder / "held_out.bin", dtype=meta.dtype, mode="r"),
            vocab_size=meta.vocab_size,
            fingerprint=meta.fingerprint,
            tokenizer_fingerprint=meta.tokenizer_fingerprint,
            source=config.source,
            tokenizer=config.tokenizer,
            tokenizer_path=folder / "tokenizer.json",
            end_of_text=meta.end_of_text,
            counts=counts,
            held_out_bytes_N=open_bytes(folder, meta.held_out_tokens),
        )
    except (OSError, ValueError) as error:
        raise _DamagedError(one_line(error)) from error
