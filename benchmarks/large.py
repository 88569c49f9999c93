"""Tokens a second of a model above 100 M parameters on a GPU, against the same model compiled from stock parts.

    python -m benchmarks.large [--set model.num_layers=24] [--rounds N] [--steps N] [--device auto] [--json FILE]
    python -m benchmarks.large --device cpu --tiny

The contenders train in processes of their own, one after the other, since a GPU does not have the memory for all; the
first is measured again at the end, which shows how much the speed of the GPU drifted. The stock loops have what an
expert adds: forward and loss compiled together, fused AdamW, no synchronization for the loss. torchao is installed
separately (`pip install torchao`). Without a GPU nothing is measured, except with `--tiny`: scaled down and not
compiled, to show that this program works.
"""

from typing import Any

import torch

from benchmarks import harness
from benchmarks.floor import median_rates
from benchmarks.step import floor_ms
from benchmarks.worker import Job, tokens_of
from bitnetctl.model.parameters import num_parameters

VOCABULARY, TINY_VOCABULARY = 50257, 512
LARGE = {
    "model.hidden_size": 1024,
    "model.num_layers": 12,
    "model.num_attention_heads": 16,
    "model.num_key_value_heads": 16,
    "data.batch_size": 32,
    "data.sequence_length": 1024,
}
TINY = {
    "model.hidden_size": 64,
    "model.num_layers": 2,
    "model.num_attention_heads": 4,
    "model.num_key_value_heads": 4,
    "data.batch_size": 2,
    "data.sequence_length": 64,
}


def main() -> int:
    """Measure and print; 1 if a contender broke."""
    parser = harness.argument_parser(__doc__)
    harness.add_device(parser, default="auto")
    parser.add_argument("--tiny", action="store_true", help="scaled down and not compiled, for a machine without a GPU")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the model or batch")
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--steps", type=int, help="steps a turn")
    arguments = parser.parse_args()
    metadata = harness.machine(arguments.device)
    if arguments.device.type != "cuda" and not arguments.tiny:
        harness.report("large", [], {"large": "no GPU: nothing measured", **metadata}, arguments.json)
        return 0
    is_short = arguments.quick or arguments.tiny
    rounds = arguments.rounds or (1 if is_short else 7)
    steps = arguments.steps or (5 if is_short else 10)
    fields = [f"{name}={value}" for name, value in (TINY if arguments.tiny else LARGE).items()]
    vocab_size = TINY_VOCABULARY if arguments.tiny else VOCABULARY
    jobs = large_jobs(tuple(fields + arguments.set), vocab_size, arguments.device, compiled=not arguments.tiny)
    racing = harness.one_by_one(jobs, rounds=rounds, steps=steps)

    *trained, floor = racing
    config = jobs["floor"].config
    fastest, first = floor_ms(floor, "bf16"), trained[0].milliseconds()
    rows = []
    for one in trained:
        step_ms, peak = one.milliseconds(), one.peak_bytes()
        rows.append(
            {
                "large": one.name,
                "tokens/s": None if step_ms is None else 1000 * tokens_of(config) / step_ms,
                "ms a step": step_ms,
                "times the first": harness.ratio(first, step_ms),
                "peak memory, GiB": None if peak is None else peak / 2**30,
                "fraction of peak": harness.ratio(fastest, step_ms),
            }
        )
    metadata |= {
        "model": f"{num_parameters(config.model, vocab_size):,} parameters, {config.data.batch_size} x "
        f"{config.data.sequence_length} tokens a step",
        "measured": f"median of {rounds} turns of {steps} steps, after one turn to warm up",
        "floor bf16, ms": fastest,
        **(median_rates(floor.turns) if floor.turns else {}),
        **harness.notes(racing),
    }
    harness.report(
        "large, scaled down: a smoke test, not a measurement" if arguments.tiny else "large",
        rows,
        metadata,
        arguments.json,
    )
    return int(any(one.failed for one in racing))


def large_jobs(overrides: tuple[str, ...], vocab_size: int, device: torch.device, *, compiled: bool) -> dict[str, Job]:
    """Return the contenders by name, the floor last."""
    common: dict[str, Any] = {
        "recipe": "b158",
        "overrides": overrides,
        "vocab_size": vocab_size,
        "device": str(device),
        "uses_compiler": compiled,
    }
    engines = ("graph", "compile", "fused") if device.type == "cuda" else ("eager",)
    how = "compiled" if compiled else "not compiled"
    first = f"nn.Linear, all in bf16, {how}"
    plain = Job(kind="tuned", linear="full", precision="bf16", **common)
    return {
        first: plain,
        f"nn.Linear, bf16 autocast, {how}": Job(kind="tuned", linear="full", precision="autocast", **common),
        f"fake-quantized, bf16 autocast, {how}": Job(kind="tuned", precision="autocast", **common),
        f"torchao bitnet_training, all in bf16, {how}": Job(kind="torchao", precision="bf16", **common),
        **{
            f"ours, {engine}, {precision}": Job(kind="ours", engine=engine, precision=precision, **common)
            for engine in engines
            for precision in ("bf16", "int8")
        },
        f"{first}, again": plain,
        "floor": Job(kind="floor", precision="bf16", **common),
    }


if __name__ == "__main__":
    raise SystemExit(main())
