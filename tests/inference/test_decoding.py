"""Cached decoding against the full forward pass: layouts, λ, quantizers, the end of the context, independent rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bitnetctl.config import ModelConfig, build_config
from bitnetctl.inference.decoding import Decoder
from bitnetctl.inference.generation import continuations
from bitnetctl.inference.sampler import NO_TOKEN
from bitnetctl.inference.sampling import Sampling
from bitnetctl.model.matmul import Precision
from bitnetctl.model.packed import PackedModel
from bitnetctl.model.parts import PARTS
from bitnetctl.model.quantization import BUILT_IN, Quantizers

CPU = torch.device("cpu")
VOCAB = 53
# above 64 positions, and with fewer key heads, attention is SDPA in the full forward pass
LONG = 70


def build(seeds: list[int], *, quantizers: Quantizers = BUILT_IN, recipe: str = "quick", **fields: Any) -> PackedModel:
    widths = {"hidden_size": 32, "num_layers": 2, "init_std": 0.2}
    config: ModelConfig = build_config(recipe).model.model_copy(update=widths | fields)
    model = PackedModel([config] * len(seeds), VOCAB, seeds, CPU, quantizers=quantizers)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for key, packed in model.packed.items():
            if model.parameter_specs[key].group == "norms":
                # equal weights make exact ties in the rounding of the first position
                packed.add_(torch.rand(packed.shape[1:], generator=generator) - 0.5)
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def by_half(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, 1} and a scale for each half of the inputs."""
    grouped = x.unflatten(-1, (2, -1))
    scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 1.5
    return (grouped / scale).round().clamp(-1, 1).flatten(-2), scale.squeeze(-1)


