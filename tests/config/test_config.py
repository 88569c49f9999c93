"""Validation of a config and its error messages, overrides, and derived values."""

import math
import re
from typing import Any

import pytest
from configs import FIELDS, FRACTION, POSITIVE, WIDTHS, failure, quick, set_field
from pydantic import ValidationError

from bitnetctl.config import (
    InterventionSpec,
    ModelConfig,
    RunConfig,
    field_paths,
    parse_config,
    parse_value,
)
from bitnetctl.errors import ConfigError


def test_the_tree_is_frozen() -> None:
    config = RunConfig()
    for node, field in ((config, "steps"), (config.model, "hidden_size"), (config.schedule, "warmup_steps")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(node, field, 8)


def test_every_field_has_a_strategy() -> None:
    assert set(field_paths()) == {"recipe"} | FIELDS.keys() | WIDTHS


@pytest.mark.parametrize("path", ["extra", "model.extra", "data.extra", "optimizer.lr", "schedule.extra", "probe.n"])
def test_unknown_fields_of_a_tree_are_refused(path: str) -> None:
    tree: dict[str, Any] = {}
    set_field(tree, path, 1)
    with pytest.raises(ConfigError, match=f"unknown field '{path}'"):
        parse_config(tree)


FLOATS = [
    path
    for path, strategy in FIELDS.items()
    if strategy in (FRACTION, POSITIVE) or path in ("data.held_out_fraction", "optimizer.max_norm")
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", [*FLOATS, "model.intermediate_ratio"])
def test_floats_must_be_finite(path: str, value: float) -> None:
    tree: dict[str, Any] = {}
    set_field(tree, path, value)
    with pytest.raises(ConfigError, match=re.escape(path)):
        parse_config(tree)


def test_betas_must_be_finite() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.betas\.1"):
        parse_config({"optimizer": {"betas": [0.9, math.nan]}})


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("steps=0", "steps: input should be greater than 0, got 0"),
        ("steps=-5", "steps: input should be greater than 0, got -5"),
        ("steps=1.5", "steps: input should be a valid integer"),
        ("steps=many", "steps: input should be a valid integer"),
        ("seed=-1", "seed: input should be greater than or equal to 0"),
        ("seed=9223372036854775808", "seed: input should be less than"),
        ("model.hidden_size=0", "model.hidden_size"),
        ("model.num_layers=0", "model.num_layers"),
        ("model.hidden_size=66", "hidden_size 66 is not divisible by num_attention_heads 4"),
        ("model.hidden_size=12", "head size 3 (hidden_size 12 / num_attention_heads 4) is odd"),
        ("model.num_key_value_heads=3", "num_attention_heads 4 is not divisible by num_key_value_heads 3"),
        ("model.num_key_value_heads=8", "num_attention_heads 4 is not divisible by num_key_value_heads 8"),
        ("model.intermediate_ratio=0.001", "intermediate_ratio 0.001 leaves no feed-forward width"),
        ("model.activation=gelu", "model.activation: input should be 'relu2' or 'silu', got 'gelu'"),
        ("model.inner_norms=perhaps", "model.inner_norms: input should be a valid boolean"),
        ("model.quantization=1.1", "model.quantization: input should be less than or equal to 1"),
        ("data.source=", "data.source"),
        ("data.tokenizer=300", "data.tokenizer: input should be a valid string, got 300"),
        ("data.held_out_fraction=0", "data.held_out_fraction"),
        ("data.held_out_fraction=1", "data.held_out_fraction"),
        ("optimizer.betas=0.9", "optimizer.betas"),
        ("optimizer.betas=0.9,1.0", "optimizer.betas.1: input should be less than 1"),
        ("optimizer.betas=0.9,0.95,0.99", "optimizer.betas"),
        ("optimizer.exempt=heads", "optimizer.exempt.0: input should be 'embeddings', 'head' or 'norms', got 'heads'"),
        ("optimizer.max_norm=0", "optimizer.max_norm: input should be greater than 0"),
        ("schedule.peak_learning_rate=nan", "schedule.peak_learning_rate: input should be a finite number"),
        ("schedule.peak_learning_rate=-1e-3", "schedule.peak_learning_rate: input should be greater than or equal"),
        ("schedule.peak_learning_rate=fast", "schedule.peak_learning_rate: input should be a valid number"),
        ("schedule.warmup_steps=none", "schedule.warmup_steps: input should be a valid integer, got None"),
        ("schedule.boundary_fraction=50", "schedule.boundary_fraction"),
        ("probe.positions=0", "probe.positions"),
        ("probe.eval_every_steps=0", "probe.eval_every_steps"),
    ],
)
def test_a_bad_value_names_its_field(override: str, fragment: str) -> None:
    message = failure([override])
    assert message.startswith("recipe quick: ")
    assert fragment in message


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("model.hiden_size=3", "did you mean 'model.hidden_size'?"),
        ("modle.hidden_size=3", "did you mean 'model.hidden_size'?"),
        ("hidden_size=3", "did you mean 'model.hidden_size'?"),
        ("weight_decay=3", "weight_decay'?"),
        ("step=3", "did you mean 'steps'?"),
        ("optimizer.warmup_steps=3", "did you mean 'schedule.warmup_steps'?"),
        ("zzz=3", "known: recipe, steps, seed, model.hidden_size"),
        ("model=3", "unknown field 'model'"),
        ("=3", "unknown field ''"),
        ("steps", "expected section.field=value"),
        ("", "expected section.field=value"),
    ],
)
def test_a_bad_override_gets_a_suggestion(override: str, fragment: str) -> None:
    message = failure([override])
    assert message.startswith(f"--set {override!r}: ")
    assert fragment in message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        (" -3 ", -3),
        ("5e-4", 5e-4),
        ("1e+3", 1000.0),
        ("0.1", 0.1),
        ("true", True),
        ("false", False),
        ("none", None),
        ("None", None),
        ("null", None),
        ("[0.9, 0.95]", [0.9, 0.95]),
        ("[]", []),
        ("'quoted'", "quoted"),
        ('"5"', "5"),
        ("file:a b=c.txt", "file:a b=c.txt"),
        ("bpe:300", "bpe:300"),
        ("0.9,0.95", "0.9,0.95"),
        ("2024-01-01", "2024-01-01"),
        ("{a = 1}", "{a = 1}"),
        ("", ""),
    ],
)
def test_values_are_typed(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("steps=1e3", 1000),
        ("schedule.peak_learning_rate=5e-4", 5e-4),
        ("schedule.peak_learning_rate=.5", 0.5),
        ("model.inner_norms=false", False),
        ("model.inner_norms=False", False),
        ("optimizer.max_norm=none", None),
        ("probe.eval_every_steps=none", None),
        ("data.held_out_source=none", None),
        ("optimizer.betas=0.8,0.98", (0.8, 0.98)),
        ("optimizer.betas=[0.8, 0.98]", (0.8, 0.98)),
        ("optimizer.exempt=embeddings, norms", ("embeddings", "norms")),
        ("optimizer.exempt=head", ("head",)),
        ("optimizer.exempt=", ()),
        ("optimizer.exempt=[]", ()),
        ("data.source=file:a=b.txt", "file:a=b.txt"),
        (" steps = 7", 7),
    ],
)
def test_overrides_reach_their_field(override: str, value: Any) -> None:
    got: Any = quick(override)
    for part in override.partition("=")[0].strip().split("."):
        got = getattr(got, part)
    assert got == value
    assert type(got) is type(value)


