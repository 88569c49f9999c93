"""The interface for plug-in authors: what an intervention can change in a run, and when each hook is called.

An intervention is a subclass of `Intervention` with a `Settings` model and any of the hooks below. A hook that it does
not override changes nothing. Hooks of one run are called

1. before the model is built: `configure(config)` returns a changed config;
2. for every step, counted from 1 to `steps`: `quantization`, `learning_rate` and `weight_decay` return the value of the
   step, given the value so far. They must be pure functions of arguments and settings: all values are computed before
   the first step;
3. in the forward pass: `quantize_weights` returns codes and scale of the weights instead of round(w / mean |w|), once
   for each projection, and `quantize_activations` those of the input of each matrix instead of int8 by the largest
   value of a token. They are pure functions, called on the instance of one run for all runs and layers at once: runs
   whose quantizers differ train in packs of their own. The engine multiplies by codes · scale, passes the gradient
   straight through, and interpolates with the strength λ;
4. after the forward pass: `training_loss` returns the objective instead of the mean cross-entropy, and
   `additional_loss` a term that is added to it;
5. after the backward pass, once the gradient norm is measured, and before clipping and the optimizer:
   `transform_gradients` changes the gradients in place;
6. once, before the first step of a run or of its resumed part: `make_optimizer` returns the optimizer that is used
   instead of the config's. Its `step` is called once a step, after clipping.

Several interventions, `-i first+second`, apply in the order given: the second receives what the first returned. Only
one of them may override each of `training_loss`, `transform_gradients`, `make_optimizer`, `quantize_weights` and
`quantize_activations`; two raise a ConfigError. Any number may override `additional_loss`: their terms are added to the
training loss or to the cross-entropy.

With `data.gradient_accumulation` k, a step has k micro-batches: hooks of 3 and 4 are called for each of them, hooks of
5 and the optimizer once, with gradients that are averaged over all of them.

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
same way; nothing ends the process. Hooks of 4 to 6, and the step of an optimizer, may draw from the global generators
of torch, numpy and Python: before each call they are seeded from the run's seed and the step, so that a run draws the
same numbers alone, in any pack and after a resume; afterwards they continue where they were.

A schedule value is a finite number, not negative but for `quantization`: of Python, of numpy, or in a tensor without
dimensions. Anything else, an error in a hook, a loss that is no scalar with a gradient, or what is not codes and a
scale ends the runs of this intervention with a message that names hook, file and line; other runs continue.

On a GPU, steps are captured in CUDA graphs. `transform_gradients`, a loss or quantizer that is not `capturable`, and
an optimizer whose groups are not all `capturable`, work there too, but without graphs and therefore more slowly. Own
kernels, compiled functions and int8 matmuls compute the built-in quantizers only: with another one for weights the rest
of a step keeps its kernels, with one for activations layers have none, and `--precision int8` is refused.

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
among them that an optimizer follows the learning rate. A class with a public method of almost the name of a hook, such
as `quantise_weights`, is refused, since nothing would call it: start the name of a helper with an underscore.
A file needs no installation: `bitnetctl train -i halved_rate.py:factor=0.1`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from bitnetctl.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


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
    """Whether losses and quantizers may be captured in a CUDA graph and replayed: they must depend only on their
    arguments and on constants, draw nothing, and never read a tensor's value on the host (`.item()`, `if loss > 1`)."""

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

    def quantize_weights(self, weight_LOI: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return codes -1, 0 and 1, of the shape of the weights, and a scale; the quantized weights are codes · scale.

        `weight_LOI` are L matrices of O outputs × I inputs, of the layers of all runs of a pack: a projection, or where
        `model.scale_group` is "fused" the matrix of several. Each must be quantized by itself. The scale is finite:
        [L, 1, 1] for a matrix, [L, O, 1] for each row, [L, O, G] for each of G equal groups of inputs of a row.
        A pure function, called under `no_grad`; embeddings and head are not quantized.
        """
        raise NotImplementedError("called only where it is overridden")

    def quantize_activations(self, x_NI: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return codes, whole numbers from -128 to 127 of the shape of the activations, and a scale, as for weights.

        `x_NI` are the normalized inputs of a matrix, of N tokens of all runs of a pack; each must be quantized by
        itself. The scale is finite: [N, 1] for a token, [N, G] for each of G equal groups of its features.
        A pure function, called under `no_grad`.
        """
        raise NotImplementedError("called only where it is overridden")

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

    def make_optimizer(
        self, parameters: "Mapping[str, Tensor]", config: RunConfig
    ) -> "Optimizer | Sequence[Optimizer]":
        """Return the `torch.optim.Optimizer` of the run, or several; each parameter is in one group of one of them.

        `parameters` are the leaf tensors of the run, with `.grad`, by their names in `transformers`: 2-D matrices,
        embeddings (`model.embed_tokens.weight`) and head (`lm_head.weight`, unless it is tied to them), and 1-D norms.
        `config` is the run's, after `configure`. For example, momentum for the matrices and Adam for the rest:

            def make_optimizer(self, parameters, config):
                tables = ("model.embed_tokens.weight", "lm_head.weight")
                matrices = [one for name, one in parameters.items() if one.dim() == 2 and name not in tables]
                rest = [one for name, one in parameters.items() if one.dim() == 1 or name in tables]
                sgd = torch.optim.SGD([{"params": matrices, "lr_factor": 20.0}], momentum=0.95)
                return sgd, torch.optim.AdamW(rest, betas=config.optimizer.betas, capturable=True)

        Called once, before the first step of a run or of its resumed part, when the weights are in place. Before each
        step every group gets `lr` = scheduled learning rate x its `lr_factor` and `weight_decay` = scheduled weight
        decay x its `weight_decay_factor`, both 1 unless the group states them; whatever else it was made with stays.
        Its step must read them from the group at each call.
        An `lr_factor` of 0 freezes a group. The config holds, too: groups are split where `optimizer.exempt` or
        `optimizer.learning_rate_factors` treat their parameters differently, and `optimizer.max_norm` clips the
        gradients before the step. Whether decay is coupled is up to the optimizer; `optimizer.name` is not used.

        `step()` is called without a closure, once for each step, with grad mode off; it may change gradients, which
        are written anew for every step. A run whose loss or gradient is not finite keeps weights and state.

        Checkpoints hold the optimizer's `state`, tensors of any shape and plain numbers by parameter, and those plain
        numbers and tensors in its groups that changed; a resumed run is given both before its next step. Anything else
        that changes must not be kept in the optimizer, and raises a PluginError at the first checkpoint where it can
        be seen. Tensors and numbers in the state must be finite, else the run counts as diverged.
        `optimizer.reset_moments_every_steps` puts the state back to what it was when the optimizer was made.

        The step is captured in a CUDA graph where every group is `capturable`, as in `torch.optim`: `lr` is then a
        tensor on the GPU, tensors of the state are changed in place, and the host reads none of them and draws nothing.
        On the CPU `capturable` is set to False. Otherwise the pack of the run is not captured; the log and run.json
        (`not_captured`) say so.

        A parameter left out, doubled or foreign, a key that is almost that of a factor, something that is no optimizer,
        and one whose `step` needs a closure end the runs of this intervention with a PluginError; so does an error in
        `step`.
        """
        raise NotImplementedError("called only where it is overridden")

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, as finite JSON values; none by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
