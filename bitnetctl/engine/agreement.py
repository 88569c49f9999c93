"""Fast paths compared with the plain operations on a device: one step of a small pack, or a few, both ways.

A pack is trained with one part of the own kernels, with several of them together, or compiled.

Shapes: R runs, N tokens or positions, O×I a matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitnetctl.config import OptimizerConfig, RunConfig
from bitnetctl.data import TokenData
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.predictions import PredictionSums
from bitnetctl.engine.select import Execution, captured_pack
from bitnetctl.errors import one_line
from bitnetctl.hardware import release_unused
from bitnetctl.model.matmul import Precision
from bitnetctl.model.parts import PARTS, Part
from bitnetctl.plugins.composition import Composition

STEPS = 3
"""Steps of both packs where updates are compared, else one; a check's config has one more: a diverged run skips it."""
# λ of even and odd runs: a λ below a half and one above are interpolated differently
_LAMBDAS = ((1.0, 0.25), (1.0, 1.0), (0.0, 0.0))
# what depends on λ, and is quickly checked at every pair of them
_QUANTIZED = ("weights", "layers", "together")
# positions, no multiple of a block of them
_PROBED = 70


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest differences: of a loss, relative; of gradients and of weights' changes, relative in Frobenius norm.

    `first_change` is for the first step, `total_change` for all; without them one step is trained. A last bit of a
    weight changes the code of an activation here and there, and with it the sign of a few small gradients, which is all
    that Adam's first steps take of them.
    """

    loss: float
    gradient: float
    first_change: float | None = None
    total_change: float = 0.0


# sums in another order move a value across a rounding boundary now and then: one code in 127, or a ternary value
TOLERANCES: dict[str, Tolerance] = {
    "weights": Tolerance(loss=2e-3, gradient=3e-2),
    "layers": Tolerance(loss=2e-3, gradient=3e-2),
    "gradients": Tolerance(loss=1e-6, gradient=1e-2),
    "loss": Tolerance(loss=1e-5, gradient=1e-2),
    "probe": Tolerance(loss=1e-5, gradient=0.0),
    # the CPU adds squares one after the other
    "update": Tolerance(loss=1e-3, gradient=1e-4, first_change=1e-3, total_change=5e-2),
    "together": Tolerance(loss=5e-3, gradient=5e-2, first_change=0.7, total_change=0.7),
    "compile": Tolerance(loss=2e-3, gradient=3e-2),
}
# of ternary weights whose sums come from the update: another order moves a few across a rounding boundary
_KEPT_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is compared: one of `PARTS`, "together" or "compile", for the shape of a config.

    `interpolates`: λ of runs and steps differ; else all have that of the config, 0 or 1. `kernels` are those that are
    checked together.
    """

    part: str
    config: RunConfig
    vocab_size: int
    precision: Precision
    interpolates: bool
    runs: int = 2
    kernels: Sequence[Part] = ()


def run_check(check: Check, device: torch.device) -> str | None:
    """Train a step or a few both ways; return what does not agree, None if all does."""
    tolerance = TOLERANCES[check.part]
    try:
        if check.part == "probe":
            return _probe_problem(check, device, tolerance.loss)
        for lambdas in _lambdas(check):
            # the packs before
            release_unused(device)
            if (problem := _training_problem(check, lambdas, device, tolerance)) is not None:
                return problem if lambdas == (1.0, 1.0) else f"{problem} with λ of {lambdas[0]:g} and {lambdas[1]:g}"
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error, 160)}"
    return None


def _lambdas(check: Check) -> Sequence[tuple[float, float]]:
    """Return the λ of even and odd runs for which a check is made."""
    if check.interpolates:
        return _LAMBDAS if check.part in _QUANTIZED else _LAMBDAS[:1]
    return [(check.config.model.quantization,) * 2]


def _training_problem(
    check: Check, lambdas: tuple[float, float], device: torch.device, tolerance: Tolerance
) -> str | None:
    """Train both ways with these λ; return what does not agree."""
    plain, fast = (_pack(check, lambdas, device, is_fast=is_fast) for is_fast in (False, True))
    before = {key: packed.clone() for key, packed in plain.model.packed.items()}
    plain.step(1)
    fast.step(1)
    problem = _disagreement(plain, fast, tolerance)
    if problem is not None or tolerance.first_change is None:
        return problem
    if (problem := _change_problem(plain, fast, before, tolerance.first_change)) is not None:
        return problem
    for step in range(2, STEPS + 1):
        plain.step(step)
        fast.step(step)
    problem = _change_problem(plain, fast, before, tolerance.total_change)
    return problem or _diverged_problem(fast) or _kept_problem(plain, fast)


def _change_problem(
    plain: CapturedPack, fast: CapturedPack, before: Mapping[str, Tensor], tolerance: float
) -> str | None:
    """Compare the changes of weights since `before`."""
    for key, weight in plain.model.packed.items():
        difference = _relative(fast.model.packed[key] - before[key], weight - before[key])
        if not difference <= tolerance:
            return f"the updates of {key} differ by {difference:.2g} (at most {tolerance:g})"
    return None


