"""What a check of an export is run on: strings that are split, and rows of tokens.

Shapes: P rows of T tokens.
"""

import numpy as np
import torch
from torch import Tensor

from bitnetctl.data.probe import row_positions
from bitnetctl.inference.generation import continuations
from bitnetctl.inference.sampling import Sampling
from bitnetctl.inference.trained import TrainedRun

TEXTS = (
    "",
    " ",
    "a",
    "Hello, world!",
    "  two  spaces   and\ttabs\t\t",
    "line\nline\r\nline\r\n\r\n\n\n end ",
    "it's we'll they'VE I'm don't",
    "12345 6 7.89 1,000,000",
    "naïve café ﬁne e\u0301 \u00e9 İi ß ſ",
    "日本語 テキスト 한국어 עברית العربية हिन्दी",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈",
    "\u00a0\u2003\u200b\ufeff\u3000.",
    "nul\0 bell\a escape\x1b[0m \x7f \ufffd",
    "<s></s><unk>[PAD] <|endoftext|>text<|endoftext|>\n<|im_start|>",
    "_ __init__ if(x)==y: {}[]();\\//#",
    "word" * 40,
)
"""What another tokenizer may split otherwise."""


def check_rows(run: TrainedRun, positions: int = 2048) -> Tensor:
    """Return rows of token ids [P, T] of the trained context, `positions` in all, rounded up to whole rows.

    They are evenly spaced rows of the run's held-out text where the token cache still has it, else sampled from the
    model itself, always the same.
    """
    length = run.context_length
    rows = -(-positions // length)
    tokens = run.training_tokens()
    if tokens is not None and len(tokens.held_out_N) > rows * length:
        held_out_N = tokens.held_out_N
        windows_PT1 = held_out_N[row_positions(rows, length, len(held_out_N))].astype(np.int64)
        return torch.from_numpy(windows_PT1[:, :-1].copy())
    first_P1 = torch.randint(run.model.vocab_size, (rows, 1), generator=torch.Generator().manual_seed(0))
    following_RPT = continuations(
        run.model,
        [run.quant_lambda],
        first_P1[None],
        new_tokens=length - 1,
        sampling=Sampling(temperature=1.0, top_k=None),
        context_length=length,
    )
    # without a finite logit there is no token
    return torch.cat([first_P1, following_RPT[0].clamp(min=0)], dim=-1)
