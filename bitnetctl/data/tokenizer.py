"""Tokenizers: byte-level BPE trained on the training text, or one from files or the Hugging Face hub."""

import contextlib
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from bitnetctl.config import DataConfig, did_you_mean
from bitnetctl.data import bpe
from bitnetctl.data.inspection import is_lfs_pointer
from bitnetctl.data.listing import expand, is_file, is_folder
from bitnetctl.errors import DataError, cannot_read, one_line
from bitnetctl.files import temporary_root

_BPE_SIZES = range(257, (1 << 20) + 1)  # 256 bytes and the end of text at least
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_AS_JSON = "; SentencePiece models are not read: save it as tokenizer.json (transformers: save_pretrained)"
_MAX_TOKENS = 1 << 22
_TICK_SECONDS = 0.1
_END_NAMES = (
    *(bpe.END_OF_TEXT, "</s>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<eos>", "[EOS]", "<EOS>", "<|eos|>"),
    *("<|im_end|>", "<end_of_text>", "<|eot_id|>", "<eot>", "[SEP]"),
)
# what remains of the names of such tokens without marks: <|endofdocument|>, <END-OF-DOC>, [EOD]
_END_WORDS = {"endoftext", "endofdocument", "endofdoc", "endofsentence", "endofsequence", "eos", "eot", "eod"}
_SPECS = "bpe:SIZE, gpt2-files:DIR, file:tokenizer.json or hf:NAME"


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """A loaded tokenizer, or the `size` of one to be trained (`loaded` is None).

    Two sources with the same `identity` give the same tokens for the same text. `end` is the token that the
    tokenizer's own settings name as the end of a text, where they do.
    """

    spec: str
    identity: str
    size: int
    loaded: Tokenizer | None = None
    end: str | None = None

    def build(self, texts: Iterable[str], folder: Path, tick: Callable[[], None]) -> Tokenizer:
        """Return the tokenizer, trained on `texts` if it is not loaded; raises DataError.

        Training writes to `folder` and calls `tick` several times per second; an exception from it ends the training.
        """
        if self.loaded is not None:
            return self.loaded
        lines, path = folder / "texts.jsonl", folder / "bpe.json"
        try:
            with lines.open("x", encoding="utf-8") as file:
                for text in texts:
                    file.write(json.dumps(text, ensure_ascii=False) + "\n")
                    tick()
            command = [sys.executable, "-P", bpe.__file__, str(self.size), str(lines), str(path)]
            _train_in_subprocess(self.spec, command, tick)
        finally:
            lines.unlink(missing_ok=True)
        tokenizer = load_tokenizer(path)
        path.unlink()
        supported = vocab_size(tokenizer)
        if supported < self.size:
            raise DataError(
                f"tokenizer {self.spec}: the training text supports only {supported} tokens; "
                f"use bpe:{supported} or more text"
            )
        return tokenizer

    def end_of_text(self, tokenizer: Tokenizer) -> int | None:
        """Return the id of the token that follows a document, None if the tokenizer has none.

        That is the one its settings name, else one with a usual name, else the one it puts behind every text itself,
        else a special token whose name says so.
        """
        return end_of_text(tokenizer, self.end)


def end_of_text(tokenizer: Tokenizer, named: str | None = None) -> int | None:
    """Return the id of the token that follows a document, as `TokenizerSource.end_of_text`; `named` by its settings."""
    names = _END_NAMES if named is None else (named, *_END_NAMES)
    ids = map(tokenizer.token_to_id, names)
    known = next((token_id for token_id in ids if token_id is not None), None)
    known = _appended(tokenizer) if known is None else known
    return _named(tokenizer) if known is None else known


def loaded_tokenizer(spec: str) -> bytes:
    """Return the tokenizer of a spec that is not trained, as the content of a tokenizer.json; raises DataError."""
    loaded = open_tokenizer(spec).loaded
    if loaded is None:
        raise DataError(f"tokenizer {spec}: is trained on a text")
    return loaded.to_str().encode()


