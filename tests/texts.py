"""Small texts, their data config, and what a test reads back from the tokens."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnetctl import data
from bitnetctl.config import DataConfig
from bitnetctl.errors import ConfigError, DataError, ExitCode

END = "<|endoftext|>"


def prose(lines: int, seed: int = 0) -> str:
    """Lines of eight made-up words."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghij", k=generator.randint(2, 6))) for _ in range(150)]
    return "".join(" ".join(generator.choices(words, k=8)) + "\n" for _ in range(lines))


def data_config(source: Path | str, **fields: Any) -> DataConfig:
    """The data config of a file or a spec, with a small tokenizer."""
    spec = f"file:{source}" if isinstance(source, Path) else source
    return DataConfig.model_validate({"source": spec, "tokenizer": "bpe:300", **fields})


def decode(tokens: data.TokenData, ids_N: Any) -> str:
    """The text of tokens, with special tokens."""
    tokenizer = data.load_tokenizer(tokens.tokenizer_path)
    return str(tokenizer.decode(ids_N.tolist(), skip_special_tokens=False))


def failure(source: Path | str, **fields: Any) -> str:
    """The one line of the error of `prepare`, which leaves nothing in the cache."""
    with pytest.raises(DataError) as caught:
        data.prepare(data_config(source, **fields))
    assert caught.value.exit_code == ExitCode.USAGE
    assert isinstance(caught.value, ConfigError)
    message = str(caught.value)
    assert "\n" not in message
    root = data.cache_folder() / "tokens"
    assert not root.exists() or not list(root.iterdir())
    return message


def token_data(train: Any, held_out: Any = (0, 1), *, vocab_size: int = 8, **fields: Any) -> data.TokenData:
    """Tokens that were not read from a text."""
    return data.TokenData(
        **{
            "train_N": np.array(train, dtype=np.uint16),
            "held_out_N": np.array(held_out, dtype=np.uint16),
            "vocab_size": vocab_size,
            "fingerprint": "f" * 64,
            "tokenizer_fingerprint": "t" * 64,
            "source": "stdlib",
            "tokenizer": "bpe:300",
            "tokenizer_path": Path("tokenizer.json"),
            "end_of_text": 0,
            **fields,
        }
    )
