"""Train tiny ternary models with Lightning's Trainer, and record them so that `bitnetctl verify` can judge them.

    pip install 'bitnetctl[lightning]'
    python lightning_training.py adamw coupled --seeds 6 --out runs
    bitnetctl verify runs --criteria sound

`adamw` decays weights decoupled from the gradient, `coupled` adds the decay to the gradient (L2), as Adam does.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bitnetctl import load_recipe
from bitnetctl.data import prepare
from bitnetctl.integrations.lightning import CollapseCallback
from bitnetctl.recorder import HeldOutProbe

OPTIMIZERS = {"adamw": torch.optim.AdamW, "coupled": torch.optim.Adam}
LENGTH = 32


class BitLinear(nn.Linear):
    """A linear layer with ternary weights (mean of magnitudes as scale) and int8 activations, straight-through."""

    def codes(self) -> Tensor:
        """Return the weights as -1, 0 and 1."""
        return (self.weight / self.scale()).round().clamp(-1, 1)

    def scale(self) -> Tensor:
        """Return the mean magnitude of the weights."""
        return self.weight.abs().mean().clamp(min=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply quantized activations by quantized weights."""
        largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        quantized = (x * 127 / largest).round() * largest / 127
        weight = self.codes() * self.scale()
        return F.linear(x + (quantized - x).detach(), self.weight + (weight - self.weight).detach())


class Block(nn.Module):
    """Attention over earlier positions, then a squared ReLU, each on normalized inputs and added to them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv, self.out = BitLinear(hidden, 3 * hidden, bias=False), BitLinear(hidden, hidden, bias=False)
        self.up, self.down = BitLinear(hidden, 2 * hidden, bias=False), BitLinear(2 * hidden, hidden, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(hidden) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, H] to [B, T, H]."""
        rows, length, hidden = x.shape
        heads = self.qkv(self.norms[0](x)).view(rows, length, 3, 4, hidden // 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.out(mixed)
        return x + self.down(F.relu(self.up(self.norms[1](x))).square())


class TinyLM(pl.LightningModule):
    """A ternary language model of four layers."""

    def __init__(self, vocab_size: int, hidden: int, arm: str) -> None:
        super().__init__()
        self.arm = arm
        self.embed, self.positions = nn.Embedding(vocab_size, hidden), nn.Embedding(LENGTH, hidden)
        self.blocks = nn.Sequential(*(Block(hidden) for _ in range(4)), nn.RMSNorm(hidden))
        self.head = nn.Linear(hidden, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits [B, T, V] of tokens [B, T]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.blocks(self.embed(tokens) + self.positions(places)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch [B, T + 1]."""
        return F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self) -> Any:
        """Return the arm's optimizer, with a warm-up of 50 steps."""
        optimizer = OPTIMIZERS[self.arm](self.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def ternary_codes(module: nn.Module) -> dict[str, Tensor]:
    """Return the ternary weights of a model by name."""
    return {name: part.codes() for name, part in module.named_modules() if isinstance(part, BitLinear)}


def train(arm: str, seed: int, out: Path, *, seeds: int, steps: int, hidden: int, recipe: str, positions: int) -> None:
    """Train one model of the arm on the recipe's text; `seeds` are planned."""
    text = prepare(load_recipe(recipe).data)
    probe = HeldOutProbe.from_data(text, positions=positions, sequence_length=LENGTH)
    pl.seed_everything(seed, verbose=False)
    tokens = torch.from_numpy(text.train_N.astype("int64"))
    rows = tokens[: len(tokens) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    callback = CollapseCallback(
        out / f"{arm}-s{seed}.csv",
        probe=probe,
        arm=arm,
        size=hidden,
        warmup_steps=50,
        planned_seeds=range(seeds),
        planned_arms=OPTIMIZERS,
        ternary_codes=ternary_codes,
    )
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="auto",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(TinyLM(text.vocab_size, hidden, arm), DataLoader(rows, batch_size=8, shuffle=True))


def main() -> None:
    """Train every seed of the given arms."""
    parser = argparse.ArgumentParser(description="Record trainings of Lightning's Trainer")
    parser.add_argument("arms", nargs="+", choices=OPTIMIZERS)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--recipe", default="quick", help="whose text and tokenizer are taken")
    parser.add_argument("--positions", type=int, default=8192, help="of the probe")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for arm in options.arms:
        for seed in range(options.seeds):
            train(
                arm,
                seed,
                options.out,
                seeds=options.seeds,
                steps=options.steps,
                hidden=options.hidden,
                recipe=options.recipe,
                positions=options.positions,
            )


if __name__ == "__main__":
    main()
