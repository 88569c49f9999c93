"""A pack of own kernels, interpreted on the CPU, trains what the plain operations train."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from configs import TinyConfig
from optimizers import adamw, own
from torch import Tensor
from torch.nn.attention import SDPBackend

from bitnetctl.config import RunConfig, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.intervention import Intervention
from bitnetctl.model.matmul import Precision
from bitnetctl.model.parts import PARTS, Part
from bitnetctl.plugins.composition import Composition
from bitnetctl.plugins.registry import compose

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU kernels are not interpreted")

CPU = torch.device("cpu")
# an interpreted kernel takes a millisecond a program, so there are few tokens
SMALL = {
    "model__hidden_size": 16,
    "model__num_attention_heads": 2,
    "model__num_key_value_heads": 2,
    "data__batch_size": 1,
    "data__sequence_length": 4,
    "schedule__warmup_steps": 0,
    "probe__positions": 16,
}


@pytest.fixture
def small_config(tiny_config: TinyConfig) -> TinyConfig:
    return lambda **overrides: tiny_config(**(SMALL | overrides))


def both(
    configs: Sequence[RunConfig],
    tokens: TokenData,
    arms: Sequence[str] = (),
    *,
    parts: Collection[Part] = PARTS,
    precision: Precision = "fp32",
) -> tuple[Pack, Any]:
    """Return packs of the same runs, the second of own kernels."""
    from bitnetctl.engine.fused import FusedPack

    def built(kind: type[Pack], **options: Any) -> Pack:
        compositions = [compose(parse_arm(arm)) for arm in arms or [""] * len(configs)]
        effective = [each.configure(config) for each, config in zip(compositions, configs, strict=True)]
        return kind(effective, compositions, tokens, CPU, precision=precision, **options)

    return built(Pack), built(FusedPack, parts=parts)


def assert_trains_alike(host: Pack, fused: Pack, steps: range, tolerance: float = 2e-4) -> None:
    for step in steps:
        host.step(step)
        fused.step(step)
        for metric in ("loss_R", "objective_R", "grad_norm_R"):
            torch.testing.assert_close(
                getattr(fused, metric), getattr(host, metric), rtol=tolerance, atol=tolerance, msg=f"{metric} at {step}"
            )


def assert_same_bits(first: Pack, second: Pack) -> None:
    for key, packed in first.model.packed.items():
        assert torch.equal(packed, second.model.packed[key]), key


def copied(pack: Pack, into: Pack) -> None:
    """Copy weights and optimizer states by their names in checkpoints."""
    with torch.no_grad():
        for key, packed in pack.model.packed.items():
            into.model.packed[key].copy_(packed)
    for run in range(len(pack.replicas)):
        into.load_optimizer_state(run, {key: value.clone() for key, value in pack.optimizer_state(run).items()})


def test_micro_batches_train_as_the_plain_operations_do(small_config: TinyConfig, tiny_tokens: TokenData) -> None:
    configs = [small_config(seed=seed, data__gradient_accumulation=2, optimizer__max_norm=0.1) for seed in (0, 1)]
    host, fused = both(configs, tiny_tokens, parts=set(PARTS) - {"update"})
    assert_trains_alike(host, fused, range(1, 3))


def test_the_optimizer_of_a_plug_in_updates_what_own_kernels_compute(
    small_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    from bitnetctl.engine.fused import FusedPack

    config = small_config(optimizer__max_norm=0.1, optimizer__learning_rate_factors__embeddings=0.5)
    compositions = [own(adamw) for _ in range(2)]
    host = Pack([config], compositions[:1], tiny_tokens, CPU)
    fused = FusedPack([config], compositions[1:], tiny_tokens, CPU, parts=set(PARTS) - {"update"})
    assert_trains_alike(host, fused, range(1, 3))


@pytest.mark.parametrize("part", [*PARTS, "all"])
def test_every_part_alone_and_all_together_train_as_the_plain_operations(
    part: Any, small_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    configs = [
        small_config(seed=0, optimizer__max_norm=0.1),
        small_config(seed=1, data__order="shuffled", optimizer__name="adamw", optimizer__max_norm="none"),
        small_config(seed=2, optimizer__exempt="norms,head", optimizer__betas="0.8,0.99"),
    ]
    host, fused = both(configs, tiny_tokens, parts=PARTS if part == "all" else (part,))
    assert_trains_alike(host, fused, range(1, 4))


@pytest.mark.parametrize(
    "shape",
    [
        {"model__num_key_value_heads": 1, "model__inner_norms": False, "model__activation": "silu"},
        {"model__tie_word_embeddings": True, "model__scale_group": "projection", "model__intermediate_ratio": 1.5},
    ],
)
def test_other_shapes_of_the_model(shape: dict[str, Any], small_config: TinyConfig, tiny_tokens: TokenData) -> None:
    host, fused = both([small_config(seed=seed, **shape) for seed in range(2)], tiny_tokens)
    assert_trains_alike(host, fused, range(1, 3))


def test_attention_of_plain_operations_leaves_transposed_gradients(
    small_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what a GPU takes for fp32 heads of a size that is no multiple of 4
    monkeypatch.setattr("bitnetctl.model.layer._SDPA_BACKENDS", [SDPBackend.MATH])
    for module in ("model.layer", "engine.pack"):
        monkeypatch.setattr(f"bitnetctl.{module}.is_attention_plain", lambda *_: False)
    host, fused = both([small_config(model__hidden_size=12)], tiny_tokens)
    assert_trains_alike(host, fused, range(1, 3))


def test_bf16_differs_by_its_rounding(small_config: TinyConfig, tiny_tokens: TokenData) -> None:
    host, fused = both([small_config(seed=seed) for seed in range(2)], tiny_tokens, precision="bf16")
    assert_trains_alike(host, fused, range(1, 4), 2e-2)
    assert torch.equal(fused.model.head_copy_RVH, fused.model.packed["head"].bfloat16())


def test_hooks_change_the_loss_and_the_quantization(small_config: TinyConfig, tiny_tokens: TokenData) -> None:
    arms = ["label-smoothing", "fp-first:fraction=0.25,ramp=0.25", ""]
    host, fused = both([small_config(seed=seed, steps=6) for seed in range(3)], tiny_tokens, arms)
    assert_trains_alike(host, fused, range(1, 5))
    assert not torch.equal(fused.loss_R, fused.objective_R)


@pytest.mark.parametrize("arm", ["full-precision", "fp-first:fraction=0.5,ramp=0.0"])
def test_nothing_is_quantized_where_every_run_is_in_full_precision(
    arm: str, small_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    host, fused = both([small_config(seed=seed, steps=4) for seed in range(2)], tiny_tokens, [arm, arm])
    assert_trains_alike(host, fused, range(1, 5))


class Broken(Intervention):
    """A loss that is not finite from the third call on."""

    capturable = True
    calls = 0

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        self.calls += 1
        loss = torch.nn.functional.cross_entropy(logits_TV, targets_T)
        return loss * (torch.nan if self.calls > 2 else 1.0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_diverged_run_freezes_and_its_neighbour_does_not_change(
    small_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    from bitnetctl.engine.fused import FusedPack

    def built(hook: Intervention | None) -> FusedPack:
        compositions = [Composition(), Composition(() if hook is None else (hook,))]
        return FusedPack([small_config(seed=seed) for seed in range(2)], compositions, tiny_tokens, CPU, parts=PARTS)

    def train(pack: FusedPack, steps: range) -> None:
        for step in steps:
            pack.step(step)

    disturbed, calm = built(Broken(Broken.Settings())), built(None)
    train(disturbed, range(1, 5))
    train(calm, range(1, 3))
    before = {key: packed[1].clone() for key, packed in calm.model.packed.items()}
    train(calm, range(3, 5))
    disturbed.mark_diverged(4)
    assert [replica.diverged_at for replica in disturbed.replicas] == [None, 3]
    assert disturbed.first_nonfinite_tensor(1) == "the loss"
    assert disturbed.replicas[1].optimizer.state()["head/step"] == 2
    for key, packed in disturbed.model.packed.items():
        assert torch.equal(packed[0], calm.model.packed[key][0]), key
        torch.testing.assert_close(packed[1], before[key], rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_an_embedding_gradient_that_is_not_finite_is_named(small_config: TinyConfig, tiny_tokens: TokenData) -> None:
    fused = both([small_config()], tiny_tokens)[1]
    fused.step(1)
    fused._state.norms_FR[0, 0] = torch.inf
    assert fused.first_nonfinite_tensor(0) == "the gradient of model.embed_tokens.weight"


def test_states_pass_between_stock_optimizers_and_own_kernels(small_config: TinyConfig, tiny_tokens: TokenData) -> None:
    configs = [small_config(seed=seed, optimizer__reset_moments_every_steps=2) for seed in range(2)]
    for start in (0, 1):
        packs = both(configs, tiny_tokens)
        first, second = packs[start], packs[1 - start]
        for step in (1, 2):
            first.step(step)
        copied(first, second)
        # the third step resets the moments
        assert_trains_alike(packs[0], packs[1], range(3, 5))
        assert [pack.replicas[0].optimizer.state()["head/step"].item() for pack in packs] == [2, 2]


def test_a_resumed_pack_goes_on_bit_for_bit(small_config: TinyConfig, tiny_tokens: TokenData) -> None:
    configs = [small_config(seed=seed) for seed in range(2)]
    undisturbed, resumed = (both(configs, tiny_tokens, precision="bf16")[1] for _ in range(2))
    for step in range(1, 3):
        undisturbed.step(step)
    copied(undisturbed, resumed)
    for step in range(3, 5):
        undisturbed.step(step)
        resumed.step(step)
    assert_same_bits(undisturbed, resumed)


def test_an_evaluation_before_the_first_step(small_config: TinyConfig, tiny_tokens: TokenData) -> None:
    host, fused = both([small_config(seed=seed) for seed in range(2)], tiny_tokens)
    tokens_RBT = torch.arange(16).view(2, 1, 8)
    torch.testing.assert_close(fused.model.forward(tokens_RBT, [1.0] * 2), host.model.forward(tokens_RBT, [1.0] * 2))


def test_one_graph_serves_every_weight_decay(small_config: TinyConfig, tiny_tokens: TokenData) -> None:
    config = small_config(schedule__stage1_weight_decay=0.1, schedule__stage2_weight_decay=0.0)
    fused = both([config], tiny_tokens)[1]
    stock = CapturedPack([config], [Composition()], tiny_tokens, CPU)
    for pack in (fused, stock):
        pack._fill(1)
    assert len(set(fused._keys)) == 1
    assert len(set(stock._keys)) == 2