def open_tokenizer(spec: str) -> TokenizerSource:
    """Open the tokenizer that a spec names; raises DataError."""
    scheme, _, rest = spec.partition(":")
    known = {"bpe": _open_bpe, "gpt2-files": _open_gpt2, "file": _open_file, "hf": _open_hub}
    if scheme in known and rest:
        return known[scheme](spec, rest)
    if scheme in known:
        raise DataError(f"tokenizer {spec!r} names nothing after the scheme: expected {_SPECS}")
    if is_file(expand(spec)):
        raise DataError(f"unknown tokenizer {spec!r}; did you mean 'file:{spec}'?")
    if is_folder(expand(spec)):
        raise DataError(f"unknown tokenizer {spec!r}; did you mean 'gpt2-files:{spec}'?")
    raise DataError(f"unknown tokenizer {spec!r}{did_you_mean(scheme, known) or ':'} expected {_SPECS}")


def vocab_size_of(config: DataConfig) -> int | None:
    """Return the vocabulary size of a config's tokenizer without reading the text, None for `hf:`; raises DataError."""
    return None if config.tokenizer.startswith("hf:") else open_tokenizer(config.tokenizer).size


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json, without its truncation and padding; raises DataError."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(cannot_read(f"tokenizer {path}", error)) from error
    except Exception as error:  # the tokenizers library raises bare Exception
        raise DataError(f"tokenizer {path}: not a valid tokenizer.json: {one_line(error)}") from error
    return _without_limits(tokenizer, str(path))


def vocab_size(tokenizer: Tokenizer) -> int:
    """Return the largest token id + 1; ids may have gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _appended(tokenizer: Tokenizer) -> int | None:
    """Return the special token that the tokenizer puts behind a text, such as BERT's [SEP]."""
    try:
        plain, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    except Exception:  # the tokenizers library raises bare Exception, for a vocabulary without "a"
        return None
    return full[-1] if full and full[-1:] != plain[-1:] else None


def _named(tokenizer: Tokenizer) -> int | None:
    """Return the special token whose letters say that a text ends."""
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    letters = ((number, re.sub(r"[\W_]|▁", "", token.content).lower()) for number, token in added if token.special)
    return next((number for number, name in letters if name in _END_WORDS), None)


def _open_bpe(spec: str, rest: str) -> TokenizerSource:
    if not rest.isascii() or not rest.isdigit() or len(rest) > 9 or int(rest) not in _BPE_SIZES:
        raise DataError(
            f"tokenizer {spec!r}: expected bpe:SIZE with a SIZE from {_BPE_SIZES.start} "
            f"(256 bytes and the end of text) to {_BPE_SIZES.stop - 1}, such as bpe:2048"
        )
    return TokenizerSource(spec=spec, identity=f"bpe:{int(rest)}", size=int(rest))


def _open_gpt2(spec: str, rest: str) -> TokenizerSource:
    folder = expand(rest)
    paths = [folder / "vocab.json", folder / "merges.txt"]
    missing = [path.name for path in paths if not is_file(path)]
    if missing:
        raise DataError(f"tokenizer {spec}: no {' and no '.join(missing)} in {folder}")
    contents = [_read(path, spec) for path in paths]
    try:
        vocabulary = json.loads(contents[0])
        merges = [
            (left, right)
            for line in contents[1].decode().splitlines()
            if line.strip() and not line.startswith("#version")
            for left, right in [line.split(" ")]
        ]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # bad JSON, a merge that is not a pair, a merge of unknown tokens
        raise DataError(f"tokenizer {spec}: malformed vocab.json or merges.txt: {one_line(error)}") from error
    absent = sum(symbol not in vocabulary for symbol in pre_tokenizers.ByteLevel.alphabet())
    if absent:
        raise DataError(f"tokenizer {spec}: not byte-level BPE: vocab.json lacks {absent} of the 256 byte symbols")
    bpe.byte_level(tokenizer)
    if bpe.END_OF_TEXT in vocabulary:
        tokenizer.add_special_tokens([bpe.END_OF_TEXT])
    return _loaded(spec, f"gpt2-files:{_digest(*contents)}", tokenizer, named_end(folder, spec))


