"""What only a GPU can show: bits that repeat, captured steps against those of the host, memory that is given back."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from configs import TinyConfig
from torch import Tensor

from bitnetctl.config import ModelConfig, RunConfig, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.engine.cuda_graph import CapturedPack, GraphCache
from bitnetctl.engine.pack import Pack
from bitnetctl.hardware import release_unused
from bitnetctl.intervention import Intervention
from bitnetctl.model.layer import Layer
from bitnetctl.model.matmul import Matmul, Operand
from bitnetctl.plugins.composition import Composition
from bitnetctl.plugins.registry import compose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU = torch.device("cuda", 0)
HEADS, WIDTH = 4, 64


def build(
    kind: type[Pack], configs: Sequence[RunConfig], tokens: TokenData, arms: Sequence[str] = (), **options: Any
) -> Pack:
    compositions = [compose(parse_arm(arm)) for arm in arms or [""] * len(configs)]
    effective = [each.configure(config) for each, config in zip(compositions, configs, strict=True)]
    return kind(effective, compositions, tokens, GPU, **{"precision": "bf16", **options})


def train(pack: Pack, steps: range) -> Tensor:
    """Train the steps and return the losses [S, R]."""
    losses = []
    for step in steps:
        pack.step(step)
        # a captured step overwrites its loss
        losses.append(pack.loss_R.clone())
    return torch.stack(losses)


def assert_captured(pack: Pack) -> None:
    assert isinstance(pack, CapturedPack)
    assert pack.graphs is not None
    assert pack.graphs.error is None
    assert pack.graphs._graphs


def assert_same_bits(first: Pack, second: Pack) -> None:
    for key, packed in first.model.packed.items():
        assert torch.equal(packed, second.model.packed[key]), key


def copied(pack: Pack, into: Pack) -> Pack:
    """Copy the weights and optimizer states of a pack, as a checkpoint does."""
    with torch.no_grad():
        for key, packed in pack.model.packed.items():
            into.model.packed[key].copy_(packed)
    for source, target in zip(pack.replicas, into.replicas, strict=True):
        target.optimizer.load_state({key: value.clone() for key, value in source.optimizer.state().items()})
    return into


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("positions", [8, 32, 33, 128, 256, 512])
def test_attention_repeats_and_agrees_with_double_precision(positions: int, precision: Any) -> None:
    generator = torch.Generator(GPU).manual_seed(positions)
    config = ModelConfig(hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, num_key_value_heads=HEADS)
    matmul = Matmul(precision, GPU)
    layer = Layer(config, matmul, positions, GPU)
    q, k, v = (
        torch.randn(2, HEADS, positions, WIDTH, generator=generator, device=GPU).to(matmul.dtype) for _ in range(3)
    )
    grad = torch.randn(1, 2 * positions, HEADS * WIDTH, generator=generator, device=GPU)

    def both_ways() -> list[Tensor]:
        out, saved = layer._attend((q, k, v), 1)
        return [out, *layer._attend_backward(grad, saved)]

    first = both_ways()
    for _ in range(10):
        for expected, again in zip(first, both_ways(), strict=True):
            assert torch.equal(expected, again)
    exact = [head.double().requires_grad_() for head in (q, k, v)]
    mask = torch.full((positions, positions), -torch.inf, dtype=torch.double, device=GPU).triu(1)
    out = (exact[0] @ exact[1].mT * WIDTH**-0.5 + mask).softmax(-1) @ exact[2]
    out = out.transpose(1, 2).reshape(1, -1, HEADS * WIDTH)
    expected_all = [out.detach(), *torch.autograd.grad(out, exact, grad.double())]
    for ours, double in zip(first, expected_all, strict=True):
        error = (ours.double() - double).norm() / double.norm()
        assert error < (1e-2 if precision == "bf16" else 1e-5)


@pytest.mark.parametrize("positions", [32, 512])
def test_captured_steps_repeat_bit_for_bit(tiny_config: TinyConfig, tiny_tokens: TokenData, positions: int) -> None:
    configs = [tiny_config(seed=seed, steps=40, data__sequence_length=positions) for seed in range(2)]
    first, again, host = (build(kind, configs, tiny_tokens) for kind in (CapturedPack, CapturedPack, Pack))
    losses = [train(pack, range(1, 41)) for pack in (first, again, host)]
    assert_captured(first)
    assert torch.equal(losses[0], losses[1])
    assert_same_bits(first, again)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-3, atol=1e-3)


def test_steps_are_right_where_a_table_ends(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    # 256 steps fill a table; nothing waits for the GPU here, so that many replays are queued when it is filled again
    configs = [tiny_config(seed=seed, steps=600) for seed in range(3)]
    captured, host = build(CapturedPack, configs, tiny_tokens), build(Pack, configs, tiny_tokens)
    for step in range(1, 271):
        captured.step(step)
    losses = train(host, range(1, 271))
    assert_captured(captured)
    torch.testing.assert_close(captured.loss_R, losses[-1], rtol=1e-2, atol=1e-2)


def test_a_resumed_pack_goes_on_as_the_undisturbed_one(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    configs = [tiny_config(seed=seed, steps=60) for seed in range(2)]
    undisturbed = build(CapturedPack, configs, tiny_tokens)
    train(undisturbed, range(1, 26))
    resumed = copied(undisturbed, build(CapturedPack, configs, tiny_tokens))
    losses = [train(pack, range(26, 61)) for pack in (undisturbed, resumed)]
    assert_captured(resumed)
    assert torch.equal(*losses)
    assert_same_bits(undisturbed, resumed)


@pytest.mark.parametrize("arm", ["label-smoothing", "fp-first:fraction=0.25,ramp=0.25", "momentum-reset:every=7"])
def test_interventions_are_captured(tiny_config: TinyConfig, tiny_tokens: TokenData, arm: str) -> None:
    configs = [tiny_config(seed=seed, steps=40) for seed in range(2)]
    captured, host = (build(kind, configs, tiny_tokens, [arm, ""], precision="fp32") for kind in (CapturedPack, Pack))
    losses = [train(pack, range(1, 41)) for pack in (captured, host)]
    assert_captured(captured)
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_a_diverged_run_freezes_and_its_neighbours_do_not_change(
    tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    absurd = tiny_config(seed=1, steps=40, schedule__peak_learning_rate=1e38, schedule__warmup_steps=0)
    calm = [tiny_config(seed=seed, steps=40) for seed in range(3)]
    disturbed = build(CapturedPack, [calm[0], absurd, calm[2]], tiny_tokens)
    undisturbed = build(CapturedPack, calm, tiny_tokens)
    train(disturbed, range(1, 21))
    frozen = {key: packed[1].clone() for key, packed in disturbed.model.packed.items()}
    train(disturbed, range(21, 41))
    train(undisturbed, range(1, 41))
    disturbed.mark_diverged(40)
    assert [replica.diverged_at is None for replica in disturbed.replicas] == [True, False, True]
    for key, packed in disturbed.model.packed.items():
        assert torch.equal(packed[1], frozen[key]), key
        assert torch.equal(packed[[0, 2]], undisturbed.model.packed[key][[0, 2]]), key


class Waiting(Intervention):
    """A loss that reads a number from the GPU, although it claims that it can be captured."""

    capturable = True

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        loss = torch.nn.functional.cross_entropy(logits_TV, targets_T)
        return loss * 2 if loss.item() < 0 else loss


def test_a_hook_that_waits_is_named_and_trains_uncaptured(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    config = tiny_config(steps=40)
    pack = CapturedPack([config], [Composition((Waiting(Waiting.Settings()),))], tiny_tokens, GPU, precision="bf16")
    train(pack, range(1, 13))
    assert pack.graphs is not None
    assert pack.graphs.error is not None
    assert "test_on_gpu.py" in pack.graphs.error
    assert not pack.graphs._graphs


def test_sums_of_int8_times_ternary_are_exact() -> None:
    generator = torch.Generator(GPU).manual_seed(0)
    x = torch.randint(-127, 128, (2, 32, 256), generator=generator, device=GPU).to(torch.int8)
    w = torch.randint(-1, 2, (2, 64, 256), generator=generator, device=GPU).to(torch.int8)
    ones = [torch.ones(2, rows, 1, device=GPU) for rows in (32, 64)]
    product = Matmul("int8", GPU).multiply(Operand(x, ones[0]), Operand(w, ones[1]))
    assert torch.equal(product.double(), x.double() @ w.double().mT)


def test_packs_give_their_memory_back(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    held = []
    for _ in range(4):
        pack = build(CapturedPack, [tiny_config(steps=40)], tiny_tokens)
        train(pack, range(1, 13))
        assert_captured(pack)
        del pack
        release_unused(GPU)
        held.append(torch.cuda.memory_reserved(GPU))
    assert held[1:] == held[:1] * 3


def test_out_of_memory_in_a_capture_leaves_the_gpu_usable() -> None:
    count = torch.zeros((), device=GPU)

    def large() -> None:
        count.add_(1)
        if torch.cuda.is_current_stream_capturing():
            torch.empty(2**45, device=GPU)

    def small() -> None:
        count.add_(1)

    graphs = GraphCache(GPU)
    for _ in range(3):
        graphs.run("a", large)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run("a", large)
    again = GraphCache(GPU)
    for _ in range(6):
        again.run("a", small)
    assert again._graphs
    assert count.item() == 3 + 6
