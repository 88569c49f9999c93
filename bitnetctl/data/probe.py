"""The probe: the fixed held-out positions of every evaluation, and the loss of n-gram predictors on them."""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from bitnetctl.data.ngrams import Int64s, Ngrams
from bitnetctl.data.sources import Progress, no_progress
from bitnetctl.data.store import TokenData, Tokens, cache_folder
from bitnetctl.data.token_bytes import UNKNOWN, Pieces
from bitnetctl.data.tokenizer import load_tokenizer
from bitnetctl.errors import DataError
from bitnetctl.files import write_atomic

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Rows of held-out tokens, and the scores of the n-gram predictors on them; losses in nats.

    `unique_targets` counts distinct targets, `bigram_unique` distinct arg-max predictions of the bigram predictor.
    `target_bytes` are the UTF-8 bytes of the text that the targets stand for, special tokens for none; None where they
    are unknown, and `no_bytes` says why.
    """

    inputs_PT: Int64s
    targets_PT: Int64s
    unique_targets: int
    unigram_loss: float
    bigram_loss: float
    bigram_unique: int
    target_bytes: int | None = None
    no_bytes: str | None = None


class NgramScores(BaseModel):
    """Scores of the unigram and the bigram predictor on a probe; losses in nats."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    unigram_loss: float
    bigram_loss: float
    bigram_unique: int


class _CachedScores(NgramScores):
    format: int
    fingerprint: str
    rows: int
    sequence_length: int


def probe_data(data: TokenData, *, positions: int, sequence_length: int, progress: Progress = no_progress) -> ProbeData:
    """Return evenly spaced, non-overlapping rows of held-out tokens, with the n-gram scores on them.

    `positions` is rounded up to whole rows of `sequence_length`. The scores are cached beside the tokens.
    Raises DataError when the held-out text is too short, StorageError when the cache cannot be written.
    """
    held_out_N = data.held_out_N.view(np.ndarray)
    rows = -(-positions // sequence_length)
    supported = (len(held_out_N) - 1) // sequence_length
    if rows > supported:
        remedy = (
            f"lower probe.positions to {supported * sequence_length}, give"
            if supported > 0
            else "lower data.sequence_length, give"
        )
        raise DataError(
            f"data source {data.source}: {len(held_out_N)} held-out tokens support at most "
            f"{max(0, supported) * sequence_length} probe positions in rows of {sequence_length}, "
            f"not {positions}; {remedy} more text or raise data.held_out_fraction"
        )
    positions_PT1 = row_positions(rows, sequence_length, len(held_out_N))
    windows_PT1 = held_out_N[positions_PT1].astype(np.int64)
    inputs_PT, targets_PT = windows_PT1[:, :-1].copy(), windows_PT1[:, 1:].copy()
    scores = _cached_scores(data, inputs_PT, targets_PT, progress)
    target_bytes, no_bytes = _count_bytes(data, targets_PT, positions_PT1[:, 1:])
    return ProbeData(
        inputs_PT=inputs_PT,
        targets_PT=targets_PT,
        unique_targets=len(np.unique(targets_PT)),
        target_bytes=target_bytes,
        no_bytes=no_bytes,
        **scores.model_dump(),
    )


def _count_bytes(data: TokenData, targets_PT: Int64s, positions_PT: Int64s) -> tuple[int | None, str | None]:
    """Return the bytes of the targets, or None and why they are unknown."""
    if data.held_out_bytes_N is not None:
        bytes_PT = data.held_out_bytes_N[positions_PT]
        if (bytes_PT != UNKNOWN).all():
            return int(bytes_PT.sum(dtype=np.int64)), None
        return None, "its tokens do not give the text of the probe back byte for byte"
    try:
        pieces = Pieces(load_tokenizer(data.tokenizer_path), data.end_of_text)
    except DataError as error:
        return None, str(error)
    if not pieces.are_bytes:
        folder = data.tokenizer_path.parent
        return None, f"an older version made the token cache, or it is damaged; remove {folder}"
    tokens, counts = np.unique(targets_PT, return_counts=True)
    lengths_K = np.array([pieces.length(token) for token in tokens.tolist()], dtype=np.int64)
    return int(lengths_K @ counts), None


def row_positions(rows: int, sequence_length: int, tokens: int) -> Int64s:
    """Return the positions [P, T + 1] of evenly spaced rows in a text, with the target of the last of each."""
    starts_P = np.arange(rows, dtype=np.int64) * (tokens - 1) // rows
    return starts_P[:, None] + np.arange(sequence_length + 1)


def score_ngrams(
    train_N: Tokens, inputs_PT: Int64s, targets_PT: Int64s, *, vocab_size: int, progress: Progress = no_progress
) -> NgramScores:
    """Score the unigram and bigram predictors of the training tokens, see `Ngrams`, on a probe; losses in nats."""
    ngrams = Ngrams.count(train_N, np.unique(inputs_PT), vocab_size=vocab_size, progress=progress)
    return NgramScores(
        unigram_loss=float(ngrams.unigram_nats(targets_PT.ravel()).mean()),
        bigram_loss=float(ngrams.bigram_nats(inputs_PT.ravel(), targets_PT.ravel()).mean()),
        # only contexts of the probe are counted
        bigram_unique=len(np.unique(ngrams.predictions())),
    )


def _cached_scores(data: TokenData, inputs_PT: Int64s, targets_PT: Int64s, progress: Progress) -> NgramScores:
    rows, length = inputs_PT.shape
    path = cache_folder() / "references" / f"{data.fingerprint[:32]}-{rows}x{length}.json"
    key = {"format": _FORMAT, "fingerprint": data.fingerprint, "rows": rows, "sequence_length": length}
    try:
        cached = _CachedScores.model_validate_json(path.read_bytes())
        if cached.model_dump(include=set(key)) == key:
            return NgramScores(**cached.model_dump(exclude=set(key)))
        progress("recounting bigrams (the cached scores are of other tokens)", 0, None)
    except FileNotFoundError:
        pass
    except (OSError, ValidationError):
        progress("recounting bigrams (the cached scores are damaged)", 0, None)
    scores = score_ngrams(data.train_N, inputs_PT, targets_PT, vocab_size=data.vocab_size, progress=progress)
    entry = _CachedScores.model_validate({**key, **scores.model_dump()})
    write_atomic(path, entry.model_dump_json(indent=1).encode())
    return scores
