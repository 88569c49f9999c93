"""The config of a run: a typed, frozen tree of everything that determines its results."""

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

BASELINE = "baseline"
"""The label of the arm without interventions."""

ParameterGroup = Literal["embeddings", "head", "norms"]

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]


def join_arm(interventions: Iterable[object]) -> str:
    """Return the label of an arm from its interventions or their names; the inverse of `split_arm`."""
    return "+".join(map(str, interventions)) or BASELINE


class Frozen(BaseModel):
    """Base of config classes: immutable; rejects unknown fields, NaN and infinity; validates defaults too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, tree: Any) -> Any:
        """Read the text "none" as None for optional fields: TOML has no null."""
        if not isinstance(tree, dict):
            return tree
        optional = {name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        return {key: None if key in optional and value == "none" else value for key, value in tree.items()}


class ModelConfig(Frozen):
    """The transformer. Its vocabulary size is that of the tokenizer, not a setting."""

    hidden_size: PositiveInt = 256
    num_layers: PositiveInt = 4
    num_attention_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt = 4
    intermediate_ratio: Positive = Field(2.0, description="width of the gated feed-forward layer / hidden_size")
    activation: Literal["relu2", "silu"] = "relu2"
    inner_norms: bool = Field(False, description="RMSNorm also before the fused qkv and gate-up matrices")
    tie_word_embeddings: bool = False
    scale_group: Literal["projection", "fused"] = Field(
        "projection", description="one ternary scale for each projection, or for fused qkv and gate-up"
    )
    quantization: Fraction = Field(1.0, description="0: full precision, 1: ternary weights and int8 activations")
    initialization: Literal["default", "normal"] = Field(
        "normal", description="torch defaults (Embedding N(0, 1), Linear U(±1/sqrt(in))) or N(0, init_std²)"
    )
    init_std: Positive = 0.02
    rms_norm_eps: Positive = 1e-5
    rope_theta: Positive = 10_000.0
    logit_soft_cap: Positive | None = Field(
        None, description="c of logits c·tanh(x / c), as in Gemma 2 (arXiv 2408.00118); none: not capped"
    )

    @property
    def intermediate_size(self) -> int:
        """Width of the gated feed-forward layer."""
        return round(self.intermediate_ratio * self.hidden_size)

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}"
            )
        if self.head_size % 2:
            raise ValueError(
                f"head size {self.head_size} (hidden_size {self.hidden_size} / num_attention_heads "
                f"{self.num_attention_heads}) is odd; rotary embeddings need an even one"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not divisible by "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.intermediate_size < 1:
            raise ValueError(f"intermediate_ratio {self.intermediate_ratio} leaves no feed-forward width")
        return self


class DataConfig(Frozen):
    """Text, tokenizer and batches."""

    source: str = Field("stdlib", min_length=1, description="stdlib | file:GLOB | hf:DATASET[/CONFIG]")
    held_out_source: str | None = Field(
        None, description="text of the probe; unset: a part of source that is not trained on"
    )
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    text_field: str = Field(
        "text", min_length=1, description="key or column with the text of JSON lines, parquet, hf:; nested: meta.text"
    )
    on_bad_document: Literal["error", "skip"] = Field(
        "error", description="files and rows that hold no readable text; skip: leave them out and count them"
    )
    tokenizer: str = Field(
        "bpe:50257", min_length=1, description="bpe:SIZE | gpt2-files:DIR | file:tokenizer.json | hf:NAME"
    )
    order: Literal["sequential", "shuffled"] = "sequential"
    batch_size: PositiveInt = Field(4, description="rows of a batch")
    sequence_length: PositiveInt = Field(32, description="tokens a row")
    gradient_accumulation: PositiveInt = Field(
        1, description="micro-batches of batch_size rows whose gradients are averaged for a step"
    )

    @property
    def rows_per_step(self) -> int:
        """Rows of all micro-batches of a step."""
        return self.gradient_accumulation * self.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one run in a step."""
        return self.rows_per_step * self.sequence_length


