"""How well a run predicts any text, at the context that it was trained with.

Shapes: T positions of a row, W windows, N tokens of a text, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bitnetctl.data.ngrams import Int64s, Ngrams
from bitnetctl.data.store import Tokens
from bitnetctl.data.token_bytes import UNKNOWN, Pieces
from bitnetctl.errors import ConfigError, DataError
from bitnetctl.inference.quality import perplexity
from bitnetctl.inference.trained import TrainedRun

_CHUNK_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class TextTokens:
    """A text as a model sees it: `ids_N` with a first token that is not scored, and the bytes of those that are.

    The first token is the end of text, as in training, where a document follows another; a tokenizer without one has
    none, and then the first token of the text is not scored. `num_bytes` is None, and `no_bytes` says why, where the
    tokens do not give the text back.
    """

    ids_N: Int64s
    num_bytes: int | None
    no_bytes: str | None = None
    first_unscored: bool = False


@dataclass(frozen=True, kw_only=True)
class Score:
    """The loss of a predictor on a text, in nats per token."""

    nats: float
    tokens: int
    num_bytes: int | None

    @property
    def bits_per_byte(self) -> float | None:
        """Loss in bits over bytes of text, which does not depend on the tokenizer; None without bytes."""
        return self.nats / math.log(2) * self.tokens / self.num_bytes if self.num_bytes else None

    @property
    def perplexity(self) -> float:
        """exp of the loss; it depends on the tokenizer."""
        return perplexity(self.nats)


def tokenize(run: TrainedRun, text: str, name: str) -> TextTokens:
    """Return the tokens of a text with the run's tokenizer; raises DataError for one without a token to score."""
    ids = run.encode(text)
    ids_N = np.array(ids, dtype=np.int64)
    lengths_N = Pieces(run.tokenizer, run.end_of_text).lengths(ids_N, text)
    is_known = bool((lengths_N != UNKNOWN).all())
    if run.end_of_text is None:
        scored_N = lengths_N[1:]
    else:
        scored_N, ids_N = lengths_N, np.concatenate([[run.end_of_text], ids_N])
    if len(ids_N) < 2:
        raise DataError(f"{name}: {len(ids)} tokens are too few to score with the tokenizer of {run.name}; give more")
    return TextTokens(
        ids_N=ids_N,
        num_bytes=int(scored_N.sum()) if is_known else None,
        no_bytes=None if is_known else f"the tokens of {run.name} do not give the text back byte for byte",
        first_unscored=run.end_of_text is None,
    )


def score(run: TrainedRun, tokens: TextTokens, stride: int | None = None) -> Score:
    """Return the model's loss on every token but the first.

    By default in rows of the trained context that do not overlap, as the probe does: a token sees those of its row.
    With a `stride` rows begin every `stride` tokens and only their last `stride` tokens are scored, so each has at
    least context - stride tokens before it, as far as the text has. Raises ConfigError for a stride beyond the context.
    """
    context = run.context_length
    if stride is not None and not 1 <= stride <= context:
        raise ConfigError(f"stride {stride}: {run.name} was trained with {context} tokens; take 1 to {context}")
    logits = run.model.prepared([run.quant_lambda])
    total = torch.zeros((), dtype=torch.float64)
    batch = max(1, _CHUNK_BYTES // (4 * context * run.model.vocab_size))
    with torch.no_grad():
        for inputs_WT, targets_WT, scored in _windows(tokens.ids_N, context, stride or context, batch):
            inputs = torch.from_numpy(inputs_WT).to(run.model.device)
            targets = torch.from_numpy(targets_WT).to(run.model.device)
            logits_WTV = logits(inputs.unsqueeze(0))[0].unflatten(0, tuple(inputs.shape))[:, -scored:]
            losses = F.cross_entropy(logits_WTV.flatten(0, 1).float(), targets[:, -scored:].flatten(), reduction="none")
            total += losses.double().sum().cpu()
    count = len(tokens.ids_N) - 1
    return Score(nats=float(total) / count, tokens=count, num_bytes=tokens.num_bytes)


def score_ngrams(train_N: Tokens, tokens: TextTokens, vocab_size: int) -> dict[str, Score]:
    """Return the loss of the unigram and the bigram predictor of a training text on the same tokens."""
    contexts_N, targets_N = tokens.ids_N[:-1], tokens.ids_N[1:]
    ngrams = Ngrams.count(train_N, np.unique(contexts_N), vocab_size=vocab_size)
    nats = {"unigram": ngrams.unigram_nats(targets_N), "bigram": ngrams.bigram_nats(contexts_N, targets_N)}
    return {
        name: Score(nats=float(of_name.mean()), tokens=len(targets_N), num_bytes=tokens.num_bytes)
        for name, of_name in nats.items()
    }


Windows = Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]]


def _windows(ids_N: Int64s, context: int, stride: int, batch: int) -> Windows:
    """Yield inputs [W, T], targets [W, T] and how many of the last positions of each row are scored.

    Every token but the first is scored once. Rows are of one length in a batch.
    """
    count = len(ids_N) - 1
    first = min(context, count)
    yield ids_N[None, :first], ids_N[None, 1 : first + 1], first
    # after the first row, every row ends `stride` tokens later
    ends = np.arange(first + stride, count + 1, stride)
    for start in range(0, len(ends), batch):
        positions = ends[start : start + batch, None] - context + np.arange(context)
        yield ids_N[positions], ids_N[positions + 1], stride
    rest = (count - first) % stride
    if rest:
        # by default the rest is a row of its own, as short as it is
        length = rest if stride == context else context
        yield ids_N[None, count - length : count], ids_N[None, count - length + 1 :], rest
