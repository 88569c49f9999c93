"""Continuations of prompts, token by token.

Shapes: R runs, B rows, T positions of a prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bitnetctl.errors import CheckpointError, ConfigError
from bitnetctl.inference.decoding import Decoder
from bitnetctl.inference.sampler import NO_TOKEN, Sampler
from bitnetctl.inference.sampling import Sampling
from bitnetctl.inference.text_stream import TextStream, prompt_tokens
from bitnetctl.inference.trained import TrainedRun
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


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How a prompt is continued; raises ConfigError for a number below 1.

    A sample ends after `new_tokens`, or with the end of a text, which is never chosen where `ignore_end` is set.
    """

    sampling: Sampling = field(default_factory=Sampling)
    new_tokens: int = 50
    num_samples: int = 1
    ignore_end: bool = False

    def __post_init__(self) -> None:
        for name, value in (("new tokens", self.new_tokens), ("samples", self.num_samples)):
            if value < 1:
                raise ConfigError(f"{value} {name}: take a whole number from 1")


@dataclass(kw_only=True)
class Sample:
    """One continuation up to now; `finish` says why it ended, None while it goes on.

    The token that ends a text is among `tokens` and has no text.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: Literal["length", "end_of_text"] | None = None


class Generation:
    """The samples that continue a prompt with a run, which grow while one iterates over it.

    `prompt` are the tokens of the prompt; of these, the last `used` fit into the trained context.
    """

    def __init__(self, run: TrainedRun, text: str, options: GenerationOptions) -> None:
        self.run, self.text, self.options = run, text, options
        self.prompt = prompt_tokens(run, text)
        self.used = min(len(self.prompt), run.context_length)
        self.samples = [Sample() for _ in range(options.num_samples)]

    def __iter__(self) -> Iterator[list[str]]:
        """Yield after every step the new text of each sample; raises CheckpointError for logits that are not finite."""
        run, options = self.run, self.options
        streams = [TextStream(run.tokenizer, self.prompt) for _ in self.samples]
        decoder = Decoder(run.model, [run.quant_lambda], run.context_length, len(self.samples))
        sampler = Sampler(options.sampling, len(self.samples), self._banned())
        for tokens_RB in generated_tokens(decoder, sampler, torch.tensor([[self.prompt]])):
            tokens = tokens_RB[0].tolist()
            yield [self._grown(*each) for each in zip(self.samples, streams, tokens, strict=True)]
            if all(sample.finish for sample in self.samples):
                return

    def _grown(self, sample: Sample, stream: TextStream, token: int) -> str:
        """Add a token to a sample that goes on; return its new text."""
        run = self.run
        if sample.finish is not None:
            return ""
        if token == NO_TOKEN:
            raise CheckpointError(
                f"run {run.name}: the logits of step {run.step} are not finite, it has diverged; "
                "take an earlier checkpoint with --step"
            )
        sample.tokens.append(token)
        if token == run.end_of_text:
            sample.finish = "end_of_text"
        elif len(sample.tokens) == self.options.new_tokens:
            sample.finish = "length"
        new = stream.feed(token) + (stream.finish() if sample.finish else "")
        sample.text += new
        return new

    def _banned(self) -> list[int]:
        """Return the numbers below the vocabulary's size that are no token, and with `ignore_end` the end of a text."""
        run = self.run
        banned = [number for number in range(run.model.vocab_size) if run.tokenizer.id_to_token(number) is None]
        return [*banned, run.end_of_text] if self.options.ignore_end and run.end_of_text is not None else banned
