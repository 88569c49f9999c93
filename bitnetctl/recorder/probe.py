"""The probe of a training of another program: rows of its held-out tokens, with the n-gram scores on them.

Shapes: N tokens of a text, P rows, T positions of a row, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bitnetctl.config import ProbeConfig, canonical_hash
from bitnetctl.config.load import validated
from bitnetctl.data import ProbeData, TokenData, probe_data
from bitnetctl.data.probe import row_positions, score_ngrams
from bitnetctl.data.token_bytes import UNKNOWN, Pieces
from bitnetctl.errors import ConfigError, DataError

TokenIds: TypeAlias = Sequence[int] | npt.NDArray[Any] | Any
"""Token ids [N] as a list, an array (memory-mapped, too) or a tensor."""
Encode: TypeAlias = Callable[[str], Iterable[int]]


@dataclass(frozen=True, kw_only=True)
class HeldOutProbe:
    """The positions on which every evaluation of a run is measured, the same for all runs that are compared.

    `prompts` has number, length and seed of the random prompts, `details` what a run's manifest tells of the data.
    """

    data: ProbeData
    vocab_size: int
    prompts: ProbeConfig
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_tokens(
        cls,
        train_tokens: TokenIds,
        held_out_tokens: TokenIds,
        *,
        vocab_size: int,
        held_out_bytes: TokenIds | None = None,
        positions: int = 8192,
        sequence_length: int = 64,
        random_prompts: int = 20,
        random_prompt_tokens: int = 8,
        prompt_seed: int = 0,
    ) -> "HeldOutProbe":
        """Make a probe of `positions` next-token positions in evenly spaced rows of held-out tokens.

        `positions` is rounded up to whole rows of `sequence_length`, which the model must be able to take. The unigram
        and the bigram predictor are counted on `train_tokens`, a part of the training text if it is a long one.
        `held_out_bytes` [N] are the UTF-8 bytes of text that each held-out token stands for, -1 where they are unknown;
        with them bits per byte are known.
        Raises DataError for tokens that are none of the vocabulary, and for too few of them; ConfigError for a number
        that is not positive.
        """
        prompts = _probe_config(positions, random_prompts, random_prompt_tokens, prompt_seed)
        if sequence_length < 1:
            raise ConfigError(f"probe: sequence_length is {sequence_length}; give the tokens of a row")
        train_N = _checked(train_tokens, vocab_size, "training")
        held_out_N = _checked(held_out_tokens, vocab_size, "held-out")
        rows = -(-positions // sequence_length)
        supported = (len(held_out_N) - 1) // sequence_length
        if rows > supported:
            raise DataError(
                f"probe: {len(held_out_N):,} held-out tokens support at most {max(0, supported) * sequence_length:,} "
                f"positions in rows of {sequence_length}, not {positions:,}; give more text, or lower positions"
            )
        positions_PT1 = row_positions(rows, sequence_length, len(held_out_N))
        windows_PT1 = held_out_N[positions_PT1]
        inputs_PT, targets_PT = (part.astype(np.int64) for part in (windows_PT1[:, :-1], windows_PT1[:, 1:]))
        scores = score_ngrams(train_N, inputs_PT, targets_PT, vocab_size=vocab_size)
        data = ProbeData(
            inputs_PT=inputs_PT,
            targets_PT=targets_PT,
            unique_targets=len(np.unique(targets_PT)),
            target_bytes=_target_bytes(held_out_bytes, len(held_out_N), positions_PT1[:, 1:]),
            **scores.model_dump(),
        )
        details = {"reference_tokens": len(train_N), "held_out_tokens": len(held_out_N)}
        return cls(data=data, vocab_size=vocab_size, prompts=prompts, details=details)

    @classmethod
    def from_text(
        cls,
        train_text: str | Iterable[str],
        held_out_text: str | Iterable[str],
        tokenizer: Tokenizer | Encode | Any,
        *,
        vocab_size: int | None = None,
        end_of_text: int | None = None,
        **settings: int,
    ) -> "HeldOutProbe":
        """Make a probe of texts, given as one string or as documents, each of which `end_of_text` follows.

        `tokenizer` is one of `tokenizers`, a fast one of `transformers`, or a function from a text to its token ids,
        which needs `vocab_size`. `settings` and errors are those of `from_tokens`.
        """
        fast = _unlimited(getattr(tokenizer, "backend_tokenizer", tokenizer))
        encode: Any = tokenizer if fast is None else lambda text: fast.encode(text, add_special_tokens=False).ids
        if vocab_size is None:
            if fast is None:
                raise DataError("probe: give vocab_size, which a function that encodes text does not tell")
            vocab_size = fast.get_vocab_size()
        pieces = None if fast is None else Pieces(fast, end_of_text)
        train, _ = _encoded(train_text, encode, end_of_text, None)
        held_out, held_out_bytes = _encoded(held_out_text, encode, end_of_text, pieces)
        probe = cls.from_tokens(train, held_out, vocab_size=vocab_size, held_out_bytes=held_out_bytes, **settings)
        if fast is None:
            return probe
        details = {**probe.details, "tokenizer_fingerprint": hashlib.sha256(fast.to_str().encode()).hexdigest()}
        return cls(data=probe.data, vocab_size=vocab_size, prompts=probe.prompts, details=details)

    @classmethod
    def from_data(
        cls,
        tokens: TokenData,
        *,
        positions: int = 8192,
        sequence_length: int = 64,
        random_prompts: int = 20,
        random_prompt_tokens: int = 8,
        prompt_seed: int = 0,
    ) -> "HeldOutProbe":
        """Make the probe that runs of bitnetctl on this text have; settings and errors are those of `from_tokens`."""
        prompts = _probe_config(positions, random_prompts, random_prompt_tokens, prompt_seed)
        details = {
            "source": tokens.source,
            "tokenizer": tokens.tokenizer,
            "fingerprint": tokens.fingerprint,
            "tokenizer_fingerprint": tokens.tokenizer_fingerprint,
            "reference_tokens": len(tokens.train_N),
            "held_out_tokens": len(tokens.held_out_N),
        }
        data = probe_data(tokens, positions=positions, sequence_length=sequence_length)
        return cls(data=data, vocab_size=tokens.vocab_size, prompts=prompts, details=details)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that is measured on: rows, random prompts, vocabulary and the scores of the n-gram predictors."""
        data = self.data
        scores = {"unigram": data.unigram_loss, "bigram": data.bigram_loss, "bigram_unique": data.bigram_unique}
        rows = hashlib.sha256(data.inputs_PT.tobytes() + data.targets_PT.tobytes()).hexdigest()
        prompts = self.prompts.model_dump(include={"random_prompts", "random_prompt_tokens", "seed"})
        shape = list(data.inputs_PT.shape)
        return canonical_hash({"rows": rows, "shape": shape, "V": self.vocab_size, **scores, **prompts})

    def metadata(self) -> dict[str, Any]:
        """Return what a manifest tells of the data."""
        rows, length = self.data.inputs_PT.shape
        measured = {"probe_rows": rows, "probe_row_tokens": length, "probe_fingerprint": self.fingerprint}
        return {**self.details, "vocab_size": self.vocab_size, **measured}


