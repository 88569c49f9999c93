"""Continuations of prompts, token by token.

Shapes: R runs, B rows, T positions of a prompt.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bitnetctl.inference.decoding import Decoder
from bitnetctl.inference.sampling import NO_TOKEN, Sampler, Sampling
from bitnetctl.model.packed import PackedModel


def generated_tokens(decoder: Decoder, sampler: Sampler, prompts_RBT: Tensor) -> Iterator[Tensor]:
    """Yield the next token [R, B] of every row without end; `NO_TOKEN` from where a row's logits are not finite.

    One prompt [R, 1, T] stands for all rows. What follows a token is computed when the next one is asked for.
    """
    tokens_RB = sampler.choose(decoder.prefill(prompts_RBT))
    while True:
        yield tokens_RB
        next_RB = sampler.choose(decoder.step(tokens_RB))
        tokens_RB = next_RB.masked_fill(tokens_RB == NO_TOKEN, NO_TOKEN)


def continuations(
    model: PackedModel,
    quant_lambdas: Sequence[float],
    prompts_RBT: Tensor,
    *,
    new_tokens: int,
    sampling: Sampling,
    context_length: int,
) -> Tensor:
    """Return the tokens [R, B, new_tokens] that follow prompts of equal length, `NO_TOKEN` as `generated_tokens` does.

    Row b of every run draws from (seed, b) alone, in packs of every size. No token ends a row.
    """
    rows = prompts_RBT.shape[1]
    decoder, sampler = Decoder(model, quant_lambdas, context_length, rows), Sampler(sampling, rows)
    tokens = generated_tokens(decoder, sampler, prompts_RBT)
    return torch.stack([next(tokens) for _ in range(new_tokens)], dim=-1)