class LearningRateFactors(Frozen):
    """What the scheduled learning rate is multiplied by in a parameter group; matrices have the rate itself."""

    embeddings: NonNegative = Field(1.0, description="of embeddings, also where the head is tied to them")
    head: NonNegative = 1.0
    norms: NonNegative = 1.0


class OptimizerConfig(Frozen):
    """A torch optimizer and clipping by the global gradient norm.

    Decoupled decay (adamw) shrinks weights by learning rate x weight decay a step, so a learning-rate factor scales
    the decay of its group, too; coupled decay (adam) goes through the moments. A factor of 0 freezes the group.
    """

    name: Literal["adam", "adamw"] = Field("adamw", description="adam: coupled L2 penalty; adamw: decoupled decay")
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Positive = 1e-8
    max_norm: Positive | None = Field(1.0, description="largest global gradient norm; none: no clipping")
    exempt: tuple[ParameterGroup, ...] = Field((), description="parameter groups without weight decay")
    reset_moments_every_steps: PositiveInt | None = Field(None, description="interval at which both moments are zeroed")
    learning_rate_factors: LearningRateFactors = LearningRateFactors()


class ScheduleConfig(Frozen):
    """Learning rate and weight decay over the run; stage 1 ends at the boundary."""

    kind: Literal["two-stage", "paper", "cosine", "constant"] = Field(
        "two-stage", description="learning rate after warm-up; paper: two linear decays, as in the b1.58 paper"
    )
    peak_learning_rate: NonNegative = 1.5e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 375
    boundary_fraction: Fraction = Field(0.5, description="fraction of the steps in stage 1")
    boundary_learning_rate_fraction: NonNegative = Field(
        2 / 3, description="two-stage: learning rate at the boundary / peak"
    )
    stage2_peak_learning_rate: NonNegative = Field(
        1e-3, description="paper: peak of the linear decay that applies after the boundary"
    )
    final_learning_rate_fraction: NonNegative = Field(1e-3, description="learning rate of the last step / peak")
    stage1_weight_decay: NonNegative = 0.1
    stage2_weight_decay: NonNegative = 0.0
    weight_decay_boundary_fraction: Fraction | None = Field(
        None, description="fraction of the steps before the weight decay changes; unset: boundary_fraction"
    )

    def weight_decay_boundary_step(self, steps: int) -> int:
        """Last step with the weight decay of stage 1."""
        if self.weight_decay_boundary_fraction is None:
            return self.boundary_step(steps)
        return round(steps * self.weight_decay_boundary_fraction)

    def boundary_step(self, steps: int) -> int:
        """Last step of stage 1."""
        return round(steps * self.boundary_fraction)


class ProbeConfig(Frozen):
    """The measurements of an evaluation, the same for every arm."""

    positions: PositiveInt = Field(8192, description="held-out next-token positions, teacher-forced")
    eval_every_steps: PositiveInt | None = Field(None, description="unset: a twentieth of the steps")
    random_prompts: PositiveInt = Field(20, description="prompts of the founding document's metric")
    random_prompt_tokens: PositiveInt = 8
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the random prompts, not of the run")


