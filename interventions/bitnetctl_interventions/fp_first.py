"""Full precision first, then ternary."""

from typing import Annotated

from pydantic import Field

from bitnetctl.intervention import Intervention, InterventionSettings


class FullPrecisionFirst(Intervention):
    """Train at full precision for a fraction of the run, then ramp to ternary; the optimizer state is kept."""

    summary = "full precision for a fraction of the run, then a ramp to ternary"
    source = "Nielsen et al. 2025, Continual Quantization-Aware Pre-Training, arXiv 2502.11895"

    class Settings(InterventionSettings):
        """Start and length of the ramp, as fractions of the steps."""

        fraction: Annotated[float, Field(ge=0, le=1, description="fraction of the steps at full precision")] = 0.2
        ramp: Annotated[float, Field(ge=0, le=1, description="fraction of the steps from λ = 0 to full λ")] = 0.1

    settings: Settings

    def quantization(self, base: float, step: int, steps: int) -> float:
        """Return 0, then a linear ramp to `base`, then `base`."""
        begin, length = self.settings.fraction * steps, self.settings.ramp * steps
        if step <= begin:
            return 0.0
        return base if step >= begin + length else base * (step - begin) / length