LAYOUTS = [pytest.param({"recipe": recipe}, id=recipe) for recipe in ("quick", "origin", "b158", "portable")] + [
    pytest.param({"num_key_value_heads": 2}, id="gqa"),
    pytest.param({"num_key_value_heads": 1, "recipe": "portable"}, id="mqa-tied"),
    pytest.param({"logit_soft_cap": 3.0, "recipe": "portable"}, id="soft-cap"),
    pytest.param({"quantizers": Quantizers(weights=by_half)}, id="weight-quantizer"),
    pytest.param({"quantizers": Quantizers(weights=by_half, activations=by_half)}, id="both-quantizers"),
]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("lambdas", [[1.0, 1.0], [0.0, 0.0], [0.5, 1.0]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cached_logits_are_those_of_the_full_forward_pass(layout: dict[str, Any], lambdas: list[float]) -> None:
    model = build([0, 1], **layout)
    rows, prompt = 3, 5
    tokens_RBT = tokens(2, rows, LONG)
    expected_RBTV = model.forward(tokens_RBT, lambdas).view(2, rows, LONG, VOCAB)
    decoder = Decoder(model, lambdas, LONG, rows)
    found = [decoder.prefill(tokens_RBT[..., :prompt])]
    found += [decoder.step(tokens_RB) for tokens_RB in tokens_RBT[..., prompt:].unbind(-1)]
    torch.testing.assert_close(torch.stack(found, 2), expected_RBTV[:, :, prompt - 1 :], rtol=0, atol=1e-9)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_precisions_decode_within_their_rounding(precision: Precision) -> None:
    tokens_RBT, config = tokens(2, 3, 20), build([0]).config
    model = PackedModel([config] * 2, VOCAB, [0, 1], CPU, precision=precision)
    expected_RBTV = model.forward(tokens_RBT, [1.0, 1.0]).view(2, 3, 20, VOCAB).float()
    decoder = Decoder(model, [1.0, 1.0], 20, 3)
    found = [decoder.prefill(tokens_RBT[..., :4])]
    found += [decoder.step(tokens_RB) for tokens_RB in tokens_RBT[..., 4:].unbind(-1)]
    error = (torch.stack(found, 2).float() - expected_RBTV[:, :, 3:]).abs().mean()
    assert error < 0.01 * expected_RBTV.abs().mean()


@pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU kernels are not interpreted")
@pytest.mark.parametrize("lambdas", [[1.0, 1.0], [0.5, 1.0]], ids=str)
def test_a_model_with_own_kernels_decodes_alike(lambdas: list[float]) -> None:
    pytest.importorskip("triton")
    from bitnetctl.model.fused import FusedModel

    plain = build([0, 1], hidden_size=16, num_attention_heads=2, num_key_value_heads=2)
    fused = FusedModel([plain.config] * 2, VOCAB, [0, 1], CPU, parts={*PARTS} - {"update"})
    with torch.no_grad():
        for key, packed in plain.packed.items():
            fused.packed[key].copy_(packed)
    tokens_RBT = tokens(2, 2, 12)
    decoders = [Decoder(model, lambdas, 8, 2) for model in (plain, fused)]
    expected, found = (decoder.prefill(tokens_RBT[..., :5]) for decoder in decoders)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    for tokens_RB in tokens_RBT[..., 5:].unbind(-1):
        expected, found = (decoder.step(tokens_RB) for decoder in decoders)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("context", [1, 2, 7, 8])
def test_a_full_context_begins_again_with_its_newest_half(context: int) -> None:
    model, rows, prompt = build([0, 1], recipe="portable"), 2, 3
    tokens_RBT = tokens(2, rows, 30)
    decoder = Decoder(model, [1.0, 1.0], context, rows)
    found = decoder.prefill(tokens_RBT[..., :prompt])
    start = max(0, prompt - context)
    for end in range(prompt, 30):
        window_RBT = tokens_RBT[..., start:end]
        expected = model.forward(window_RBT, [1.0, 1.0]).view(2, rows, -1, VOCAB)[:, :, -1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        found = decoder.step(tokens_RBT[..., end])
        if end + 1 - start > context:
            start = end + 1 - max(1, context // 2)


@pytest.mark.usefixtures("double")
def test_one_prompt_stands_for_all_rows_and_its_last_part_is_used() -> None:
    model = build([0, 1])
    prompt_R1T = tokens(2, 1, 20)
    one, each = (Decoder(model, [1.0, 1.0], 12, 9) for _ in range(2))
    expected = each.prefill(prompt_R1T[..., -12:].expand(-1, 9, -1))
    torch.testing.assert_close(one.prefill(prompt_R1T), expected)
    for _ in range(3):
        tokens_RB = tokens(2, 9)
        torch.testing.assert_close(one.step(tokens_RB), each.step(tokens_RB))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_row_gets_the_same_bits_whatever_the_number_of_rows(kv_heads: int) -> None:
    model = build([3], hidden_size=64, num_key_value_heads=kv_heads)
    tokens_RBT = tokens(1, 11, 40)

    def logits(rows: int) -> Tensor:
        decoder = Decoder(model, [1.0], 24, rows)
        found = [decoder.prefill(tokens_RBT[:, :rows, :6])]
        found += [decoder.step(tokens_RB) for tokens_RB in tokens_RBT[:, :rows, 6:].unbind(-1)]
        return torch.stack(found)

    most = logits(11)
    for rows in (1, 2, 8, 9):
        assert torch.equal(logits(rows), most[:, :, :rows])


def test_greedy_text_is_that_of_the_full_forward_pass_but_for_near_ties() -> None:
    model, new = build([0, 1], recipe="portable", hidden_size=64), 40
    prompts_RBT = tokens(2, 2, 4)
    found = continuations(
        model, [1.0, 1.0], prompts_RBT, new_tokens=new, sampling=Sampling(temperature=0), context_length=64
    )
    compared = 0
    for run in range(2):
        for row in range(2):
            text = torch.cat((prompts_RBT[run, row], found[run, row]))
            # of both runs, since a pack has one shape
            logits_NV = model.forward(text.expand(2, 1, -1), [1.0, 1.0])[run]
            for index in range(new):
                best = logits_NV[3 + index].topk(2).values
                if best[0] - best[1] > 0.1:
                    assert logits_NV[3 + index].argmax() == found[run, row, index]
                    compared += 1
    assert compared > 2 * new


def test_a_run_continues_alike_alone_and_in_a_pack() -> None:
    prompts_RBT = tokens(1, 3, 5)
    settings: Any = {"new_tokens": 30, "sampling": Sampling(seed=4), "context_length": 16}
    both = continuations(build([5, 6]), [1.0, 0.0], prompts_RBT.expand(2, -1, -1), **settings)
    for run, (seed, quant_lambda) in enumerate([(5, 1.0), (6, 0.0)]):
        alone = continuations(build([seed]), [quant_lambda], prompts_RBT, **settings)
        assert torch.equal(alone[0], both[run])


def test_a_run_whose_logits_are_not_finite_has_no_tokens_and_disturbs_no_other() -> None:
    prompts_RBT = tokens(2, 2, 5)
    settings: Any = {"new_tokens": 9, "sampling": Sampling(), "context_length": 8}
    model = build([5, 6])
    expected = continuations(model, [1.0, 1.0], prompts_RBT, **settings)
    with torch.no_grad():
        model.packed["o"][0, 1, 0, 0] = torch.nan
    found = continuations(model, [1.0, 1.0], prompts_RBT, **settings)
    assert (found[0] == NO_TOKEN).all()
    assert torch.equal(found[1], expected[1])
