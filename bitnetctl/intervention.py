"""What a plug-in author reads: everything an intervention may change about a run, and when it is asked.

An intervention is a class with a `Settings` model and any of six hooks; a hook left alone changes nothing.

Per run, in this order:

1. `configure(config)`, once, before anything is built: static changes to the run's config.
2. Every step, before the forward pass, as pure functions of the step (1 … steps):
   `quantization`, `learning_rate`, `weight_decay`, each handed the value so far.
3. Every step, after the forward pass: `training_loss`, in place of the plain cross-entropy.
4. Every step, after the backward pass and the measurement of the gradient norm, before clipping and the optimizer:
   `transform_gradients`.

Interventions compose in the order they are given, `-i first+second`: each sees what the one before it returned.
`training_loss` and `transform_gradients` can be claimed by one intervention of a run only; two are a config error.

Measurement never depends on treatment: the CSV's `Loss` is the plain cross-entropy for every arm, the probe is the
same for all, and what `training_loss` returns is the column `Objective`.

Many runs train as one program, so a hook must keep its state, if it has any, on `self`: every run has an instance of
its own, and `transform_gradients` sees the parameters of its own run only. State is saved and restored with a
checkpoint through `state_dict` and `load_state_dict`.

A worked example, complete as a plug-in file:

    from typing import Annotated

    from pydantic import Field

    from bitnetctl.intervention import Intervention, InterventionSettings


    class HalvedRate(Intervention):
        '''Cut the learning rate after a share of the run.'''

        summary = "learning rate times a factor after a share of the run"
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

after which `bitnetctl train -i halved-rate:factor=0.1` runs it, and `bitnetctl interventions check` tests it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from bitnetctl.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor


API_VERSION = 1
"""Version of the hooks below; raised when a hook changes its meaning or signature."""


class InterventionSettings(BaseModel):
    """Base of an intervention's settings: frozen, no unknown keys, every field with a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Intervention:
    """Base of every intervention; the hooks below are the identity."""

    api_version: ClassVar[int] = API_VERSION
    summary: ClassVar[str] = ""
    """One line for `bitnetctl interventions list`."""
    source: ClassVar[str] = ""
    """Where the idea comes from: a paper and section, or a document."""
    capturable: ClassVar[bool] = False
    """Whether `training_loss` may be recorded once and replayed: it reads no figure and no state of Python."""

    class Settings(InterventionSettings):
        """No settings."""

    settings: InterventionSettings

    def __init__(self, settings: InterventionSettings) -> None:
        self.settings = settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Return the run's config, changed. Called once, before anything is built."""
        return config

    def quantization(self, base: float, step: int, steps: int) -> float:
        """Return the quantization strength of `step`: 0 is full precision, 1 is ternary."""
        return base

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        """Return the learning rate of `step`."""
        return base

    def weight_decay(self, base: float, step: int, steps: int) -> float:
        """Return the weight decay of `step` for the parameters that are not exempt."""
        return base

    def training_loss(self, logits_TV: "Tensor", targets_T: "Tensor") -> "Tensor":
        """Return the scalar objective of a batch, in nats: all its T positions over the vocabulary V."""
        raise NotImplementedError("a hook without claimant is never called")

    def transform_gradients(self, parameters: "Mapping[str, Tensor]") -> None:
        """Change the `.grad` of the run's parameters in place; names are those of `transformers`."""
        raise NotImplementedError("a hook without claimant is never called")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on, as JSON values; stateless by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
