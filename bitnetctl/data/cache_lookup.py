"""What the token cache holds of a run that was trained before, by the hashes in its manifest; nothing is built."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bitnetctl.config import DataConfig
from bitnetctl.data.store import TokenData, cache_folder, open_tokens, read_tokenizer
from bitnetctl.errors import DataError


def cached_tokenizer(fingerprint: str) -> bytes | None:
    """Return the content of the tokenizer.json of this fingerprint in the cache, None where it has none."""
    for folder in _folders(fingerprint):
        # without other checks: text and tokens do not matter here
        content = read_tokenizer(folder / "tokenizer.json", fingerprint)
        if content is not None:
            return content
    return None


def cached_tokens(config: DataConfig, fingerprint: str) -> TokenData | None:
    """Return the tokens of this fingerprint, checked, as those of a config; None where the cache has none."""
    for folder in _folders(fingerprint):
        with contextlib.suppress(DataError):
            tokens = open_tokens(folder, config)
            if tokens.fingerprint == fingerprint:
                return tokens
    return None


def _folders(fingerprint: str) -> Iterator[Path]:
    """Yield the folders of the cache whose meta.json names a hash."""
    for meta in sorted((cache_folder() / "tokens").glob("*/meta.json")):
        with contextlib.suppress(OSError):
            if fingerprint.encode() in meta.read_bytes():
                yield meta.parent
