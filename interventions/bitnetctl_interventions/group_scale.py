"""Ternary weights with a scale for each group of inputs."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Intervention, InterventionSettings

if TYPE_CHECKING:
    from torch import Tensor

# lower bound of a scale, as of the built-in quantizer
_FLOOR = 1e-5
# largest value of fp16
_HALF_MAX = 65504.0


class GroupScale(Intervention):
    """Scale every `size` weights of a row by the mean of their |w|.

    A group of 256 is a block of TQ2_0 in llama.cpp, which holds the scale in fp16: with `half` the run is trained with
    that very scale, and such a file holds the model exactly. Like TQ2_0, which has no shorter blocks, it takes only
    matrices whose rows are made of whole groups.
    """

    summary = "ternary weights with a scale for each group of inputs of a row"
    capturable = True
    source = (
        "block_tq2_0 of llama.cpp, ggml/src/ggml-common.h; Ma et al. 2024, arXiv 2402.17764, for the scale of a group"
    )

    class Settings(InterventionSettings):
        """How many weights share a scale, and how exact it is."""

        size: Annotated[int, Field(gt=0, description="inputs of a row that share a scale")] = 64
        half: Annotated[bool, Field(description="round the scale to fp16, as blocks of TQ2_0 hold it")] = False

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Return the config as it is; raises ConfigError for rows that are not made of whole groups."""
        size = self.settings.size
        for field, inputs in (
            ("model.hidden_size", config.model.hidden_size),
            ("model.intermediate_ratio x model.hidden_size", config.model.intermediate_size),
        ):
            if inputs % size:
                raise ConfigError(
                    f"group-scale: {field} is {inputs}, no multiple of size={size}; take one of its divisors"
                )
        return config

    def quantize_weights(self, weight_LOI: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return clamp(round(w / s), ±1) and s = max(mean |w|, 1e-5) of each group [L, O, I / size].

        With `half`, s is rounded to fp16 before it divides.
        """
        groups_LOGS = weight_LOI.unflatten(-1, (-1, self.settings.size))
        scale_LOG1 = groups_LOGS.abs().mean(-1, keepdim=True).clamp(min=_FLOOR)
        if self.settings.half:
            scale_LOG1 = scale_LOG1.clamp(max=_HALF_MAX).half().to(weight_LOI.dtype)
        return (groups_LOGS / scale_LOG1).round().clamp(-1, 1).flatten(-2), scale_LOG1.squeeze(-1)
