"""A batch that grows, by accumulating gradients."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from bitnetctl_interventions.optimizers import PausingAdam


class BatchGrowth(Intervention):
    """Average the gradients of several successive steps into one update, from a fraction of the run on.

    Tokens and schedules keep their steps; an update uses rate and decay of its own step, the last of those that it
    averages. Steps left over at the end update nothing, and a reset of the moments forgets the gradients so far.
    `data.gradient_accumulation` is for a batch of one size all along.
    """

    summary = "from half of the run on, one update for the mean gradient of several steps"
    source = "Smith et al. 2018, Don't Decay the Learning Rate, Increase the Batch Size, arXiv 1711.00489, section 3"

    class Settings(InterventionSettings):
        """When the batch grows, by how much, and what the learning rate does."""

        start: Annotated[float, Field(ge=0, le=1, description="fraction of the steps before it grows")] = 0.5
        factor: Annotated[int, Field(gt=0, description="steps that are averaged into one update")] = 4
        learning_rate: Annotated[
            Literal["keep", "sqrt", "linear"],
            Field(
                description="of the grown batch. keep: as scheduled, in place of lowering it; sqrt, linear: times "
                "sqrt(factor) (arXiv 2205.10287) or factor (arXiv 1706.02677)"
            ),
        ] = "keep"

    settings: Settings

    def __init__(self, settings: InterventionSettings) -> None:
        super().__init__(settings)
        self._steps_seen = self._last_small_step = 0
        self._optimizer: PausingAdam | None = None

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        """Return `base`, scaled from the first accumulated step on."""
        if step <= round(self.settings.start * steps):
            return base
        factor = self.settings.factor
        return base * {"keep": 1.0, "sqrt": math.sqrt(factor), "linear": float(factor)}[self.settings.learning_rate]

    def make_optimizer(self, parameters: "Mapping[str, Tensor]", config: RunConfig) -> "Optimizer":
        """Return the Adam or AdamW of the config, which also holds the sums of the gradients."""
        from bitnetctl_interventions.optimizers import PausingAdam

        adam = config.optimizer
        self._last_small_step = round(self.settings.start * config.steps)
        self._optimizer = PausingAdam(
            parameters.values(), betas=adam.betas, eps=adam.eps, decoupled_weight_decay=adam.name == "adamw"
        )
        return self._optimizer

    def transform_gradients(self, parameters: "Mapping[str, Tensor]") -> None:
        """Add the gradients up, and replace them by their mean where an update is due; clipping comes after it."""
        assert self._optimizer is not None
        self._steps_seen += 1
        grown_steps = self._steps_seen - self._last_small_step
        if grown_steps <= 0:
            return
        self._optimizer.add_gradients()
        self._optimizer.is_paused = grown_steps % self.settings.factor != 0
        if not self._optimizer.is_paused:
            self._optimizer.take_means()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps; sums of gradients are in the state of the optimizer."""
        return {"steps": self._steps_seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue to count."""
        self._steps_seen = state["steps"]
