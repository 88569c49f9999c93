"""Packs on a GPU, by engine: built, trained, compared."""

from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import Tensor

from bitnetctl.config import RunConfig, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.select import Execution, make_pack
from bitnetctl.model.matmul import Precision
from bitnetctl.model.parts import Part, supported_parts
from bitnetctl.plugins.composition import custom_quantizers
from bitnetctl.plugins.registry import compose

GPU = torch.device("cuda", 0)
MARKS = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
# what captures a step; compiling takes half a minute, and torch's compiler warns about its own parts
CAPTURED = ["graph", "fused"]
ENGINES = [*CAPTURED, pytest.param("compile", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")])]


def build(
    engine: str,
    configs: Sequence[RunConfig],
    tokens: TokenData,
    arms: Sequence[str] = (),
    precision: Precision = "bf16",
) -> Pack:
    """Return a pack with all kernels that an engine has, checked or not."""
    compositions = [compose(parse_arm(arm)) for arm in arms or [""] * len(configs)]
    effective = [each.configure(config) for each, config in zip(compositions, configs, strict=True)]
    custom = custom_quantizers(compositions[0].quantizer_key)
    kernels = supported_parts(effective[0].model, precision, custom) if engine == "fused" else frozenset[Part]()
    execution = Execution(engine=engine, precision=precision, kernels=kernels)  # type: ignore[arg-type]
    return make_pack(effective, compositions, tokens, GPU, execution)


def train(pack: Pack, steps: Iterable[int]) -> Tensor:
    """Train the steps and return the losses [S, R]."""
    losses = []
    for step in steps:
        pack.step(step)
        # a captured step overwrites its loss
        losses.append(pack.loss_R.clone())
    return torch.stack(losses)


def captured(pack: Pack) -> CapturedPack:
    """Return the pack, whose steps must have been captured and replayed."""
    assert isinstance(pack, CapturedPack)
    assert pack.graphs is not None
    assert pack.graphs.error is None
    assert pack.graphs._graphs
    return pack


def assert_same_bits(first: Pack, second: Pack) -> None:
    for key, packed in first.model.packed.items():
        assert torch.equal(packed, second.model.packed[key]), key


def mean_difference(first: Pack, second: Pack) -> dict[str, float]:
    """Return the mean absolute difference of the weights."""
    pairs = {key: (packed, second.model.packed[key]) for key, packed in first.model.packed.items()}
    return {key: (a - b).abs().mean().item() for key, (a, b) in pairs.items()}


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=relative, atol=0.0)
