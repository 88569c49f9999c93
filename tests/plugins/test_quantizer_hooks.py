"""`quantize_weights` and `quantize_activations`: one override each, packs of their own, results that are refused."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from configs import TinyConfig
from torch import Tensor

from bitnetctl.data import TokenData
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import ConfigError, PluginError
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.plugins.composition import Composition, custom_quantizers
from bitnetctl.plugins.isolation import intrusions_of

HERE = re.escape(__file__)
CPU = torch.device("cpu")
Quantized = tuple[Tensor, Tensor]


def mean_ternary(weight_LOI: Tensor) -> Quantized:
    inverse = weight_LOI.abs().mean((-2, -1), keepdim=True).clamp(min=1e-5).reciprocal()
    return (weight_LOI * inverse).round().clamp(-1, 1), inverse.reciprocal()


class Mean(Intervention):
    """The built-in quantizer of weights."""

    class Settings(InterventionSettings):
        unused: int = 0

    def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
        return mean_ternary(weight_LOI)


class Maximum(Intervention):
    """Scales by half of the largest magnitude of a row."""

    capturable = True

    def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
        scale = weight_LOI.abs().amax(-1, keepdim=True) / 2
        return (weight_LOI / scale).round().clamp(-1, 1).to(torch.int8), scale


class FourBits(Intervention):
    """Activations of 4 bits."""

    def quantize_activations(self, x_NI: Tensor) -> Quantized:
        scale = x_NI.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 7
        return (x_NI / scale).round(), scale


def made(**hooks: Callable[..., Any]) -> Composition:
    kind: type[Intervention] = type("Made", (Intervention,), hooks)
    return Composition([kind(kind.Settings())], ["made-up"])


def of(*kinds: type[Intervention], **settings: Any) -> Composition:
    return Composition([kind(kind.Settings.model_validate(settings)) for kind in kinds])


def trained(config: Any, tokens: TokenData, *compositions: Composition, steps: int = 3) -> Pack:
    pack = Pack([config] * len(compositions), compositions, tokens, CPU)
    for step in range(1, steps + 1):
        pack.step(step)
    return pack


@pytest.mark.parametrize("hook", ["quantize_weights", "quantize_activations"])
def test_only_one_may_override_each(hook: str) -> None:
    kind = {"quantize_weights": Mean, "quantize_activations": FourBits}[hook]
    with pytest.raises(ConfigError, match=f"both override {hook}; only one intervention"):
        of(kind, kind)
    assert len(of(Mean, FourBits).quantizer_key) == 2


def test_a_step_is_captured_where_the_quantizer_is_capturable() -> None:
    assert of(Maximum).capturable_step
    assert not of(Mean).capturable_step
    assert not of(Maximum, FourBits).capturable_step


def test_what_is_custom_is_read_off_the_key() -> None:
    assert Composition().quantizer_key == ()
    assert custom_quantizers(Composition().quantizer_key) == set()
    assert custom_quantizers(of(Mean).quantizer_key) == {"weights"}
    assert custom_quantizers(of(FourBits).quantizer_key) == {"activations"}
    assert custom_quantizers(of(FourBits, Mean).quantizer_key) == {"weights", "activations"}


def test_the_key_tells_class_and_settings() -> None:
    keys = {of(Mean).quantizer_key, of(Maximum).quantizer_key, of(Mean, unused=1).quantizer_key}
    assert len(keys) == 3
    assert of(Mean).quantizer_key == of(Mean).quantizer_key


@pytest.mark.parametrize(
    ("first", "second"), [(of(Mean), Composition()), (of(Mean), of(Maximum)), (of(Mean), of(Mean, unused=1))]
)
def test_runs_with_different_quantizers_are_kept_apart(
    first: Composition, second: Composition, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    with pytest.raises(ConfigError, match="different quantizers cannot train in one pack"):
        Pack([tiny_config()] * 2, [first, second], tiny_tokens, CPU)


def test_the_built_in_quantizer_as_a_hook_trains_the_same_bits(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    config = tiny_config(model__scale_group="fused")
    plain, custom = trained(config, tiny_tokens, Composition()), trained(config, tiny_tokens, of(Mean))
    assert torch.equal(plain.loss_R, custom.loss_R)
    for key, packed in plain.model.packed.items():
        assert torch.equal(custom.model.packed[key], packed), key


def test_another_quantizer_trains_otherwise_alone_as_in_a_pack(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    config = tiny_config()
    alone = trained(config, tiny_tokens, of(Maximum, FourBits))
    together = trained(config, tiny_tokens, of(Maximum, FourBits), of(Maximum, FourBits))
    plain = trained(config, tiny_tokens, Composition())
    assert together.loss_R.tolist() == pytest.approx(alone.loss_R.tolist() * 2, rel=1e-4)
    assert alone.loss_R.item() != pytest.approx(plain.loss_R.item(), rel=1e-4)
    codes = alone.model.ternary_codes()["o"]
    expected, _ = Maximum(Maximum.Settings()).quantize_weights(alone.model.packed["o"].flatten(0, 1))
    assert torch.equal(codes.flatten(0, 1), expected)


W, A = "quantize_weights", "quantize_activations"


@pytest.mark.parametrize(
    ("hook", "function", "problem"),
    [
        (W, lambda self, w: w, r"returned torch.Tensor of shape .*, not \(codes, scale\)"),
        (W, lambda self, w: None, r"returned None, not \(codes, scale\)"),
        (W, lambda self, w: (w.sign(), 0.5), "returned float as scale, not a tensor"),
        (W, lambda self, w: (w > 0, w.abs().amax((1, 2), True)), "returned codes of torch.bool"),
        (W, lambda self, w: (w.sign()[0], w[:, :1, :1]), r"returned codes of shape \(32, 32\) for \(2, 32, 32\)"),
        (W, lambda self, w: (2 * w.sign(), w[:, :1, :1]), "returned codes other than -1, 0 and 1, such as -?2"),
        (W, lambda self, w: (w.sign() / 2, w[:, :1, :1]), r"returned codes other than -1, 0 and 1, such as -?0\.5"),
        (W, lambda self, w: (w.sign() * torch.nan, w[:, :1, :1]), "returned codes other than -1, 0 and 1, such as nan"),
        (W, lambda self, w: (w.sign(), w[:, :1, :1] * torch.nan), "returned a scale that is not finite"),
        (W, lambda self, w: (w.sign(), w[:, :1, :1] / 0), "returned a scale that is not finite"),
        (
            W,
            lambda self, w: (w.sign(), w[:, :3, :1]),
            r"returned a scale of shape \(2, 3, 1\) for \(2, 32, 32\); "
            r"it must be \(2, 1, groups\) or \(2, 32, groups\), groups dividing 32",
        ),
        (W, lambda self, w: (w.sign(), w[:, :, :5]), r"returned a scale of shape \(2, 32, 5\)"),
        (W, lambda self, w: (w.sign(), w[:, :, :0]), r"returned a scale of shape \(2, 32, 0\)"),
        (W, lambda self, w: (w.sign(), w.abs().mean()), r"returned a scale of shape \(\)"),
        (W, lambda self, w: (w.sign(), w[:1, :1, :1]), r"returned a scale of shape \(1, 1, 1\)"),
        (W, lambda self, w: (w.sign_(), w[:, :1, :1].abs()), "changed its argument in place"),
        (W, lambda self, w: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (A, lambda self, x: (x * 1000, x[:, :1]), "returned codes that are not whole numbers from -128 to 127"),
        (A, lambda self, x: (x.sign() * 128, x[:, :1]), "returned codes that are not whole numbers .*, such as 128"),
        (
            A,
            lambda self, x: (x.sign(), x[:1, :1]),
            r"returned a scale .*; it must be \(32, groups\), groups dividing 32",
        ),
    ],
)
def test_a_broken_quantizer_is_named_with_file_and_line(
    hook: str, function: Any, problem: str, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    config = tiny_config(model__scale_group="projection")
    pack = Pack([config], [made(**{hook: function})], tiny_tokens, CPU)
    with pytest.raises(PluginError, match=rf"^made-up: {hook} {problem}.* \({HERE}:\d+\)$") as caught:
        pack.step(1)
    assert "\n" not in str(caught.value)


def test_values_are_checked_once_for_each_shape_and_at_every_evaluation(
    tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    class Later(Intervention):
        codes = 1.0

        def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
            return weight_LOI.sign() * self.codes, weight_LOI[:, :1, :1].abs()

    later = Later(Later.Settings())
    pack = trained(tiny_config(), tiny_tokens, Composition([later]), steps=1)
    later.codes = 2.0
    pack.step(2)
    with pytest.raises(PluginError, match="Later: quantize_weights returned codes other than"):
        pack.model.ternary_codes()


def test_a_run_that_diverged_is_not_blamed_on_the_quantizer(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    pack = Pack([tiny_config()] * 2, [of(Mean, FourBits), of(Mean, FourBits)], tiny_tokens, CPU)
    pack.model.packed["o"][0] = torch.nan
    pack.model.packed["qkv"][0] = torch.inf
    pack.model.packed["down"][0] = 3e38
    pack.step(1)
    pack.model.ternary_codes()
    assert [replica.diverged_at for replica in pack.replicas] == [1, None]


def test_what_a_quantizer_changes_in_the_process_is_put_back(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    class Rude(Intervention):
        def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
            torch.manual_seed(0)
            torch.set_default_dtype(torch.float64)
            return mean_ternary(weight_LOI)

    before = torch.get_rng_state()
    trained(tiny_config(), tiny_tokens, of(Rude), steps=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    assert any("default dtype" in each for each in intrusions_of("Rude"))
