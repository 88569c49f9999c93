"""Measures of text: how much of it a model that ignores its context would not write.

Shapes: B texts, P tokens of a prompt, N tokens of its continuation.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np

from bitnetctl.data.ngrams import Int64s, Ngrams
from bitnetctl.records.samples import TextMeasures

REPEATED = 4
"""The n of the repetition of a text."""
DISTINCT = 2
"""The n of distinct-n."""


def measures(prompts_BP: Int64s, tokens_BN: Int64s, texts: Sequence[str], ngrams: Ngrams | None) -> TextMeasures:
    """Return every measure of continuations; `texts` are those of `tokens_BN`."""
    return TextMeasures(
        bigram_nats=None if ngrams is None else bigram_nats(prompts_BP, tokens_BN, ngrams),
        repetition=repetition(tokens_BN),
        distinct=distinct(tokens_BN),
        zipf=zipf_exponent(tokens_BN),
        compression=compression_ratio("\n".join(texts)),
    )


def bigram_nats(prompts_BP: Int64s, tokens_BN: Int64s, ngrams: Ngrams) -> float:
    """Return the cross-entropy of continuations under the bigram predictor of the training text, in nats per token.

    The first token of each is predicted from the last of its prompt. That of human text is the bigram predictor's
    held-out loss; tokens drawn without regard to the one before them have more.
    """
    contexts_BN = np.concatenate([prompts_BP[:, -1:], tokens_BN[:, :-1]], axis=1)
    return float(ngrams.bigram_nats(contexts_BN.ravel(), tokens_BN.ravel()).mean())


def repetition(tokens_BN: Int64s, n: int = REPEATED) -> float:
    """Return 1 - distinct n-grams / n-grams of each text, averaged over the texts; 0 where these are shorter than n.

    seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319), section 6.
    """
    shares = [1 - len(set(grams)) / len(grams) for tokens_N in tokens_BN if (grams := _ngrams(tokens_N, n))]
    return float(np.mean(shares)) if shares else 0.0


def distinct(tokens_BN: Int64s, n: int = DISTINCT) -> float:
    """Return distinct n-grams / n-grams over all texts together (distinct-n, Li et al. 2016, arXiv 1510.03055)."""
    grams = [gram for tokens_N in tokens_BN for gram in _ngrams(tokens_N, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def zipf_exponent(tokens_BN: Int64s) -> float | None:
    """Return s of frequency ~ rank^-s, by least squares of the logarithms over all ranks (Holtzman et al. 2020, 5.2).

    None with fewer than two distinct tokens.
    """
    counts = np.sort(np.unique(tokens_BN, return_counts=True)[1])[::-1]
    if len(counts) < 2:
        return None
    slope = np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0]
    # not -0
    return max(0.0, -float(slope))


def compression_ratio(text: str) -> float:
    """Return UTF-8 bytes / bytes after zlib (Shaib et al. 2024, arXiv 2403.00553); more is more alike within itself."""
    content = text.encode()
    return len(content) / len(zlib.compress(content, 9))


def perplexity(nats: float) -> float:
    """Return exp of a cross-entropy in nats; infinite beyond what a float holds."""
    return math.exp(nats) if nats < math.log(np.finfo(float).max) else math.inf


def _ngrams(tokens_N: Int64s, n: int) -> list[tuple[int, ...]]:
    tokens = tokens_N.tolist()
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))
