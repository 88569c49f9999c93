"""The config of a run: its classes, and how it is read."""

from bitnetctl.config.arms import (
    arm_beside as arm_beside,
    canonical_arm as canonical_arm,
    kebab_case as kebab_case,
    parse_arm as parse_arm,
    split_arm as split_arm,
)
from bitnetctl.config.load import (
    apply_override as apply_override,
    beside as beside,
    build_config as build_config,
    builtin_names as builtin_names,
    did_you_mean as did_you_mean,
    field_paths as field_paths,
    hint_at as hint_at,
    load_recipe as load_recipe,
    parse_config as parse_config,
    parse_value as parse_value,
    read_toml as read_toml,
    recipe_id as recipe_id,
    recipe_label as recipe_label,
    refuse_contradiction as refuse_contradiction,
    validated as validated,
)
from bitnetctl.config.schema import (
    BASELINE as BASELINE,
    DataConfig as DataConfig,
    Fraction as Fraction,
    Frozen as Frozen,
    InterventionSpec as InterventionSpec,
    LearningRateFactors as LearningRateFactors,
    ModelConfig as ModelConfig,
    OptimizerConfig as OptimizerConfig,
    ParameterGroup as ParameterGroup,
    Positive as Positive,
    PositiveInt as PositiveInt,
    ProbeConfig as ProbeConfig,
    RunConfig as RunConfig,
    ScheduleConfig as ScheduleConfig,
    canonical_hash as canonical_hash,
    join_arm as join_arm,
)
