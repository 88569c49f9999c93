"""Gradients on a GPU that sum over many rows or must be zero: those of the embeddings and of the padded vocabulary."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from configs import TinyConfig
from on_gpu import CAPTURED, GPU, MARKS, build, train
from torch import Tensor

from bitnetctl.data import TokenData
from bitnetctl.model.matmul import Quantization
from bitnetctl.model.packed import PackedModel

pytestmark = MARKS
CPU = torch.device("cpu")
TOKEN, DUPLICATES, TOKENS = 5, 200, 256
OFF = Quantization(off=True, quant_lambda_R=None)


def embedding_gradient(model: PackedModel, tokens_RBT: Tensor) -> Tensor:
    """Return the gradient [V, H] of the embeddings of the first run, without quantization."""
    tokens_RBT = tokens_RBT.to(model.device)
    activations = model.forward_for_backward(tokens_RBT, OFF)
    model.backward(activations, model.head_loss(activations.hidden_RNH, tokens_RBT.flatten(1))[1])
    return model.gradients["embed"][0].clone()


def test_gradients_of_a_token_that_occurs_often_add_up(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    config = tiny_config().model
    tokens = torch.randint(0, tiny_tokens.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(0))
    tokens[torch.randperm(TOKENS, generator=torch.Generator().manual_seed(1))[:DUPLICATES]] = TOKEN
    tokens_RBT = tokens.view(1, 8, -1)
    gpu, cpu = (PackedModel([config], tiny_tokens.vocab_size, [0], device) for device in (GPU, CPU))
    first, again = (embedding_gradient(gpu, tokens_RBT) for _ in range(2))
    assert torch.equal(first, again)
    expected = embedding_gradient(cpu, tokens_RBT)
    assert expected[TOKEN].norm() > 0
    torch.testing.assert_close(first.cpu(), expected, rtol=1e-3, atol=1e-6)


def test_own_kernels_update_a_token_that_occurs_often_as_the_optimizer_does(
    tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    generator = np.random.default_rng(0)
    train_N = generator.integers(0, tiny_tokens.vocab_size, 4096).astype(tiny_tokens.train_N.dtype)
    # four of five tokens are the same
    train_N[generator.random(4096) < DUPLICATES / TOKENS] = TOKEN
    tokens = replace(tiny_tokens, train_N=train_N)
    config = tiny_config(steps=20, data__batch_size=8, data__sequence_length=32, schedule__warmup_steps=0)
    before, ours, host = (build(each, [config], tokens, precision="fp32") for each in ("eager", "fused", "eager"))
    for pack in (ours, host):
        train(pack, range(1, 2))
    change, expected = (pack.model.packed["embed"][0] - before.model.packed["embed"][0] for pack in (ours, host))
    assert expected[TOKEN].abs().min() > 0
    torch.testing.assert_close(change[TOKEN], expected[TOKEN], rtol=1e-2, atol=1e-6)
    # elements with almost no gradient may move either way
    wrong = (change - expected).abs() > 1e-2 * expected.abs().max()
    assert wrong.float().mean() < 0.02


@pytest.mark.parametrize("engine", ["eager", *CAPTURED])
def test_padding_of_the_vocabulary_has_no_gradient_and_stays_zero(
    tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str
) -> None:
    pack = build(engine, [tiny_config(seed=seed, steps=20) for seed in range(2)], tiny_tokens)
    train(pack, range(1, 11))
    model, size = pack.model, tiny_tokens.vocab_size
    assert model._padded_vocab > size
    gradient_RVH, weight_RVH = model._head(model._flat_gradients), model._head(model._flat)
    assert gradient_RVH[:, :size].abs().sum() > 0
    assert not gradient_RVH[:, size:].any()
    assert not weight_RVH[:, size:].any()
