"""The process of one contender: reads a number of steps from a line, runs them, answers with a line of JSON.

A contender that cannot be built here answers `missing`, one that breaks `error`; the others continue without it.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.floor import Floor
from benchmarks.reference import BitLinear, StockLoop, plain_model
from bitnetctl.config import RunConfig, build_config
from bitnetctl.data import TokenData
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.select import choose, choose_threads, make_pack
from bitnetctl.errors import ConfigError, one_line
from bitnetctl.hardware import prepare_cpu
from bitnetctl.model.matmul import Precision
from bitnetctl.plugins.composition import Composition

Train = Callable[[int], Any]
_answers = sys.stdout
_TORCHAO = "torchao 0.18.0"
Kind = Literal["ours", "reference", "transformers", "tuned", "torchao", "floor"]


class MissingError(Exception):
    """This machine lacks something that the contender needs; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker does; `runs`, `engine` and `precision` are those of a pack, as the command line takes them.

    `tuned` is the reference with fused Adam and losses read after the turn, compiled unless `uses_compiler` is off: its
    `linear` layers full precision or ternary, its `precision` fp32, bf16 (weights too) or autocast. `floor` measures
    the floor of a step.
    """

    kind: Kind
    recipe: str = "quick"
    overrides: tuple[str, ...] = ()
    vocab_size: int
    device: str = "cpu"
    runs: int = 1
    precision: str = "fp32"
    engine: str = "eager"
    linear: Literal["full", "ternary"] = "ternary"
    uses_compiler: bool = True

    @property
    def config(self) -> RunConfig:
        """The run that it trains."""
        return build_config(self.recipe, overrides=self.overrides)

    @property
    def as_command_line(self) -> bool:
        """Whether it runs in the environment of `bitnetctl`; the others run in that of a plain script."""
        return self.kind in ("ours", "floor")


def main() -> None:
    """Build the contender, then serve turns until stdin ends."""
    _keep_stdout()
    arguments = json.loads(sys.argv[1])
    job = Job(**{**arguments, "overrides": tuple(arguments["overrides"])})
    device = torch.device(job.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    try:
        take = _floor(job, device) if job.kind == "floor" else _turns(job, device)
    except MissingError as missing:
        _answer({"missing": str(missing)})
        return
    except Exception as error:
        _fail(error)
        return
    _answer({"ready": True})
    for line in sys.stdin:
        try:
            _answer(take(int(line)))
        except Exception as error:
            _fail(error)
            return


def _turns(job: Job, device: torch.device) -> Callable[[int], dict[str, Any]]:
    train, done = build(job, device), 0
    last = job.config.steps

    def take(steps: int) -> dict[str, Any]:
        nonlocal done
        _wait(device)
        faults, start = _page_faults(), time.perf_counter()
        losses = [train(1 + step % last) for step in range(done, done + steps)]
        _wait(device)
        seconds = time.perf_counter() - start
        done += steps
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident()
        return {
            "steps": steps,
            "seconds": seconds,
            "faults": _page_faults() - faults,
            "losses": [float(loss) for loss in losses],
            "peak_bytes": peak,
            "threads": torch.get_num_threads(),
        }

    return take


def build(job: Job, device: torch.device) -> Train:
    """Return a function that trains a step; raises MissingError where this machine lacks something for it."""
    return _KINDS[job.kind](job, device)


def zipf_tokens(vocab_size: int, config: RunConfig, count: int = 200_000) -> TokenData:
    """Return tokens distributed by Zipf's law; no text is needed to measure speed."""
    needed = 4 * config.data.tokens_per_step + 1
    ranks = np.random.default_rng(0).zipf(1.1, max(count, needed)) % vocab_size
    return TokenData(
        train_N=ranks.astype(np.uint32),
        held_out_N=ranks[:65536].astype(np.uint32),
        vocab_size=vocab_size,
        fingerprint="0" * 64,
        tokenizer_fingerprint="0" * 64,
        source="zipf",
        tokenizer="none",
        tokenizer_path=Path("none"),
        end_of_text=None,
    )


