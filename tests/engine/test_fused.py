"""A pack of own kernels, interpreted on the CPU, trains what the plain operations train."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from configs import TinyConfig

from bitnetctl.config import RunConfig, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.model.matmul import Precision
from bitnetctl.model.parts import PARTS, Part
from bitnetctl.plugins.registry import compose

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are not interpreted beside a GPU")

CPU = torch.device("cpu")


def both(
    configs: Sequence[RunConfig],
    tokens: TokenData,
    arms: Sequence[str] = (),
    *,
    parts: Collection[Part] = PARTS,
    precision: Precision = "fp32",
) -> tuple[Pack, CapturedPack]:
    """Return packs of the same runs, the second of own kernels."""
    from bitnetctl.engine.fused import FusedPack

    def built(kind: type[Pack], **options: Any) -> Any:
        compositions = [compose(parse_arm(arm)) for arm in arms or [""] * len(configs)]
        effective = [each.configure(config) for each, config in zip(compositions, configs, strict=True)]
        return kind(effective, compositions, tokens, CPU, precision=precision, **options)

    return built(Pack), built(FusedPack, parts=parts)


def assert_trains_alike(host: Pack, fused: Pack, steps: int, tolerance: float) -> None:
    for step in range(1, steps + 1):
        host.step(step)
        fused.step(step)
        for metric in ("loss_R", "objective_R", "grad_norm_R"):
            torch.testing.assert_close(
                getattr(fused, metric), getattr(host, metric), rtol=tolerance, atol=tolerance, msg=f"{metric} at {step}"
            )


@pytest.mark.parametrize("part", [*PARTS, "all"])
def test_every_part_alone_and_all_together_train_as_the_plain_operations(
    part: Any, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    configs = [
        tiny_config(seed=0, optimizer__max_norm=0.1),
        tiny_config(seed=1, data__order="shuffled", optimizer__name="adamw", optimizer__max_norm="none"),
        tiny_config(seed=2, optimizer__exempt="norms,head", optimizer__betas="0.8,0.99"),
    ]
    host, fused = both(configs, tiny_tokens, parts=PARTS if part == "all" else (part,))
    assert_trains_alike(host, fused, 3, 2e-4)


def test_bf16_differs_by_its_rounding(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    host, fused = both([tiny_config(seed=seed) for seed in range(2)], tiny_tokens, precision="bf16")
    assert_trains_alike(host, fused, 3, 2e-2)