class InterventionSpec(Frozen):
    """One requested intervention.

    `settings` are those of its label. `defaults` are the others, which have the default that the plug-in had when the
    run was planned, and None where the plug-in was not asked. `file` is set for an intervention that is not installed.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
    settings: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    defaults: dict[str, JsonValue] | None = None
    file: str | None = Field(None, description="FILE.py:CLASS, without effect on the results")

    @property
    def all_settings(self) -> dict[str, JsonValue]:
        """Every setting that is known."""
        return {**(self.defaults or {}), **self.settings}

    def __str__(self) -> str:
        settings = ",".join(f"{key}={value_text(value)}" for key, value in sorted(self.settings.items()))
        return f"{self.name}:{settings}" if settings else self.name


class RunConfig(Frozen):
    """Everything that determines the results of a run."""

    recipe: str = Field("custom", description="name of its recipe; a label without effect")
    steps: PositiveInt = 20_000
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    probe: ProbeConfig = ProbeConfig()
    interventions: tuple[InterventionSpec, ...] = ()
    continues: Annotated[str, Field(pattern=r"^[0-9a-f]{12}@[1-9][0-9]{0,17}$")] | None = Field(
        None, description="the run whose rows and weights it starts with, as HASH@STEPS; unset: a new model"
    )

    @model_validator(mode="after")
    def _check_extended(self) -> Self:
        if self.extended_steps >= self.steps:
            raise ValueError(f"steps: the extended run has {self.extended_steps:,}; take more, not {self.steps:,}")
        return self

    @property
    def extended_steps(self) -> int:
        """Steps of the run that it extends, 0 for a new model."""
        return 0 if self.continues is None else int(self.continues.partition("@")[2])

    @property
    def eval_every_steps(self) -> int:
        """Steps between evaluations."""
        return self.probe.eval_every_steps or max(1, self.steps // 20)

    @property
    def boundary_step(self) -> int:
        """Last step of stage 1."""
        return self.schedule.boundary_step(self.steps)

    @property
    def arm(self) -> str:
        """The interventions of the run as text, `baseline` when there are none."""
        return join_arm(self.interventions)

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of every field except `recipe`.

        Fields at their default are left out, so that a new field does not change the hashes of older runs; a released
        default must therefore never change. Of interventions every setting counts, since the default of a plug-in may
        change; up to version 0.1 only those that differed from it did.
        """
        tree = self.model_dump(mode="json", exclude={"recipe"}, exclude_defaults=True)
        if self.interventions:
            all_settings = ((spec.name, spec.all_settings) for spec in self.interventions)
            tree["interventions"] = [
                {"name": name} | ({"settings": settings} if settings else {}) for name, settings in all_settings
            ]
        return canonical_hash(tree)

    @property
    def but_for_seed(self) -> Self:
        """What the runs of all seeds have in common: seed 0, and no hash of an extended run, which depends on it."""
        continues = None if self.continues is None else f"@{self.extended_steps}"
        return self.model_copy(update={"seed": 0, "continues": continues})

    @property
    def run_name(self) -> str:
        """Name of the run's CSV and folder, such as `h256-20000-reduced-lr-s0-1a2b3c`."""
        arm = join_arm(spec.name for spec in self.interventions)
        return f"h{self.model.hidden_size}-{self.steps}-{arm[:120]}-s{self.seed}-{self.hash[:6]}"

    @property
    def run_names(self) -> set[str]:
        """The name of the run, and that of version 0.1, whose hash left out the settings at their default."""
        specs = tuple(spec.model_copy(update={"defaults": None}) for spec in self.interventions)
        return {self.run_name, self.model_copy(update={"interventions": specs}).run_name}

    @property
    def pack_key(self) -> tuple[object, ...]:
        """What must be equal for runs to train in one pack: model shape, batch, data, steps, probe."""
        model = self.model.model_dump(exclude={"initialization", "init_std", "quantization"})
        return (
            self.steps,
            self.eval_every_steps,
            tuple(model.items()),
            tuple(self.data.model_dump(exclude={"order"}).items()),
            tuple(self.probe.model_dump(exclude={"eval_every_steps"}).items()),
        )

    def is_evaluated(self, step: int) -> bool:
        """Whether `step` ends with an evaluation: the first, the last and every `eval_every_steps`-th do.

        So does the last step of the run that this one extends.
        """
        return step in (1, self.extended_steps, self.steps) or step % self.eval_every_steps == 0


def canonical_hash(value: Any) -> str:
    """Return the SHA-256 hex digest of a JSON value, independent of key order and spacing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def value_text(value: JsonValue) -> str:
    """Return a value as text that `parse_value` reads back."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
