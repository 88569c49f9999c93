"""Label smoothing."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bitnetctl.intervention import Intervention, InterventionSettings

if TYPE_CHECKING:
    from torch import Tensor


class LabelSmoothing(Intervention):
    """Minimise the cross-entropy against targets mixed with the uniform distribution."""

    summary = "cross-entropy against targets mixed with the uniform distribution"
    capturable = True
    source = "Szegedy et al. 2016, arXiv 1512.00567, section 7; founding document, phase 4"

    class Settings(InterventionSettings):
        """Weight of the uniform distribution."""

        epsilon: Annotated[float, Field(ge=0, lt=1, description="weight of the uniform distribution")] = 0.1

    settings: Settings

    def training_loss(self, logits_TV: "Tensor", targets_T: "Tensor") -> "Tensor":
        """Return (1 − ε) · NLL of the target + ε · mean NLL over the vocabulary, mean over T."""
        import torch.nn.functional as F

        return F.cross_entropy(logits_TV, targets_T, label_smoothing=self.settings.epsilon)
