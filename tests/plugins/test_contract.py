"""`check_contract` accepts a sound intervention and finds every kind of broken one."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError, PluginError
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.testing import check_contract

pytestmark = pytest.mark.usefixtures("fresh_registry")


class Sound(Intervention):
    """Keeps the contract."""

    summary = "sound"

    class Settings(InterventionSettings):
        factor: float = 0.5

    settings: Settings

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        return base * self.settings.factor


class LooseSettings(Sound):
    class Settings(InterventionSettings, extra="ignore"):
        factor: float = 0.5


class Misspelt(Sound):
    def learning_rates(self, base: float, step: int, steps: int) -> float:
        return base


class Impure(Sound):
    calls = 0

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        self.calls += 1
        return base / self.calls


class Negative(Sound):
    def weight_decay(self, base: float, step: int, steps: int) -> float:
        return base - 1.0 * (step > 30)


class NotFinite(Sound):
    def learning_rate(self, base: float, step: int, steps: int) -> float:
        return float("nan") if step == steps else base


class Infinite(Sound):
    def weight_decay(self, base: float, step: int, steps: int) -> float:
        return float("inf") if step == steps else base


class NoConfig(Sound):
    def configure(self, config: RunConfig) -> RunConfig:
        return config.model_dump()  # type: ignore[return-value]


class BadConfig(Sound):
    def configure(self, config: RunConfig) -> RunConfig:
        return config.model_copy(update={"steps": -1})


class Unsteady(Sound):
    calls = 0

    def configure(self, config: RunConfig) -> RunConfig:
        type(self).calls += 1
        return config.model_copy(update={"seed": self.calls})


class Diverging(Sound):
    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        return logits_TV.sum() * torch.nan


class Random(Sound):
    generator = torch.Generator()

    def transform_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.copy_(torch.randn(parameter.shape, generator=self.generator))


class Overreaching(Sound):
    """Writes to the parameters of other runs."""

    def transform_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        weight = parameters["model.norm.weight"]
        whole = torch.tensor([], dtype=weight.dtype).set_(weight.untyped_storage())
        whole.mul_(1.5)


class Momentum(Sound):
    """Brings an optimizer of its own."""

    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD

    def make_optimizer(self, parameters: Mapping[str, Tensor], config: RunConfig) -> torch.optim.Optimizer:
        return self.optimizer(parameters.values())  # type: ignore[call-arg]


class Forgetful(Momentum):
    """The size of its steps depends on an attribute, which no checkpoint holds."""

    class Fading(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.steps += 1
            for group in self.param_groups:
                group["lr"] /= self.steps
            super().step()

    optimizer = Fading


class Still(Momentum):
    class Frozen(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            pass

    optimizer = Frozen


class OwnRate(Momentum):
    """Its second group has the rate that it was made with."""

    class Constant(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                if group["params"][0].dim() == 1:
                    group["lr"] = 0.1
            super().step()

    def make_optimizer(self, parameters: Mapping[str, Tensor], config: RunConfig) -> torch.optim.Optimizer:
        norms = [one for one in parameters.values() if one.dim() == 1]
        return self.Constant([{"params": [one for one in parameters.values() if one.dim() > 1]}, {"params": norms}])


class MisspeltFactor(Momentum):
    def make_optimizer(self, parameters: Mapping[str, Tensor], config: RunConfig) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": list(parameters.values()), "lr_factr": 2.0}])


class Listing(Momentum):
    class Listed(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            self.state[self.param_groups[0]["params"][0]]["history"] = []

    optimizer = Listed


class Closing(Momentum):
    optimizer = torch.optim.LBFGS


class Trespassing(Momentum):
    """Its optimizer writes to the parameters of other runs."""

    class Wide(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            weight = self.param_groups[0]["params"][-1]
            whole = torch.tensor([], dtype=weight.dtype).set_(weight.untyped_storage())
            whole.mul_(1.5)

    optimizer = Wide


class Unsaveable(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {"sizes": (1, 2)}


class Unrestorable(Sound):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise KeyError("steps")


Quantized = tuple[Tensor, Tensor]


class Median(Sound):
    """A sound quantizer of weights and activations."""

    def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
        scale = weight_LOI.abs().flatten(1).median(1).values.clamp(min=1e-5).view(-1, 1, 1)
        return (weight_LOI / scale).round().clamp(-1, 1), scale

    def quantize_activations(self, x_NI: Tensor) -> Quantized:
        scale = x_NI.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 7
        return (x_NI / scale).round(), scale


class Drawing(Median):
    def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
        noise = torch.rand(weight_LOI.shape, generator=self.generator) - 0.5
        return (weight_LOI * 10 + noise).round().clamp(-1, 1), weight_LOI[:, :1, :1].abs() + 0.1

    generator = torch.Generator()


class DrawingGlobally(Median):
    def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
        noise = torch.rand(weight_LOI.shape) - 0.5
        return (weight_LOI * 10 + noise).round().clamp(-1, 1), weight_LOI[:, :1, :1].abs() + 0.1


class Mixing(Median):
    def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
        scale = weight_LOI.abs().mean().expand(len(weight_LOI), 1, 1)
        return (weight_LOI / scale).round().clamp(-1, 1), scale


class MixingTokens(Median):
    def quantize_activations(self, x_NI: Tensor) -> Quantized:
        scale = x_NI.abs().max().expand(len(x_NI), 1) / 7
        return (x_NI / scale).round(), scale


class Unclamped(Median):
    def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
        _, scale = super().quantize_weights(weight_LOI)
        return weight_LOI / scale, scale


def test_a_sound_intervention_passes() -> None:
    check_contract(Sound)
    check_contract(Sound, {"factor": 2.0})
    check_contract(Median)


def test_an_optimizer_of_torch_passes() -> None:
    check_contract(Momentum)


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        (LooseSettings, "takes unknown keys"),
        (Misspelt, "learning_rates is no hook and is never called; did you mean learning_rate?"),
        (Impure, "learning_rate is not a pure function of the step"),
        (Negative, "weight_decay returned .* must be finite and not negative"),
        (NotFinite, "learning_rate returned nan at step 40; it must be finite and not negative"),
        (Infinite, "weight_decay returned .* must be finite and not negative"),
        (NoConfig, "configure returned dict"),
        (BadConfig, "steps"),
        (Unsteady, "configure returns different configs"),
        (Diverging, "give values that are not finite"),
        (Random, "gives different results"),
        (Overreaching, "it changed .* of the baseline run in the same pack"),
        (Forgetful, "its optimizer keeps what changes outside of state and groups"),
        (Still, "two steps of its optimizer change no weight"),
        (OwnRate, "moves .*norm.* as far at a sixteenth of the learning rate: its step must use the lr of each group"),
        (MisspeltFactor, "make_optimizer: lr_factr of a group is never read; did you mean lr_factor?"),
        (Listing, "checkpoints cannot hold .*/history of its optimizer, a list"),
        (Closing, "requires a closure"),
        (Trespassing, "it changed .* of the baseline run in the same pack"),
        (Unsaveable, "state_dict returned .*, which is not made of finite JSON values"),
        (Unrestorable, "steps"),
        (Drawing, "quantize_weights is not a pure function: it draws numbers or keeps state"),
        (DrawingGlobally, "not a pure function: it drew from or seeded torch's global generator in quantize_weights"),
        (Mixing, "quantize_weights does not take each index of the first dimension by itself"),
        (MixingTokens, "quantize_activations does not take each index of the first dimension by itself"),
        (Unclamped, "quantize_weights returned codes other than -1, 0 and 1"),
        (Intervention, "is not a subclass"),
    ],
)
def test_a_broken_contract_is_found(kind: type[Intervention], finding: str) -> None:
    with pytest.raises((AssertionError, ConfigError, ValueError, KeyError), match=finding):
        check_contract(kind)


def test_a_name_that_only_resembles_a_hook_is_no_finding() -> None:
    class Helped(Sound):
        def learning_rate_at(self, fraction: float) -> float:
            return fraction

        def _learning_rates(self) -> float:
            return 1.0

    class Plural(Median):
        """The hook is there; what is almost called like it is a helper."""

        def quantize_weight(self, weight_OI: Tensor) -> Quantized:
            codes_1OI, scale_1OI = self.quantize_weights(weight_OI[None])
            return codes_1OI[0], scale_1OI[0]

        def quantize_weights(self, weight_LOI: Tensor) -> Quantized:
            return super().quantize_weights(weight_LOI)

    check_contract(Plural)
    check_contract(Helped)


def test_settings_are_checked_too() -> None:
    with pytest.raises(ValueError, match="factor"):
        check_contract(Sound, {"factor": "much"})
    with pytest.raises(PluginError, match="not negative"):
        check_contract(Sound, {"factor": -1.0})
