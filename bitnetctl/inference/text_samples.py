"""Text that the runs of a pack write from prompts of held-out text, measured beside the human text that follows there.

Shapes: R runs, B prompts, P tokens of a prompt, N tokens of a continuation.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer

from bitnetctl.config import RunConfig
from bitnetctl.data import TokenData, load_tokenizer
from bitnetctl.data.ngrams import Int64s, Ngrams
from bitnetctl.data.probe import row_positions
from bitnetctl.errors import DataError
from bitnetctl.inference.generation import continuations
from bitnetctl.inference.quality import measures
from bitnetctl.inference.sampler import NO_TOKEN
from bitnetctl.inference.sampling import Sampling
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.model.packed import PackedModel
from bitnetctl.records.samples import Continuation, Samples

PROMPTS = 16
NEW_TOKENS = 64
SAMPLING = Sampling(temperature=1.0, top_k=None)
"""The model's own distribution: what is cut off would hide what a model has not learnt."""
_LONGEST_PROMPT = 16


def takes_under_one_percent(config: RunConfig, train_tokens: int) -> bool:
    """Whether writing text takes less than 1 % of the time in which a run of this effective config is trained.

    Counted in training steps, so that it follows from the shapes alone, and a run does the same in every pack: a
    forward pass, of one prompt or of the next token of all, is taken for 0.4 steps, counting the bigrams of 70,000
    training tokens for one, and a token that is read or written for a third of one that is trained on.
    """
    context = config.data.sequence_length
    prompt, half = _prompt_length(context), max(1, context // 2)
    # a full context is computed again from its newest half
    again = max(0, prompt + NEW_TOKENS - context + half - 1) // half
    passes = PROMPTS * (1 + again) + NEW_TOKENS
    tokens = PROMPTS * (prompt + NEW_TOKENS + again * half)
    steps = 2 * (0.4 * passes + tokens / (3 * config.data.tokens_per_step)) + train_tokens / 70_000
    return steps < 0.01 * (config.steps - config.extended_steps)


class TextSampler:
    """Lets runs of one text and probe go on from prompts of its held-out part.

    The prompts are the first tokens of evenly spaced rows of the probe, half of a row and at most 16; human text is
    what follows them there. `config` is the effective config of one of the runs.
    """

    def __init__(self, tokens: TokenData, config: RunConfig) -> None:
        self._tokens = tokens
        self._context_length = config.data.sequence_length
        self._prompts_BP, self._human_BN = prompts_of(tokens, config)
        self._tokenizer: Tokenizer | None = None

    def sample(self, model: PackedModel, quant_lambdas: Sequence[float], step: int) -> list[Samples | None]:
        """Return the text of every run after `step`; None for a run whose logits are not finite.

        It does not depend on the other runs of the pack, but by rounding on how these are computed.
        """
        prompts_RBP = torch.from_numpy(self._prompts_BP).to(model.device).expand(model.num_runs, -1, -1)
        greedy_RBN, sampled_RBN = (
            continuations(
                model,
                quant_lambdas,
                prompts_RBP,
                new_tokens=self._human_BN.shape[1],
                sampling=sampling,
                context_length=self._context_length,
            )
            .cpu()
            .numpy()
            for sampling in (Sampling(temperature=0.0), SAMPLING)
        )
        valid = [bool((of_run != NO_TOKEN).all()) for of_run in np.concatenate([greedy_RBN, sampled_RBN], 1)]
        written = np.concatenate([greedy_RBN[valid].ravel(), sampled_RBN[valid].ravel()])
        contexts = np.concatenate([self._prompts_BP.ravel(), self._human_BN.ravel(), written])
        ngrams = Ngrams.count(self._tokens.train_N, np.unique(contexts), vocab_size=self._tokens.vocab_size)
        return [
            self._samples(greedy_BN, sampled_BN, ngrams, step) if is_valid else None
            for greedy_BN, sampled_BN, is_valid in zip(greedy_RBN, sampled_RBN, valid, strict=True)
        ]

    def _samples(self, greedy_BN: Int64s, sampled_BN: Int64s, ngrams: Ngrams, step: int) -> Samples:
        prompts_BP, human_BN = self._prompts_BP, self._human_BN
        prompts, human, greedy, sampled = map(self._decoded, (prompts_BP, human_BN, greedy_BN, sampled_BN))
        return Samples(
            step=step,
            context_length=self._context_length,
            prompt_tokens=prompts_BP.shape[1],
            new_tokens=human_BN.shape[1],
            temperature=SAMPLING.temperature,
            top_k=SAMPLING.top_k,
            top_p=SAMPLING.top_p,
            min_p=SAMPLING.min_p,
            seed=SAMPLING.seed,
            human=measures(prompts_BP, human_BN, human, ngrams),
            greedy=measures(prompts_BP, greedy_BN, greedy, ngrams),
            sampled=measures(prompts_BP, sampled_BN, sampled, ngrams),
            texts=[
                Continuation(prompt=prompt, human=following, greedy=probable, sampled=drawn)
                for prompt, following, probable, drawn in zip(prompts, human, greedy, sampled, strict=True)
            ],
        )

    def _decoded(self, tokens_BN: Int64s) -> list[str]:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._tokens.tokenizer_path)
        return self._tokenizer.decode_batch(tokens_BN.tolist(), skip_special_tokens=False)


def text_of(run: TrainedRun) -> Samples:
    """Return the text that an opened run writes; raises DataError where the token cache has not its text any more."""
    tokens = run.training_tokens()
    if tokens is None:
        source = run.config.data.source
        raise DataError(
            f"run {run.name}: the token cache has not the text that it was trained on, from which the prompts are; "
            f"put {source} back and start a training on it, such as bitnetctl train with its config and --steps 1"
        )
    [samples] = TextSampler(tokens, run.config).sample(run.model, [run.quant_lambda], run.step)
    if samples is None:
        raise DataError(f"run {run.name}: its logits are not finite, so it writes nothing")
    return samples


def prompts_of(tokens: TokenData, config: RunConfig) -> tuple[Int64s, Int64s]:
    """Return prompts [B, P] of held-out text and the tokens [B, N] that follow them there.

    B is at most PROMPTS and N at most NEW_TOKENS; a short text has fewer of both.
    """
    held_out_N = tokens.held_out_N.view(np.ndarray)
    length = config.data.sequence_length
    prompt = _prompt_length(length)
    rows = min(-(-config.probe.positions // length), (len(held_out_N) - 1) // length)
    starts_B = row_positions(rows, length, len(held_out_N))[np.arange(PROMPTS) * rows // PROMPTS, 0]
    new = min(NEW_TOKENS, len(held_out_N) - prompt)
    starts_B = np.unique(np.minimum(starts_B, len(held_out_N) - prompt - new))
    rows_BN = held_out_N[starts_B[:, None] + np.arange(prompt + new)].astype(np.int64)
    return rows_BN[:, :prompt], rows_BN[:, prompt:]


def _prompt_length(context: int) -> int:
    return max(1, min(_LONGEST_PROMPT, context // 2))
