"""The full-precision twin."""

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention


class FullPrecision(Intervention):
    """Train the same model without ternary weights and int8 activations."""

    summary = "the same run at full precision: the twin"
    source = "control: the cost of quantization itself"

    def configure(self, config: RunConfig) -> RunConfig:
        """Turn quantization off."""
        return config.model_copy(update={"model": config.model.model_copy(update={"quantization": 0.0})})
