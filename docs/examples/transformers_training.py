"""Train tiny Llamas with Hugging Face's Trainer, and record them so that `bitnetctl verify` can judge them.

    pip install 'bitnetctl[transformers]'
    python transformers_training.py adamw coupled --seeds 6 --out runs
    bitnetctl verify runs --criteria sound

`adamw` decays weights decoupled from the gradient, `coupled` adds the decay to the gradient (L2), as Adam does.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from bitnetctl import load_recipe
from bitnetctl.data import prepare
from bitnetctl.integrations.transformers import CollapseCallback
from bitnetctl.recorder import HeldOutProbe

OPTIMIZERS = {"adamw": torch.optim.AdamW, "coupled": torch.optim.Adam}
LENGTH = 32


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of `LENGTH` tokens of a text."""

    def __init__(self, tokens: Tensor) -> None:
        self.rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def train(arm: str, seed: int, out: Path, *, seeds: int, steps: int, hidden: int, recipe: str, positions: int) -> None:
    """Train one model of the arm on the recipe's text; `seeds` are planned."""
    text = prepare(load_recipe(recipe).data)
    probe = HeldOutProbe.from_data(text, positions=positions, sequence_length=LENGTH)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=text.vocab_size,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
        )
    )
    optimizer = OPTIMIZERS[arm](model.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    callback = CollapseCallback(
        out / f"{arm}-s{seed}.csv",
        probe=probe,
        arm=arm,
        warmup_steps=50,
        planned_seeds=range(seeds),
        planned_arms=OPTIMIZERS,
    )
    with tempfile.TemporaryDirectory() as folder, callback:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        rows = Rows(torch.from_numpy(text.train_N.astype("int64")))
        trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, schedule), callbacks=[callback])
        trainer.train()


def main() -> None:
    """Train every seed of the given arms."""
    parser = argparse.ArgumentParser(description="Record trainings of transformers.Trainer")
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
