"""The interface for plug-in authors: what an intervention can change in a run, and when each hook is called.

An intervention is a subclass of `Intervention` with a `Settings` model and any of seven hooks. A hook that it does not
override changes nothing. Hooks of one run are called

1. before the model is built: `configure(config)` returns a changed config;
2. for every step, counted from 1 to `steps`: `quantization`, `learning_rate` and `weight_decay` return the value of the
   step, given the value so far. They must be pure functions of arguments and settings: all values are computed before
   the first step;
3. after the forward pass: `training_loss` returns the objective instead of the mean cross-entropy, and
   `additional_loss` a term that is added to it;
4. after the backward pass, once the gradient norm is measured, and before clipping and the optimizer:
   `transform_gradients` changes the gradients in place.

Several interventions, `-i first+second`, apply in the order given: the second receives what the first returned. Only
one of them may override `training_loss`, and only one `transform_gradients`; two raise a ConfigError. Any number may
override `additional_loss`: their terms are added to the training loss or to the cross-entropy.

Measurements are the same in every arm: the CSV column `Loss` is the mean cross-entropy, `GradNorm` is measured before
`transform_gradients`, and the probe is the same. The value of `training_loss` with all terms is the column `Objective`.

Several runs may train together as one batched model (a pack). Each run has its own instance of the intervention, so
state belongs on `self`, never on the class or in the module, and `transform_gradients` receives the parameters of that
run only. State that changes during training must be returned by `state_dict`; checkpoints store it, and
`load_state_dict` restores it on resume.

The process is shared with other runs. What an import or a hook changes in it is put back and named on stderr, in
run.json and by `bitnetctl interventions check`: torch's default dtype and device, current GPU, threads, flags,
precisions, denormals, autocast, grad mode and anomaly detection, the global generators, numpy's error state, warnings
filters, signal handlers and timer, environment, working directory, umask, search path, recursion limit, garbage
collection, the root logger, `sys.stdout` and `sys.stderr`. What is printed to stdout goes to stderr and is named in the
same way; nothing ends the process. Hooks of 3 and 4 may draw from the global generators of torch, numpy and Python:
before each call they are seeded from the run's seed and the step, so that a run draws the same numbers alone, in any
pack and after a resume; afterwards they continue where they were.

A schedule value is a finite number, not negative but for `quantization`: of Python, of numpy, or in a tensor without
dimensions. Anything else, an error in a hook, or a loss that is no scalar with a gradient ends the runs of this
intervention with a message that names hook, file and line; other runs continue.

On a GPU, steps are captured in CUDA graphs. `transform_gradients`, and a `training_loss` or `additional_loss` that is
not `capturable`, work there too, but without graphs and therefore more slowly.

Runs of one arm share name and settings, so a default that changes in a new version of a plug-in makes new runs: every
setting, at its default or not, is part of the config hash of a run.

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
project with a test, and `bitnetctl interventions check` runs the tests of `bitnetctl.testing.check_contract` on it,
which also find a method with almost the name of a hook.
A file needs no installation: `bitnetctl train -i halved_rate.py:factor=0.1`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from bitnetctl.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor


API_VERSION = 1
"""Version of this interface; it increases when a hook changes its meaning or signature.

A new hook that changes nothing unless it is overridden leaves it as it is.
"""


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
    """Whether `training_loss` and `additional_loss` may be captured in a CUDA graph and replayed: they must depend only
    on their arguments and on constants, draw nothing, and never read a tensor's value on the host (`.item()`,
    `if loss > 1`)."""

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

    def additional_loss(self, logits_TV: "Tensor", targets_T: "Tensor") -> "Tensor":
        """Return a scalar in nats that is added to the objective, differentiable with respect to the logits.

        Arguments are those of `training_loss`.
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
