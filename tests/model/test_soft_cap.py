"""Capped logits: cap · tanh(x / cap) in training, probe and loss hooks, with its gradient."""

import pytest
import torch
import torch.nn.functional as F
from configs import TinyConfig
from torch import Tensor

from bitnetctl.config import ModelConfig, build_config
from bitnetctl.data import TokenData
from bitnetctl.engine.cost import bytes_per_replica
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Intervention
from bitnetctl.model import storage
from bitnetctl.model.matmul import Precision
from bitnetctl.model.packed import PackedModel
from bitnetctl.model.parts import PARTS, supported_parts
from bitnetctl.plugins.composition import Composition

CPU = torch.device("cpu")
VOCAB, CAP = 40, 1.5


def build(cap: float | None = CAP, *, tied: bool = False, precision: Precision = "fp32") -> PackedModel:
    config = ModelConfig(
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        init_std=0.5,
        logit_soft_cap=cap,
    )
    return PackedModel([config] * 2, VOCAB, [0, 1], CPU, precision=precision)


def hidden_and_targets(tokens: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, tokens, 16, generator=generator), torch.randint(VOCAB, (2, tokens), generator=generator)


def expected(model: PackedModel, hidden_RNH: Tensor, targets_RN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the hidden states and gradient of the head by autograd, of a loss written out."""
    hidden_RNH = hidden_RNH.clone().requires_grad_()
    head_RVH = model._head(model._flat)[:, :VOCAB].detach().clone().requires_grad_()
    capped_RNV = CAP * torch.tanh(hidden_RNH @ head_RVH.mT / CAP)
    loss_RN = capped_RNV.exp().sum(-1).log() - capped_RNV.gather(-1, targets_RN.unsqueeze(-1)).squeeze(-1)
    loss_RN.mean(-1).sum().backward()
    assert hidden_RNH.grad is not None
    assert head_RVH.grad is not None
    return loss_RN.mean(-1).detach(), hidden_RNH.grad, head_RVH.grad


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("padded", [1, 64])
@pytest.mark.parametrize("tokens", [12, 300], ids=["whole", "in-chunks"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
def test_loss_and_gradients_are_those_of_autograd(
    padded: int, tokens: int, tied: bool, hooked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(storage._VOCABULARY_MULTIPLE, "cpu", padded)
    model = build(tied=tied)
    hidden_RNH, targets_RN = hidden_and_targets(tokens)
    seen: list[Tensor] = []
    override = (lambda logits, grad: seen.append(logits.clone())) if hooked else None
    loss_R, grad_RNH = model.head_loss(hidden_RNH, targets_RN, override)
    for found, wanted in zip(
        (loss_R, grad_RNH, model.gradients["embed" if tied else "head"]),
        expected(model, hidden_RNH, targets_RN),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)
    if hooked:
        torch.testing.assert_close(torch.cat(seen, 1), model.logits(hidden_RNH))


@pytest.mark.usefixtures("double")
def test_the_gradient_of_another_objective_passes_the_cap_too() -> None:
    model = build()
    hidden_RNH, targets_RN = hidden_and_targets()
    leaf_RNH = hidden_RNH.clone().requires_grad_()
    head_RVH = model._head(model._flat).detach()
    (CAP * torch.tanh(leaf_RNH @ head_RVH.mT / CAP)).square().sum(-1).mean(-1).sum().backward()

    def squares(logits_RNV: Tensor, grad_RNV: Tensor) -> None:
        grad_RNV.copy_(2 * logits_RNV)

    torch.testing.assert_close(model.head_loss(hidden_RNH, targets_RN, squares)[1], leaf_RNH.grad)


def test_logits_are_capped() -> None:
    hidden_RNH, _ = hidden_and_targets()
    plain_RNV = build(None).logits(hidden_RNH)
    assert plain_RNV.abs().max() > 2 * CAP
    torch.testing.assert_close(build().logits(hidden_RNH), CAP * torch.tanh(plain_RNV / CAP))
    assert build().logits(hidden_RNH).abs().max() <= CAP


def test_bf16_matmuls_are_capped_in_fp32() -> None:
    hidden_RNH, targets_RN = hidden_and_targets()
    exact, low = build(), build(precision="bf16")
    assert low.logits(hidden_RNH).dtype == torch.float32
    torch.testing.assert_close(low.logits(hidden_RNH), exact.logits(hidden_RNH), rtol=0.02, atol=0.02)
    (loss_R, grad_RNH), (low_R, low_RNH) = (model.head_loss(hidden_RNH, targets_RN) for model in (exact, low))
    torch.testing.assert_close(low_R, loss_R, rtol=0.01, atol=0.01)
    torch.testing.assert_close(low_RNH, grad_RNH, rtol=0.05, atol=0.005)


def test_the_probe_sees_capped_logits() -> None:
    model = build()
    inputs_RBT = torch.randint(VOCAB, (2, 2, 5), generator=torch.Generator().manual_seed(0))
    saved = model.forward_for_backward(inputs_RBT, model.quantization([1.0, 1.0]))
    logits_RNV = model.prepared([1.0, 1.0])(inputs_RBT)
    assert torch.equal(logits_RNV, model.logits(saved.hidden_RNH))
    assert logits_RNV.abs().max() <= CAP


class Squares(Intervention):
    """Cross-entropy and the mean square of the logits; keeps the largest logit that it sees."""

    largest = 0.0

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        self.largest = max(self.largest, logits_TV.abs().max().item())
        return F.cross_entropy(logits_TV, targets_T) + logits_TV.square().mean()


def test_a_loss_hook_gets_capped_logits_and_its_gradient_passes_the_cap(
    tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    config = tiny_config(model__logit_soft_cap=0.05, model__init_std=0.5)
    hook = Squares(Squares.Settings())
    pack = Pack([config] * 2, [Composition([hook]), Composition()], tiny_tokens, CPU)
    pack.step(1)
    assert 0.045 < hook.largest < 0.05001
    objective, loss = pack.objective_R[0].item(), pack.loss_R[0].item()
    assert 0 < objective - loss <= 0.05**2
    assert pack.loss_R[1].item() == pytest.approx(loss)
    assert not torch.equal(pack.model.gradients["head"][0], pack.model.gradients["head"][1])


def test_a_huge_cap_changes_nothing_and_a_pack_has_one_cap(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    losses = []
    for cap in ("none", 1e6):
        pack = Pack([tiny_config(model__logit_soft_cap=cap)], [Composition()], tiny_tokens, CPU)
        for step in (1, 2, 3):
            pack.step(step)
        losses.append(pack.loss_R.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert tiny_config(model__logit_soft_cap=30.0).pack_key != tiny_config().pack_key


@pytest.mark.parametrize("cap", ["0", "-1", "nan"])
def test_a_cap_is_positive(cap: str) -> None:
    with pytest.raises(ConfigError, match="logit_soft_cap"):
        build_config("quick", overrides=[f"model.logit_soft_cap={cap}"])


def test_own_kernels_compute_no_capped_loss_and_memory_counts_fp32_logits() -> None:
    capped, plain = build_config("quick", overrides=["model.logit_soft_cap=30"]), build_config("quick")
    assert supported_parts(capped.model, "bf16") == set(PARTS) - {"loss"}
    assert supported_parts(plain.model, "bf16") == set(PARTS)
    assert bytes_per_replica(capped, 2048, "bf16") > bytes_per_replica(plain, 2048, "bf16")
    assert bytes_per_replica(capped, 2048) == bytes_per_replica(plain, 2048)