def test_the_last_override_wins() -> None:
    assert quick("steps=3", "steps=4").steps == 4
    assert quick(eval_every_steps=7).eval_every_steps == 7
    spec = InterventionSpec(name="reduced-lr", settings={"peak": 5e-4})
    assert quick(interventions=(spec,)).interventions == (spec,)


@pytest.mark.parametrize(
    ("override", "named", "option"),
    [
        ("steps=3", {"steps": 5}, "--steps 5"),
        (" seed = 3", {"seed": 0}, "--seed 0"),
        ("model.hidden_size=16", {"size": 32}, "--size 32"),
        ("probe.eval_every_steps=3", {"eval_every_steps": 7}, "--eval-every 7"),
    ],
)
def test_an_override_that_a_named_argument_would_drop_is_refused(
    override: str, named: dict[str, int], option: str
) -> None:
    assert failure([override], "quick", **named) == f"--set {override!r}: no effect beside {option}; take one of them"
    assert quick(override) != quick(**named)
    [value] = named.values()
    assert quick(f"{override.partition('=')[0]}={value}", **named) == quick(**named)


def test_derived_widths() -> None:
    model = ModelConfig(hidden_size=48, num_attention_heads=4, intermediate_ratio=2.7)
    assert (model.head_size, model.intermediate_size) == (12, 130)  # 2.7 x 48 = 129.6


@pytest.mark.parametrize(
    ("steps", "every", "evaluated"),
    [
        (40, None, [1, *range(2, 41, 2)]),
        (10, None, list(range(1, 11))),
        (10, 4, [1, 4, 8, 10]),
        (10, 100, [1, 10]),
        (1, None, [1]),
    ],
)
def test_evaluated_steps(steps: int, every: int | None, evaluated: list[int]) -> None:
    config = quick(steps=steps, eval_every_steps=every)
    assert [step for step in range(1, steps + 1) if config.is_evaluated(step)] == evaluated


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.warmup_steps=100,200", "bitnetctl sweep --grid schedule.warmup_steps=100,200"),
        ("optimizer.name=adam,adamw", "bitnetctl sweep --grid optimizer.name=adam,adamw"),
        ("optimizer.betas=3", "expected a list such as [0.9, 0.95]"),
        ("optimizer.exempt=3", 'expected a list such as ["embeddings", "head"]'),
        ("interventions=foo", "given with -i"),
    ],
)
def test_a_mistaken_value_says_what_to_write(override: str, message: str) -> None:
    assert message in failure([override])
