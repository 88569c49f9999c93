"""The z-loss: keep the normalizer of the softmax near one."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bitnetctl.intervention import Intervention, InterventionSettings

if TYPE_CHECKING:
    from torch import Tensor


class ZLoss(Intervention):
    """Add the mean squared log of the softmax's normalizer to the objective, which keeps logits from drifting."""

    summary = "add coefficient · mean(logsumexp(logits)²) to the objective"
    capturable = True
    source = "Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, section 5; Zoph et al. 2022 (ST-MoE), arXiv 2202.08906"

    class Settings(InterventionSettings):
        """The weight of the term."""

        coefficient: Annotated[float, Field(ge=0, description="weight of the term in the objective")] = 1e-4

    settings: Settings

    def additional_loss(self, logits_TV: "Tensor", targets_T: "Tensor") -> "Tensor":
        """Return coefficient · mean over T of log² Z, with Z = Σ exp(logit) over the vocabulary."""
        return self.settings.coefficient * logits_TV.logsumexp(-1).square().mean()