def _target_bytes(held_out_bytes: TokenIds | None, tokens: int, positions_PT: npt.NDArray[np.int64]) -> int | None:
    """Return the bytes of the targets, None where they are not known of all."""
    if held_out_bytes is None:
        return None
    bytes_N = np.asarray(held_out_bytes)
    if bytes_N.shape != (tokens,):
        raise DataError(f"probe: held_out_bytes are of shape {bytes_N.shape}, not ({tokens},): one for each token")
    bytes_PT = bytes_N[positions_PT]
    return None if (bytes_PT == UNKNOWN).any() else int(bytes_PT.sum(dtype=np.int64))


def _probe_config(positions: int, random_prompts: int, random_prompt_tokens: int, seed: int) -> ProbeConfig:
    tree = {
        "positions": positions,
        "random_prompts": random_prompts,
        "random_prompt_tokens": random_prompt_tokens,
        "seed": seed,
    }
    return validated(ProbeConfig, tree, "probe")


def _checked(tokens: TokenIds, vocab_size: int, what: str) -> npt.NDArray[Any]:
    """Return token ids as an array [N]; raises DataError for anything else."""
    # a tensor may be on a GPU
    array_N = np.asarray(tokens.cpu() if hasattr(tokens, "cpu") else tokens)
    if not array_N.size:
        raise DataError(f"probe: there are no {what} tokens")
    if array_N.ndim != 1 or not np.issubdtype(array_N.dtype, np.integer):
        raise DataError(
            f"probe: the {what} tokens are of shape {array_N.shape} and type {array_N.dtype}, not whole numbers [N]"
        )
    least, most = int(array_N.min()), int(array_N.max())
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise DataError(f"probe: token {wrong} of the {what} text is not below vocab_size {vocab_size}")
    return array_N


def _unlimited(tokenizer: Any) -> Tokenizer | None:
    """Return a copy of a tokenizer that neither cuts nor pads; None for what is none of `tokenizers`."""
    if not isinstance(tokenizer, Tokenizer):
        return None
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _encoded(
    text: str | Iterable[str], encode: Encode, end_of_text: int | None, pieces: Pieces | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Return the token ids [N] of documents and, with `pieces`, the bytes of each."""
    end = [] if end_of_text is None else [end_of_text]
    ids, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for document in [text] if isinstance(text, str) else text:
        ids_N = np.array([*encode(document)], dtype=np.int64)
        ids += [ids_N, np.array(end, dtype=np.int64)]
        if pieces is not None:
            sizes += [pieces.lengths(ids_N, document), np.zeros(len(end), dtype=np.int64)]
    return np.concatenate(ids), None if pieces is None else np.concatenate(sizes)