def _ours(job: Job, device: torch.device) -> Train:
    prepare_cpu()
    try:
        execution = choose(job.config, job.vocab_size, device, job.engine, job.precision)
    except ConfigError as error:
        raise MissingError(str(error)) from error
    configs = [job.config.model_copy(update={"seed": seed}) for seed in range(job.runs)]
    tokens = zipf_tokens(job.vocab_size, configs[0])
    pack = make_pack(configs, [Composition() for _ in configs], tokens, device, execution)
    torch.set_num_threads(choose_threads(pack, torch.get_num_threads()))
    if isinstance(pack, CapturedPack) and pack.graphs is not None:
        pack.graphs.on_error = _refuse

    def train(step: int) -> torch.Tensor:
        pack.step(step)
        # a captured step overwrites its loss
        return pack.loss_R[0].clone()

    return train


def _refuse(error: str) -> None:
    """End a contender whose steps are not captured after all: its times would be those of another engine."""
    raise RuntimeError(f"not captured as a CUDA graph: {error}")


def _reference(job: Job, device: torch.device) -> Train:
    return _stock_loop(job, plain_model(job.config, job.vocab_size, device), device)


def _transformers(job: Job, device: torch.device) -> Train:
    try:
        from transformers import BitNetConfig, BitNetForCausalLM
        from transformers.integrations.bitnet import AutoBitLinear
    except ImportError as error:
        raise MissingError(f"transformers is not installed ({error})") from error
    shape = job.config.model
    model = BitNetForCausalLM(
        BitNetConfig(
            vocab_size=job.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            tie_word_embeddings=shape.tie_word_embeddings,
        )
    )
    for module in list(model.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear):
                linear = AutoBitLinear(child.in_features, child.out_features, bias=False, online_quant=True)
                linear.weight = child.weight
                setattr(module, name, linear)
    torch.nn.Module.to(model, device)
    return _stock_loop(job, model, device)


def _tuned(job: Job, device: torch.device) -> Train:
    linear = BitLinear if job.linear == "ternary" else torch.nn.Linear
    return _tuned_loop(job, plain_model(job.config, job.vocab_size, device, linear), device)


def _torchao(job: Job, device: torch.device) -> Train:
    try:
        quantize = importlib.import_module("torchao").quantize_
        bitnet_training = importlib.import_module("torchao.prototype.quantized_training").bitnet_training
    except (ImportError, AttributeError) as error:
        raise MissingError(f"torchao is not installed, or too new ({error}); {_TORCHAO} has it") from error
    model = plain_model(job.config, job.vocab_size, device, torch.nn.Linear)
    # before the weights are wrapped
    model.to(torch.bfloat16)
    quantize(model.blocks, bitnet_training())
    return _tuned_loop(job, model, device)


def _stock_loop(job: Job, model: torch.nn.Module, device: torch.device) -> Train:
    return StockLoop(model, job.config, zipf_tokens(job.vocab_size, job.config), device).step


def _tuned_loop(job: Job, model: torch.nn.Module, device: torch.device) -> Train:
    if job.precision == "bf16":
        model.to(torch.bfloat16)
    autocast = job.precision == "autocast"
    tokens = zipf_tokens(job.vocab_size, job.config)
    return StockLoop(model, job.config, tokens, device, tuned=True, compiles=job.uses_compiler, autocast=autocast).step


def _floor(job: Job, device: torch.device) -> Callable[[int], dict[str, Any]]:
    prepare_cpu()
    precisions: list[Precision] = ["bf16"] if job.precision == "bf16" else ["fp32", "bf16"]
    floor = Floor(job.config, job.vocab_size, device, runs=job.runs, precisions=precisions)
    return lambda steps: {"steps": 1, **floor.measure()}


_KINDS: dict[str, Callable[[Job, torch.device], Train]] = {
    "ours": _ours,
    "reference": _reference,
    "transformers": _transformers,
    "tuned": _tuned,
    "torchao": _torchao,
}


def tokens_of(config: RunConfig) -> int:
    """Return the tokens of one run in a step."""
    return config.data.tokens_per_step


def _keep_stdout() -> None:
    """Redirect the output of libraries to stderr; stdout is for answers."""
    global _answers
    _answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=_answers, flush=True)


def _fail(error: Exception) -> None:
    traceback.print_exc()
    _answer({"error": f"{type(error).__name__}: {one_line(error, 300)}"})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _peak_resident() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
