"""Unigram and bigram predictors of a training text, which score any tokens."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from bitnetctl.data.sources import Progress, no_progress
from bitnetctl.data.store import Tokens

_CHUNK_TOKENS = 1 << 22

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ngrams:
    """Counts of tokens, and of bigrams of some contexts.

    Unigram, add-one (Laplace): P(w) = (c(w) + 1) / (N + V). Bigram, interpolated Witten-Bell:
    P(w|v) = (c(v, w) + t(v) P(w)) / (c(v) + t(v)), with t(v) the number of distinct followers of v; P(w) where v
    has none (Witten & Bell 1991, method C; Chen & Goodman 1998 for the interpolated form). A bigram's key is the index
    of its context x V + its token.
    """

    contexts_C: Int64s
    unigrams_V: Int64s
    keys_K: Int64s
    counts_K: Int64s

    @classmethod
    def count(cls, train_N: Tokens, contexts_C: Int64s, *, vocab_size: int, progress: Progress = no_progress) -> Self:
        """Count a text, in chunks; `contexts_C` are the tokens, ascending, after which bigrams are counted."""
        unigrams_V, keys_K, counts_K = _count(train_N, contexts_C, vocab_size, progress)
        return cls(contexts_C=contexts_C, unigrams_V=unigrams_V, keys_K=keys_K, counts_K=counts_K)

    def unigram_nats(self, targets_N: Int64s) -> Float64s:
        """Return -log P(w) of each token."""
        return -np.log(self._unigram(targets_N))

    def bigram_nats(self, contexts_N: Int64s, targets_N: Int64s) -> Float64s:
        """Return -log P(w|v) of each token w after v; every v must be among the contexts that were counted."""
        context_N = np.searchsorted(self.contexts_C, contexts_N)
        key_N = context_N * len(self.unigrams_V) + targets_N
        before_K1 = np.concatenate([[0], np.cumsum(self.counts_K)])
        # for a bigram that is not among the keys both indices are equal, so its count is 0
        first_N, end_N = np.searchsorted(self.keys_K, key_N), np.searchsorted(self.keys_K, key_N, "right")
        count_N = before_K1[end_N] - before_K1[first_N]
        types_C = self._types()
        seen_C = np.bincount(self._context_of_key, weights=self.counts_K, minlength=len(self.contexts_C))
        types_N = types_C[context_N]
        # an unseen context has no followers: the unigram alone
        weight_N = np.where(types_N > 0, types_N, 1)
        bigram_N: Float64s = (count_N + weight_N * self._unigram(targets_N)) / (seen_C[context_N] + weight_N)
        return -np.log(bigram_N)

    def predictions(self) -> Int64s:
        """Return the most probable token after each context; ties go to the lowest token id."""
        token_K = self.keys_K % len(self.unigrams_V)
        return _arg_max(self._context_of_key, token_K, self.counts_K, self._types(), self.unigrams_V, self._denominator)

    @property
    def _denominator(self) -> int:
        """N + V."""
        return int(self.unigrams_V.sum()) + len(self.unigrams_V)

    @property
    def _context_of_key(self) -> Int64s:
        return self.keys_K // len(self.unigrams_V)

    def _types(self) -> Int64s:
        """Return the number of distinct followers [C] of each context."""
        return np.bincount(self._context_of_key, minlength=len(self.contexts_C))

    def _unigram(self, targets_N: Int64s) -> Float64s:
        probability_N: Float64s = (self.unigrams_V[targets_N] + 1) / self._denominator
        return probability_N


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