def _diverged_problem(fast: CapturedPack) -> str | None:
    """Let a run be diverged for one step more."""
    before = {key: packed[0].clone() for key, packed in fast.model.packed.items()}
    fast._diverged_at_R[0] = STEPS
    fast.step(STEPS + 1)
    changed = [key for key, weight in fast.model.packed.items() if not torch.equal(weight[0], before[key])]
    return f"{changed[0]} of a diverged run is updated" if changed else None


def _kept_problem(plain: CapturedPack, fast: CapturedPack) -> str | None:
    """Compare, at equal weights, what is formed from what the updates leave beside the weights."""
    for key, weight in fast.model.packed.items():
        plain.model.packed[key].copy_(weight)
    quantization = plain.model.quantization(plain.quant_lambdas(STEPS))
    pairs = [("head", fast.model._head_operand(), plain.model._head_operand())]
    theirs = plain.model._quantized_matrices(quantization)
    for key, layers in fast.model._quantized_matrices(quantization).items():
        pairs += [(key, ours.values, other.values) for ours, other in zip(layers, theirs[key], strict=True)]
    for key, ours_ROI, theirs_ROI in pairs:
        if not (difference := _relative(ours_ROI.float(), theirs_ROI.float())) <= _KEPT_TOLERANCE:
            return (
                f"the quantized weights of {key} differ by {difference:.2g} (at most {_KEPT_TOLERANCE:g}) after updates"
            )
    return None


def _probe_problem(check: Check, device: torch.device, tolerance: float) -> str | None:
    """Compare the sums over random predictions, among them equal ones."""
    generator = torch.Generator(device).manual_seed(0)
    shape = check.runs, _PROBED, check.vocab_size
    dtype = torch.float32 if check.precision == "fp32" else torch.bfloat16
    logits_RNV = (4 * torch.randn(shape, generator=generator, device=device)).round_(decimals=1).to(dtype)
    targets_N = torch.arange(_PROBED, device=device) % check.vocab_size
    plain, fast = (PredictionSums(check.runs, check.vocab_size, device, fused=fused) for fused in (False, True))
    for sums in (plain, fast):
        sums.add(logits_RNV, targets_N)
    if not torch.equal(plain.counts_RV, fast.counts_RV):
        return "the largest logits differ"
    for name in ("loss_R", "entropy_R", "softmax_RV"):
        if not (difference := _relative(getattr(fast, name), getattr(plain, name))) <= tolerance:
            return f"the sums of {name.partition('_')[0]} differ by {difference:.2g} (at most {tolerance:g})"
    return None


def _pack(check: Check, lambdas: tuple[float, float], device: torch.device, *, is_fast: bool) -> CapturedPack:
    """Return runs that differ in all that a pack may: seed, optimizer, clipping, exempt parameters, λ."""
    config = check.config
    other = OptimizerConfig(name="adamw", max_norm=None, exempt=("norms", "embeddings"))
    second = config.model_copy(update={"seed": config.seed + 1, "optimizer": other})
    configs = [
        each.model_copy(update={"model": each.model.model_copy(update={"quantization": lambdas[run % 2]})})
        for run, each in enumerate([config, second] * check.runs)
    ][: check.runs]
    execution = Execution(engine="graph", precision=check.precision)
    if is_fast and check.part == "compile":
        execution = replace(execution, engine="compile")
    elif is_fast:
        kernels = check.kernels if check.part == "together" else [check.part]
        execution = replace(execution, engine="fused", kernels=frozenset[Part](set(PARTS) & set(kernels)))
    pack = captured_pack(configs, [Composition() for _ in configs], _tokens(check), device, execution)
    # nothing is captured: each step is compared
    pack.graphs = None
    return pack


def _tokens(check: Check) -> TokenData:
    """Return random tokens, among them many of a kind."""
    data = check.config.data
    count = 2 * check.config.steps * data.batch_size * data.sequence_length + 1
    tokens_N = np.random.default_rng(0).zipf(1.3, count) % check.vocab_size
    return TokenData(
        train_N=tokens_N.astype(np.uint32),
        held_out_N=tokens_N[:1].astype(np.uint32),
        vocab_size=check.vocab_size,
        fingerprint="",
        tokenizer_fingerprint="",
        source="random",
        tokenizer="none",
        tokenizer_path=Path(),
        end_of_text=None,
    )


def _disagreement(plain: Pack, fast: Pack, tolerance: Tolerance) -> str | None:
    """Compare loss, gradient norm and gradients of a step from equal weights."""
    if not (plain.loss_R > 0).all():
        return "the plain operations compute nothing either"
    for name, ours, theirs in (("loss", fast.loss_R, plain.loss_R), ("norm", fast.grad_norm_R, plain.grad_norm_R)):
        limit = tolerance.loss if name == "loss" else tolerance.gradient
        if not (difference := ((ours - theirs).abs() / theirs.abs()).max().item()) <= limit:
            return f"the {name} differs by {difference:.2g} (at most {limit:g})"
    # stock optimizers clip gradients in place, so where only one pack has them its updates are compared
    for key, gradient in plain.model.gradients.items() if tolerance.first_change is None else ():
        if not (difference := _relative(fast.model.gradients[key], gradient)) <= tolerance.gradient:
            return f"the gradient of {key} differs by {difference:.2g} (at most {tolerance.gradient:g})"
    return None


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the difference of two tensors in Frobenius norm, relative to the second."""
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
