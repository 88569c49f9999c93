"""Config trees for tests: a strategy for every field, whole random trees, and the quick recipe."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from bitnetctl.config import RunConfig, build_config
from bitnetctl.errors import ConfigError, ExitCode

TinyConfig = Callable[..., RunConfig]

RECIPES = ["b158", "origin", "portable", "quick", "small"]

FRACTION = st.floats(0.0, 1.0)
POSITIVE = st.floats(1e-9, 1e6)
SMALL = st.integers(1, 8)
SETTING = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none()
NAME = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
SPEC = st.builds(lambda name, settings: {"name": name, "settings": settings}, NAME, st.dictionaries(st.text(), SETTING))

# every field except the label and the four widths, which constrain each other; add new fields here
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "steps": st.integers(1, 10**9),
    "seed": st.integers(0, 2**63 - 1),
    "model.num_layers": SMALL,
    "model.activation": st.sampled_from(["relu2", "silu"]),
    "model.inner_norms": st.booleans(),
    "model.tie_word_embeddings": st.booleans(),
    "model.scale_group": st.sampled_from(["projection", "fused"]),
    "model.quantization": FRACTION,
    "model.initialization": st.sampled_from(["default", "normal"]),
    "model.init_std": POSITIVE,
    "model.rms_norm_eps": POSITIVE,
    "model.rope_theta": POSITIVE,
    "model.logit_soft_cap": st.none() | POSITIVE,
    "data.source": st.text(min_size=1),
    "data.held_out_source": st.none() | st.text(),
    "data.held_out_fraction": st.floats(0.01, 0.99),
    "data.text_field": st.text("abc._", min_size=1, max_size=8),
    "data.on_bad_document": st.sampled_from(["error", "skip"]),
    "data.tokenizer": st.text(min_size=1),
    "data.order": st.sampled_from(["sequential", "shuffled"]),
    "data.batch_size": SMALL,
    "data.sequence_length": SMALL,
    "data.gradient_accumulation": SMALL,
    "optimizer.name": st.sampled_from(["adam", "adamw"]),
    "optimizer.betas": st.lists(st.floats(0.0, 0.999), min_size=2, max_size=2),
    "optimizer.eps": POSITIVE,
    "optimizer.max_norm": st.none() | POSITIVE,
    "optimizer.exempt": st.lists(st.sampled_from(["embeddings", "head", "norms"])),
    "optimizer.reset_moments_every_steps": st.none() | SMALL,
    "optimizer.learning_rate_factors.embeddings": FRACTION,
    "optimizer.learning_rate_factors.head": POSITIVE,
    "optimizer.learning_rate_factors.norms": POSITIVE,
    "continues": st.none(),
    "schedule.kind": st.sampled_from(["two-stage", "paper", "cosine", "constant"]),
    "schedule.peak_learning_rate": POSITIVE,
    "schedule.warmup_steps": st.integers(0, 1000),
    "schedule.boundary_fraction": FRACTION,
    "schedule.boundary_learning_rate_fraction": FRACTION,
    "schedule.stage2_peak_learning_rate": POSITIVE,
    "schedule.final_learning_rate_fraction": FRACTION,
    "schedule.stage1_weight_decay": FRACTION,
    "schedule.stage2_weight_decay": FRACTION,
    "schedule.weight_decay_boundary_fraction": st.none() | FRACTION,
    "probe.positions": SMALL,
    "probe.eval_every_steps": st.none() | SMALL,
    "probe.random_prompts": SMALL,
    "probe.random_prompt_tokens": SMALL,
    "probe.seed": st.integers(0, 1000),
    "interventions": st.lists(SPEC, max_size=3),
}
WIDTHS = {"model.hidden_size", "model.num_attention_heads", "model.num_key_value_heads", "model.intermediate_ratio"}


def set_field(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, field = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[field] = value


def get_field(tree: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        tree = tree[part]
    return tree


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    tree: dict[str, Any] = {"recipe": draw(st.text())}
    for path, values in FIELDS.items():
        set_field(tree, path, draw(values))
    key_value_heads, groups, half_head = draw(SMALL), draw(SMALL), draw(SMALL)
    heads = key_value_heads * groups
    tree["model"] |= {
        "hidden_size": heads * half_head * 2,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_ratio": draw(st.floats(0.5, 8.0)),
    }
    return tree


def failure(overrides: list[str], recipe: str = "quick", **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(recipe, overrides=overrides, **named)
    assert caught.value.exit_code is ExitCode.USAGE
    message = str(caught.value)
    assert "\n" not in message
    return message


def quick(*overrides: str, **named: Any) -> RunConfig:
    return build_config("quick", overrides=overrides, **named)
