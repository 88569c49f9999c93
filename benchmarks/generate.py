"""Speed of generated text: with a KV cache, without one, eight samples at once, and the floor.

    python -m benchmarks.generate [--recipe portable] [--vocabulary N] [--lengths 64,256,512] [--rounds N]
        [--threads N] [--device cpu] [--quick] [--json FILE] [model.hidden_size=256 …]

A text has as many tokens as the context of its model. Without a cache the whole text is computed again for every
token, here for some lengths of it. The floor multiplies each matrix and the head by one vector: what has to be read of
the weights for a token, without anything around it.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import harness
from bitnetctl.config import build_config
from bitnetctl.inference.decoding import Decoder, threads_for
from bitnetctl.inference.generation import generated_tokens
from bitnetctl.inference.sampler import Sampler
from bitnetctl.inference.sampling import Sampling
from bitnetctl.model.packed import PackedModel

_SAMPLES = 8
_UNCACHED_LENGTHS = 8


def main() -> int:
    """Measure and print."""
    parser = harness.argument_parser(__doc__)
    harness.add_device(parser)
    parser.add_argument("--recipe", default="portable")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the vocabulary; unset: 4096")
    parser.add_argument("--lengths", type=_numbers, help="tokens of a text; unset: 64,256,512")
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--threads", type=int, help="unset: as `bitnetctl generate` chooses them")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the config")
    arguments = parser.parse_args()
    harness.enter_cli_environment()
    config = build_config(arguments.recipe, overrides=arguments.overrides)
    model = PackedModel([config.model], arguments.vocabulary, [0], arguments.device)
    torch.set_num_threads(arguments.threads or threads_for(model))
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    rows = []
    for length in arguments.lengths or ((16,) if arguments.quick else (64, 256, 512)):
        racing = contenders(model, length)
        harness.alternate(list(racing.values()), rounds=rounds)
        speeds = {name: 1 / one.median("seconds", skip=1) for name, one in racing.items()}  # type: ignore[operator]
        rows += [
            {
                "tokens": length,
                "contender": name,
                "tokens/s": speed,
                "times uncached": speed / speeds["uncached"],
                "fraction of the floor": speed / speeds["floor"],
            }
            for name, speed in speeds.items()
        ]
    weights = 4 * model.num_parameters
    metadata = {
        **harness.machine(arguments.device),
        "model": f"{model.num_parameters:,} parameters: {weights / 1e6:.1f} MB are read for a token",
        "measured": f"median of {rounds} turns of a text after one to warm up",
    }
    harness.report(f"generate: recipe {arguments.recipe}", rows, metadata, arguments.json)
    return 0


def contenders(model: PackedModel, length: int) -> dict[str, harness.Contender]:
    """Return those that generate a text of `length` tokens; a step of a turn is a token."""
    takes: dict[str, Callable[[int], harness.Turn]] = {
        "uncached": lambda _: _uncached(model, length),
        "cached": lambda _: _cached(model, length, Sampling(temperature=0), 1),
        "cached, sampled": lambda _: _cached(model, length, Sampling(), 1),
        f"cached, {_SAMPLES} samples": lambda _: _cached(model, length, Sampling(), _SAMPLES),
        "floor": lambda _: _floor(model, length),
    }
    return {name: harness.Contender(name, take) for name, take in takes.items()}


def _cached(model: PackedModel, length: int, sampling: Sampling, samples: int) -> harness.Turn:
    """Generate a text; the first token of a prompt of one is not timed."""
    decoder = Decoder(model, [1.0], length, samples)
    tokens = generated_tokens(decoder, Sampler(sampling, samples), torch.zeros(1, 1, 1, dtype=torch.long))
    next(tokens)
    start = time.perf_counter()
    for _ in range(length - 1):
        next(tokens).tolist()
    return {"steps": samples * (length - 1), "seconds": time.perf_counter() - start}


def _uncached(model: PackedModel, length: int) -> harness.Turn:
    """Compute the whole text at lengths that stand for all."""
    forward = model.prepared([1.0])
    seconds = []
    for part in range(_UNCACHED_LENGTHS):
        tokens_RBT = torch.zeros(1, 1, max(1, round(length * (part + 0.5) / _UNCACHED_LENGTHS)), dtype=torch.long)
        start = time.perf_counter()
        int(forward(tokens_RBT.to(model.device))[0, -1].argmax())
        seconds.append(time.perf_counter() - start)
    return {"steps": 1, "seconds": statistics.mean(seconds)}


def _floor(model: PackedModel, length: int) -> harness.Turn:
    """Multiply all weights by one vector for each token."""
    pairs = [(weight_ROI, torch.ones(1, 1, weight_ROI.shape[-1], device=model.device)) for weight_ROI in _read(model)]
    start = time.perf_counter()
    for _ in range(length):
        for weight_ROI, x_R1I in pairs:
            product_R1O = torch.bmm(x_R1I, weight_ROI.mT)
    float(product_R1O[0, 0, 0])
    return {"steps": length, "seconds": time.perf_counter() - start}


def _read(model: PackedModel) -> Iterator[Tensor]:
    """Yield the weights [R, O, I] that are read for a token."""
    prepared = model.prepared([1.0])
    for layer in prepared.weights:
        for operand in layer.matrices.values():
            yield operand.values
    yield prepared.head_RVH


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 64,256") from None


if __name__ == "__main__":
    raise SystemExit(main())
