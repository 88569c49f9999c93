"""UTF-8 bytes of the text that each token stands for, known only where the tokens give the text back byte for byte."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from tokenizers import Tokenizer, pre_tokenizers

from bitnetctl.data.token_file import CachedFile, TokenFile
from bitnetctl.files import write_synced

UNKNOWN = -1
_BYTES, _SUMS = "held_out_bytes.bin", "held_out_bytes.json"
_DTYPE = "<i2"
_MOST = np.iinfo(_DTYPE).max
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each symbol of GPT-2's byte-level alphabet: printable bytes are themselves, others follow."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


class Pieces:
    """The bytes that each token of a tokenizer stands for; special tokens and `end_of_text` stand for none.

    `are_bytes`: byte-level BPE that leaves out, adds and changes nothing, so that this holds in every text.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text: int | None) -> None:
        tree = json.loads(tokenizer.to_str())
        self._tokenizer = tokenizer
        self._byte_level = any(_has_type(tree[part], "ByteLevel") for part in ("pre_tokenizer", "decoder"))
        self._added = tokenizer.get_added_tokens_decoder()
        self._special = {end_of_text, *(number for number, token in self._added.items() if token.special)}
        self._known: dict[int, bytes] = {}
        self.are_bytes = _keeps_all_bytes(tree)

    def length(self, number: int) -> int:
        """Return the number of bytes of a token."""
        return 0 if number in self._special else len(self._piece(number))

    def lengths(self, ids_N: npt.NDArray[np.int64], text: str) -> npt.NDArray[np.int64]:
        """Return the bytes of each token of a text; all unknown unless the tokens, joined, are the text.

        A space that the tokenizer puts before a text does not count.
        """
        ids, content = ids_N.tolist(), text.encode()
        joined = b"".join(map(self._piece, ids))
        added = len(joined) - len(content)
        lengths_N = np.array([self.length(number) for number in ids], dtype=np.int64)
        if added == 0 and joined == content and lengths_N.max(initial=0) <= _MOST:
            return lengths_N
        if added == 1 and joined == b" " + content and 1 <= lengths_N[0] <= lengths_N.max() <= _MOST:
            lengths_N[0] -= 1
            return lengths_N
        return np.full(len(ids), UNKNOWN, dtype=np.int64)

    def _piece(self, number: int) -> bytes:
        """Return the bytes of a token, of a special one those of its name."""
        if number not in self._known:
            self._known[number] = self._read(number)
        return self._known[number]

    def _read(self, number: int) -> bytes:
        if number in self._added:
            return self._added[number].content.encode()
        token = self._tokenizer.id_to_token(number) or ""
        if self._byte_level and all(symbol in _ALPHABET for symbol in token):
            return bytes(_ALPHABET[symbol] for symbol in token)
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()


class MeasuredFile(TokenFile):
    """Tokens of held-out text, with the bytes of each in a second file."""

    def __init__(self, file: BinaryIO, dtype: str, pieces: Pieces, lengths: TokenFile) -> None:
        super().__init__(file, dtype)
        self._pieces = pieces
        self._lengths = lengths

    def append(self, ids_N: npt.NDArray[np.int64], text: str = "") -> None:
        """Append the tokens of a text, and their bytes."""
        super().append(ids_N)
        self._lengths.append(self._pieces.lengths(ids_N, text) if text else np.zeros_like(ids_N))


@contextlib.contextmanager
def held_out_file(folder: Path, file: BinaryIO, dtype: str, pieces: Pieces) -> Iterator[TokenFile]:
    """Yield the file of held-out tokens; writes their bytes beside it where they do not follow from the tokens."""
    if pieces.are_bytes:
        yield TokenFile(file, dtype)
        return
    with (folder / _BYTES).open("xb") as bytes_file:
        lengths = TokenFile(bytes_file, _DTYPE)
        yield MeasuredFile(file, dtype, pieces, lengths)
        sums = lengths.finish()
    write_synced(folder / _SUMS, sums.model_dump_json(indent=1).encode())


def open_bytes(folder: Path, tokens: int) -> npt.NDArray[np.int16] | None:
    """Return the bytes of each of the held-out tokens in a folder of the cache, -1 where unknown.

    None where there is no such file, as in the cache of an older version, or a damaged one.
    """
    try:
        expected = CachedFile.model_validate_json((folder / _SUMS).read_bytes())
        with (folder / _BYTES).open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != expected.sha256:
            return None
        return np.memmap(folder / _BYTES, dtype=_DTYPE, mode="r", shape=(tokens,))
    except (OSError, ValidationError, ValueError):
        return None


def _keeps_all_bytes(tree: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is byte-level BPE alone, with a token for each byte."""
    model, before = tree["model"], tree["pre_tokenizer"] or {}
    return (
        model["type"] == "BPE"
        and not any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        and set(pre_tokenizers.ByteLevel.alphabet()) <= model["vocab"].keys()
        and before.get("type") == "ByteLevel"
        and not before["add_prefix_space"]
        and tree["normalizer"] is None
        and not any(token["lstrip"] or token["rstrip"] for token in tree["added_tokens"])
    )


def _has_type(part: Any, name: str) -> bool:
    """Whether a part of a tokenizer.json, or one of a sequence in it, is of a type."""
    if isinstance(part, list):
        return any(_has_type(one, name) for one in part)
    if not isinstance(part, dict):
        return False
    return part.get("type") == name or any(_has_type(one, name) for one in part.values())
