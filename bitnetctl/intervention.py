"""The interface for plug-in authors: what an intervention can change in a run, and when each hook is called.

An intervention is a subclass of `Intervention` with a `Settings` model and any of six hooks. A hook that it does not
override changes nothing. Hooks of one run are called

1. before the model is built: `configure(config)` returns a changed config;
2. for every step, counted from 1 to `steps`: `quantization`, `learning_rate` and `weight_decay` return the value of the
   step, given the value so far. They must be pure functions of arguments and settings: values are computed in advance;
3. after the forward pass: `training_loss` returns the objective instead of the mean cross-entropy;
4. after the backward pass, once the gradient norm is measured, and before clipping and the optimizer:
   `transform_gradients` changes the gradients in place.

Several interventions, `-i first+second`, apply in the order given: the second receives what the first returned. Only
one of them may override `training_loss`, and only one `transform_gradients`; two raise a ConfigError.

Measurements are the same in every arm: the CSV column `Loss` is the mean cross-entropy, `GradNorm` is measured before
`transform_gradients`, and the probe is the same. The value of `training_loss` is the column `Objective`.

Several runs may train together as one batched model (a pack). Each run has its own instance of the intervention, so
state belongs on `self`, and `transform_gradients` receives the parameters of that run only. State that changes during
training must be returned by `state_dict`; checkpoints store it, and `load_state_dict` restores it on resume.

On a GPU, steps are captured in CUDA graphs. `transform_gradients`, and a `training_loss` that is not `capturable`, work
there too, but without graphs and therefore more slowly.

A worked example, complete as a plug-in file:

    from typing import Annotated

    from pydantic import Field

    from bitnetctl.intervention import Intervention, InterventionSettings


    class HalvedRate(Intervention):
        '''Lower the learning rate after a fraction of the run.'''

        summary = "learning rate times a factor after a fraction of the run"
        source = "an example"

        class Settings(InterventionSettings):
            factor: Annotated[float, Field(gt=0)] = 0.5
            after: Annotated[float, Field(ge=0, le=1)] = 0.5

        settings: Settings

        def learning_rate(self, base: float, step: int, steps: int) -> float:
            return base * self.settings.factor if step > self.settings.after * steps else base

and in the pyproject.toml of its package

    [project.entry-points."bitnetctl.interventions"]
    halved-rate = "my_package.halved_rate:HalvedRate"

after which `bitnetctl train -i halved-rate:factor=0.1` uses it. `bitnetctl interventions new halved-rate` writes such a
project with a test, and `bitnetctl interventions check` runs the tests of `bitnetctl.testing.check_contract` on it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from bitnetctl.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor


API_VERSION = 1
"""Version of this interface; it increases when a hook changes its meaning or signature."""


class InterventionSettings(BaseModel):
    """Base of the settings of an intervention: frozen, without unknown keys; every field needs a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Intervention:
    """Base of every intervention. Its hooks change nothing."""

    api_version: ClassVar[int] = API_VERSION
    """Version of the interface that the class was written for."""
    summary: ClassVar[str] = ""
    """One line for `bitnetctl interventions list`; required."""
    source: ClassVar[str] = ""
    """Where the idea comes from: a paper and section, or a document."""
    capturable: ClassVar[bool] = False
    """Whether `training_loss` may be captured in a CUDA graph and replayed: it must depend only on its arguments and on
    constants, and never read a tensor's value on the host (`.item()`, `if loss > 1`)."""

    class Settings(InterventionSettings):
        """No settings."""

    settings: InterventionSettings

    def __init__(self, settings: InterventionSettings) -> None:
        self.settings = settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Return the config of the run, changed, such as `config.model_copy(update={"steps": 100})`.

        Must be a pure function: it may be called more than once.
        """
        return config

    def quantization(self, base: float, step: int, steps: int) -> float:
        """Return the quantization strength λ of `step`, from 0 (full precision) to 1 (ternary); clamped to [0, 1]."""
        return base

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        """Return the learning rate of `step`; `base` is the schedule's, or what the intervention before returned."""
        return base

    def weight_decay(self, base: float, step: int, steps: int) -> float:
        """Return the weight decay of `step`, for all parameters that `optimizer.exempt` does not list."""
        return base

    def training_loss(self, logits_TV: "Tensor", targets_T: "Tensor") -> "Tensor":
        """Return the scalar objective of a batch in nats, differentiable with respect to the logits.

        `logits_TV` are the logits of all T = batch size x sequence length positions over V tokens, `targets_T` the
        ids of the next tokens.
        """
        raise NotImplementedError("called only where it is overridden")

    def transform_gradients(self, parameters: "Mapping[str, Tensor]") -> None:
        """Change the `.grad` of the run's parameters in place.

        Names are as in Hugging Face `transformers`, such as `model.embed_tokens.weight`. Called under `no_grad`.
        """
        raise NotImplementedError("called only where it is overridden")

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, as finite JSON values; none by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
