"""No weight decay at all."""

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention


class NoDecay(Intervention):
    """Set the weight decay to zero from the start."""

    summary = "weight decay 0 from the first step"
    source = "control of the two-stage schedule: Training Tips, Code and FAQ, section 2"

    def configure(self, config: RunConfig) -> RunConfig:
        """Zero both stages."""
        schedule = config.schedule.model_copy(update={"stage1_weight_decay": 0.0, "stage2_weight_decay": 0.0})
        return config.model_copy(update={"schedule": schedule})
