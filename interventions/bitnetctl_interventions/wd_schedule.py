"""Weight decay by stage."""

from typing import Annotated, Any, Literal

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings

_PRESETS: dict[str, dict[str, float | None]] = {
    "stage1-only": {"boundary_fraction": 1.0, "weight_decay_boundary_fraction": None},
    "before-fix": {"stage2_weight_decay": 0.05},
    "fix": {"stage2_weight_decay": 0.0},
}


class WeightDecaySchedule(Intervention):
    """Set the weight decay of each stage and where it changes."""

    summary = "weight decay of each stage and where it changes; presets of the founding document"
    source = "founding document, phases 1 and 5; The Era of 1-bit LLMs: Training Tips, Code and FAQ, table 2"

    class Settings(InterventionSettings):
        """A preset, and values that override it; an unset one keeps the value of the recipe."""

        preset: Annotated[
            Literal["stage1-only", "before-fix", "fix"] | None,
            Field(description="stage1-only: no stage 2 at all; before-fix: 0.05 in stage 2; fix: 0 in stage 2"),
        ] = None
        stage1: Annotated[float | None, Field(ge=0, description="weight decay of stage 1")] = None
        stage2: Annotated[float | None, Field(ge=0, description="weight decay of stage 2")] = None
        boundary: Annotated[
            float | None,
            Field(
                ge=0,
                le=1,
                description="fraction of the steps before the decay changes; the learning rate keeps its boundary",
            ),
        ] = None

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Apply the preset, then the values that are set."""
        settings = self.settings
        update: dict[str, Any] = dict(_PRESETS[settings.preset]) if settings.preset else {}
        single = {
            "stage1_weight_decay": settings.stage1,
            "stage2_weight_decay": settings.stage2,
            "weight_decay_boundary_fraction": settings.boundary,
        }
        update |= {field: value for field, value in single.items() if value is not None}
        return config.model_copy(update={"schedule": config.schedule.model_copy(update=update)})
