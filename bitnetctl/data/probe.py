"""The probe: the fixed held-out positions of every evaluation, and the loss of n-gram predictors on them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from bitnetctl.data.sources import Progress, no_progress
from bitnetctl.data.store import TokenData, Tokens, cache_folder
from bitnetctl.data.token_bytes import UNKNOWN, Pieces
from bitnetctl.data.tokenizer import load_tokenizer
from bitnetctl.errors import DataError
from bitnetctl.files import write_atomic

_FORMAT = 1
_CHUNK_TOKENS = 1 << 22

Int64s = npt.NDArray[np.int64]


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
    """Score the unigram and bigram predictors of the training tokens on a probe; losses in nats.

    Unigram, add-one (Laplace): P(w) = (c(w) + 1) / (N + V). Bigram, interpolated Witten-Bell:
    P(w|v) = (c(v, w) + t(v) P(w)) / (c(v) + t(v)), with t(v) the number of distinct followers of v; P(w) where v
    has none (Witten & Bell 1991, method C; Chen & Goodman 1998 for the interpolated form). Ties of the arg-max go to
    the lowest token id. Only contexts of the probe are counted, in chunks of the text.
    """
    contexts_C, context = np.unique(inputs_PT, return_inverse=True)
    unigrams_V, keys_K, counts_K = _count(train_N, contexts_C, vocab_size, progress)
    total = len(train_N) + vocab_size
    unigram_V = (unigrams_V + 1) / total
    context_K, token_K = keys_K // vocab_size, keys_K % vocab_size
    types_C = np.bincount(context_K, minlength=len(contexts_C))
    seen_C = np.bincount(context_K, weights=counts_K, minlength=len(contexts_C))

    context_M, target_M = context.ravel(), targets_PT.ravel()
    key_M = context_M * vocab_size + target_M
    before_K1 = np.concatenate([[0], np.cumsum(counts_K)])
    # for a bigram that is not among the keys both indices are equal, so its count is 0
    count_M = before_K1[np.searchsorted(keys_K, key_M, "right")] - before_K1[np.searchsorted(keys_K, key_M)]
    types_M = types_C[context_M]
    # an unseen context has no followers: the unigram alone
    weight_M = np.where(types_M > 0, types_M, 1)
    bigram_M = (count_M + weight_M * unigram_V[target_M]) / (seen_C[context_M] + weight_M)
    predicted_C = _arg_max(context_K, token_K, counts_K, types_C, unigrams_V, total)
    return NgramScores(
        unigram_loss=float(-np.log(unigram_V[target_M]).mean()),
        bigram_loss=float(-np.log(bigram_M).mean()),
        # contexts_C holds the contexts of the probe only
        bigram_unique=len(np.unique(predicted_C)),
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


def _count(train_N: Tokens, contexts_C: Int64s, vocab_size: int, progress: Progress) -> tuple[Int64s, Int64s, Int64s]:
    """Count tokens, and bigrams of the given contexts; a bigram's key is its context index x V + token.

    Returns unigrams_V, the sorted keys_K and counts_K.
    """
    index_V = np.full(vocab_size, -1, dtype=np.int64)
    index_V[contexts_C] = np.arange(len(contexts_C))
    unigrams_V = np.zeros(vocab_size, dtype=np.int64)
    merged = (np.empty(0, np.int64), np.empty(0, np.int64))
    pending: list[tuple[Int64s, Int64s]] = []
    total = len(train_N)
    for start in range(0, total, _CHUNK_TOKENS):
        progress("counting bigrams", start, total)
        # one token more, for the bigram across two chunks
        chunk_N = np.asarray(train_N[start : start + _CHUNK_TOKENS + 1]).astype(np.int64)
        unigrams_V += np.bincount(chunk_N[:_CHUNK_TOKENS], minlength=vocab_size)
        index_N = index_V[chunk_N[:-1]]
        keys_N = (index_N * vocab_size + chunk_N[1:])[index_N >= 0]
        keys, counts = np.unique(keys_N, return_counts=True)
        pending.append((keys, counts.astype(np.int64)))
        # merge only when as much is pending as is merged: linear work, and memory of twice the result
        if sum(len(keys) for keys, _ in pending) > max(len(merged[0]), _CHUNK_TOKENS):
            merged, pending = _merge([merged, *pending]), []
    progress("counting bigrams", total, total)
    return unigrams_V, *_merge([merged, *pending])


def _merge(counted: list[tuple[Int64s, Int64s]]) -> tuple[Int64s, Int64s]:
    keys_K, index = np.unique(np.concatenate([keys for keys, _ in counted]), return_inverse=True)
    counts_K = np.bincount(index, weights=np.concatenate([counts for _, counts in counted]))
    return keys_K, counts_K.astype(np.int64)


def _arg_max(
    context_K: Int64s, token_K: Int64s, counts_K: Int64s, types_C: Int64s, unigrams_V: Int64s, total: int
) -> Int64s:
    """Return the most probable next token of every context: one of its followers, or the most frequent token."""
    contexts_C = np.arange(len(types_C))
    # in every context the best token that was not seen there is the most frequent one: add it with count 0
    context = np.concatenate([context_K, contexts_C])
    token = np.concatenate([token_K, np.full_like(contexts_C, np.argmax(unigrams_V))])
    count = np.concatenate([counts_K, np.zeros_like(contexts_C)])
    # the probability's numerator x (N + V) is an integer, so ties are exact; beyond 3e9 tokens it overflows 64 bits
    exact = np.int64 if total**2 < 2**63 else np.float64
    score = count.astype(exact) * total + types_C[context].astype(exact) * (unigrams_V[token] + 1)
    order = np.lexsort((token, -score, context))
    first_C = np.searchsorted(context[order], contexts_C)
    return token[order][first_C]