def _open_file(spec: str, rest: str) -> TokenizerSource:
    path = expand(rest)
    if is_folder(path):
        folder, path = path, path / "tokenizer.json"
        if not is_file(path):
            raise DataError(f"tokenizer {spec}: there is no file {path}{_other_files(folder)}")
    if not is_file(path):
        raise DataError(f"tokenizer {spec}: there is no file {path}")
    if path.suffix == ".model":
        raise DataError(f"tokenizer {spec}: a tokenizer.json is expected{_AS_JSON}")
    content = _read(path, spec)
    return _loaded(spec, f"file:{_digest(content)}", load_tokenizer(path), named_end(path.parent, spec))


def _other_files(folder: Path) -> str:
    """Return what to do with a tokenizer that a folder holds in other files."""
    if is_file(folder / "vocab.json") and is_file(folder / "merges.txt"):
        return f"; for its vocab.json and merges.txt: gpt2-files:{folder}"
    return _AS_JSON if any(folder.glob("*.model")) else ""


def _open_hub(spec: str, rest: str) -> TokenizerSource:
    try:
        tokenizer = Tokenizer.from_pretrained(rest)
    except Exception as error:  # the hub or the network may raise anything
        raise DataError(
            f"tokenizer {spec}: {one_line(error)}; check the name and the network, or use file:tokenizer.json"
        ) from error
    tokenizer = _without_limits(tokenizer, spec)
    return _loaded(spec, f"hf:{_digest(tokenizer.to_str().encode())}", tokenizer, _hub_end(rest))


def named_end(folder: Path, spec: str) -> str | None:
    """Return the end-of-text token that the settings beside a tokenizer name; raises DataError."""
    for name in _SETTINGS:
        path = folder / name
        if is_file(path):
            end = _end_in(_read(path, spec))
            if end is not None:
                return end
    return None


def _hub_end(name: str) -> str | None:
    """Return the end-of-text token that the settings of a tokenizer on the hub name."""
    for file in _SETTINGS:
        with contextlib.suppress(Exception):  # no such file, or the hub and the network
            path = importlib.import_module("huggingface_hub").hf_hub_download(name, file)
            if (end := _end_in(Path(path).read_bytes())) is not None:
                return end
    return None


def _end_in(content: bytes) -> str | None:
    try:
        end = json.loads(content).get("eos_token")
    except (ValueError, AttributeError, RecursionError):
        return None
    end = end.get("content") if isinstance(end, dict) else end
    return end if isinstance(end, str) and end else None


def _loaded(spec: str, identity: str, tokenizer: Tokenizer, end: str | None) -> TokenizerSource:
    size = vocab_size(tokenizer)
    if size > _MAX_TOKENS:
        raise DataError(f"tokenizer {spec}: token ids up to {size - 1}, beyond {_MAX_TOKENS - 1}")
    # the end-of-text token is among the tokens of a text
    identity = identity if end is None else f"{identity}:{end}"
    return TokenizerSource(spec=spec, identity=identity, size=size, loaded=tokenizer, end=end)


def _train_in_subprocess(spec: str, command: list[str], tick: Callable[[], None]) -> None:
    """Train in a process that can be killed; in this one, Python handles no signal until the training returns."""
    with tempfile.TemporaryFile(dir=temporary_root(f"tokenizer {spec}: its training needs a file")) as stderr:
        # a new session, so that Ctrl-C at a terminal reaches this process only
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_TICK_SECONDS)
                tick()
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            stderr.seek(0)
            lines = stderr.read().decode(errors="replace").strip().splitlines()
            reason = f": {lines[-1][:300]}" if lines else ""
            raise DataError(f"tokenizer {spec}: its training ended with exit code {process.returncode}{reason}")


def _without_limits(tokenizer: Tokenizer, name: str) -> Tokenizer:
    if not tokenizer.get_vocab_size():
        raise DataError(f"tokenizer {name}: the vocabulary is empty")
    # a file's limits, set for another model, would silently drop text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(path: Path, spec: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(cannot_read(f"tokenizer {spec}: {path}", error)) from error
    if is_lfs_pointer(content):
        raise DataError(f"tokenizer {spec}: {path}: a Git-LFS pointer, not the file itself; run `git lfs pull`")
    return content


def _digest(*contents: bytes) -> str:
    parts = "".join(hashlib.sha256(content).hexdigest() for content in contents)
    return hashlib.sha256(parts.encode()).hexdigest()
