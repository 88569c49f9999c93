"""The config tree: what it refuses and in which words, recipes, overrides, hash, names, arms."""

import copy
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from bitnetctl.config import (
    InterventionSpec,
    ModelConfig,
    RunConfig,
    build_config,
    canonical_hash,
    field_paths,
    load_recipe,
    parse_arm,
    parse_config,
    parse_value,
    recipe_names,
)
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.files import safe_name

RECIPES = ["b158", "origin", "portable", "quick"]

FRACTION = st.floats(0.0, 1.0)
POSITIVE = st.floats(1e-9, 1e6)
SMALL = st.integers(1, 8)
SETTING = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none()
NAME = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
SPEC = st.builds(lambda name, settings: {"name": name, "settings": settings}, NAME, st.dictionaries(st.text(), SETTING))

# every field but the label and the four that must fit each other; a new field belongs here
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
    "data.source": st.text(min_size=1),
    "data.held_out_source": st.none() | st.text(),
    "data.held_out_fraction": st.floats(0.01, 0.99),
    "data.tokenizer": st.text(min_size=1),
    "data.order": st.sampled_from(["sequential", "shuffled"]),
    "data.batch_size": SMALL,
    "data.sequence_length": SMALL,
    "optimizer.name": st.sampled_from(["adam", "adamw"]),
    "optimizer.betas": st.lists(st.floats(0.0, 0.999), min_size=2, max_size=2),
    "optimizer.eps": POSITIVE,
    "optimizer.max_norm": st.none() | POSITIVE,
    "optimizer.exempt": st.lists(st.sampled_from(["embeddings", "head", "norms"])),
    "optimizer.reset_moments_every_steps": st.none() | SMALL,
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


# what a tree refuses


def test_the_tree_is_frozen() -> None:
    config = RunConfig()
    for node, field in ((config, "steps"), (config.model, "hidden_size"), (config.schedule, "warmup_steps")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(node, field, 8)


def test_every_field_has_values_here() -> None:
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
def test_figures_must_be_finite(path: str, value: float) -> None:
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
        ("interventions=foo", "interventions: input should be a valid tuple"),
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
def test_a_bad_override_is_met_with_a_suggestion(override: str, fragment: str) -> None:
    message = failure([override])
    assert message.startswith(f"--set {override!r}: ")
    assert fragment in message


# overrides


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


def test_the_last_override_wins_and_named_arguments_win_over_overrides() -> None:
    assert quick("steps=3", "steps=4").steps == 4
    overrides = ["steps=3", "seed=3", "model.hidden_size=16", "probe.eval_every_steps=3"]
    config = quick(*overrides, steps=5, seed=6, size=32, eval_every_steps=7)
    assert (config.steps, config.seed, config.model.hidden_size, config.eval_every_steps) == (5, 6, 32, 7)
    spec = InterventionSpec(name="reduced-lr", settings={"peak": 5e-4})
    assert quick(interventions=(spec,)).interventions == (spec,)


# derived figures


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


# recipes


def test_recipes_are_listed_and_labelled() -> None:
    assert recipe_names() == RECIPES
    assert [build_config(name).recipe for name in RECIPES] == RECIPES


SHARED_DEFAULTS = {
    "seed",
    "model.quantization",
    "model.rms_norm_eps",
    "model.rope_theta",
    "data.held_out_source",
    "data.held_out_fraction",
    "optimizer.eps",
    "optimizer.reset_moments_every_steps",
    "schedule.weight_decay_boundary_fraction",
    "probe.positions",
    "probe.eval_every_steps",
    "probe.random_prompts",
    "probe.random_prompt_tokens",
    "probe.seed",
    "interventions",
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_states_what_tells_recipes_apart(name: str) -> None:
    tree = load_recipe(name)
    stated = {f"{key}.{field}" for key, value in tree.items() if isinstance(value, dict) for field in value}
    stated |= {key for key, value in tree.items() if not isinstance(value, dict)}
    idle = {"model.init_std"} if tree["model"]["initialization"] == "default" else set()
    idle |= {
        "two-stage": {"schedule.stage2_peak_learning_rate"},
        "paper": {"schedule.boundary_learning_rate_fraction"},
    }[tree["schedule"]["kind"]]
    assert stated == set(field_paths()) - SHARED_DEFAULTS - idle


def test_recipe_files_are_packaged() -> None:
    folder = resources.files("bitnetctl.config") / "recipes"
    for name in RECIPES:
        assert tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))["steps"] > 0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("steps", 20_000),
        ("model.hidden_size", 256),
        ("model.num_layers", 4),
        ("model.num_attention_heads", 4),
        ("model.num_key_value_heads", 4),
        ("model.intermediate_ratio", 2.0),
        ("model.activation", "relu2"),
        ("model.inner_norms", True),
        ("model.tie_word_embeddings", False),
        ("model.scale_group", "fused"),
        ("model.quantization", 1.0),
        ("model.initialization", "default"),
        ("data.tokenizer", "bpe:50257"),
        ("data.order", "sequential"),
        ("data.batch_size", 4),
        ("data.sequence_length", 32),
        ("optimizer.name", "adam"),
        ("optimizer.betas", [0.9, 0.95]),
        ("optimizer.max_norm", 1.0),
        ("optimizer.exempt", []),
        ("schedule.kind", "two-stage"),
        ("schedule.peak_learning_rate", 1.5e-3),
        ("schedule.warmup_steps", 375),
        ("schedule.boundary_fraction", 0.5),
        ("schedule.boundary_learning_rate_fraction", pytest.approx(2 / 3, rel=1e-12)),
        ("schedule.final_learning_rate_fraction", 1e-3),
        ("schedule.stage1_weight_decay", 0.1),
        ("schedule.stage2_weight_decay", 0.0),
        ("probe.random_prompts", 20),
        ("probe.random_prompt_tokens", 8),
        ("interventions", []),
    ],
)
def test_origin_is_the_founding_documents_recipe(path: str, value: Any) -> None:
    assert get_field(build_config("origin").model_dump(mode="json"), path) == value


def test_quick_is_origin_but_for_its_scale_and_order() -> None:
    origin, quick_tree = (build_config(name).model_dump() for name in ("origin", "quick"))
    differing = {path for path in field_paths() if get_field(origin, path) != get_field(quick_tree, path)}
    scale = {"recipe", "steps", "model.hidden_size", "data.tokenizer", "schedule.warmup_steps"}
    assert differing == {*scale, "data.order"}
    assert (get_field(origin, "data.order"), get_field(quick_tree, "data.order")) == ("sequential", "shuffled")


def test_portable_widths_are_multiples_of_256() -> None:
    model = build_config("portable").model
    widths = (model.hidden_size, model.intermediate_size)
    assert [width % 256 for width in widths] == [0, 0]
    assert (model.activation, model.tie_word_embeddings, model.inner_norms) == ("silu", True, False)


@pytest.mark.parametrize("name", ["b158", "portable"])
def test_the_papers_recipe(name: str) -> None:
    config = build_config(name)
    schedule, optimizer = config.schedule, config.optimizer
    assert (schedule.kind, schedule.peak_learning_rate, schedule.stage2_peak_learning_rate) == ("paper", 1.5e-3, 1e-3)
    assert (schedule.warmup_steps, schedule.boundary_fraction) == (375, 0.5)
    assert (schedule.stage1_weight_decay, schedule.stage2_weight_decay) == (0.1, 0.0)
    assert (optimizer.name, optimizer.betas) == ("adamw", (0.9, 0.95))
    assert set(optimizer.exempt) == {"embeddings", "head", "norms"}


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('steps = 7\n[model]\nhidden_size = 32\n[optimizer]\nexempt = ["head"]\n', encoding="utf-8")
    config = build_config(str(path), overrides=["model.num_layers=2"])
    assert (config.recipe, config.steps, config.model.hidden_size, config.model.num_layers) == ("mine", 7, 32, 2)
    assert config.optimizer.exempt == ("head",)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "No such file"),
        (b"steps = \xff", "not UTF-8"),
        (b"steps = ", "not valid TOML"),
        (b"[model]\nhiden_size = 3", "unknown field 'model.hiden_size'; did you mean 'model.hidden_size'?"),
        (b"model = 3", "recipe: model must be a table"),
        (b"steps = 'many'", "steps: input should be a valid integer"),
    ],
)
def test_a_bad_recipe_file_is_said_so(tmp_path: Path, content: bytes | None, fragment: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    assert fragment in failure(["model.num_layers=2"], recipe=str(path))


def test_an_unknown_recipe_is_met_with_a_suggestion() -> None:
    message = failure([], recipe="orign")
    assert "unknown recipe 'orign'; did you mean 'origin'?" in message
    assert all(name in message for name in RECIPES)
    assert "did you mean" not in failure([], recipe="zzz")


# hash and names


def test_the_hash_ignores_key_order_and_label() -> None:
    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return value

    config = build_config("origin")
    tree = config.model_dump(mode="json")
    assert list(reversed_keys(tree)) != list(tree)
    assert parse_config(reversed_keys(tree)).hash == config.hash
    assert parse_config({**tree, "recipe": "other"}).hash == config.hash
    assert canonical_hash({"b": 1, "a": [1, 2]}) == canonical_hash({"a": [1, 2], "b": 1})
    assert canonical_hash([1, 2]) != canonical_hash([2, 1])


# the hash leaves defaults out: a default that changes would give two different runs one hash
DEFAULTS: dict[str, Any] = {
    "steps": 20_000,
    "seed": 0,
    "model.hidden_size": 256,
    "model.num_layers": 4,
    "model.num_attention_heads": 4,
    "model.num_key_value_heads": 4,
    "model.intermediate_ratio": 2.0,
    "model.activation": "relu2",
    "model.inner_norms": False,
    "model.tie_word_embeddings": False,
    "model.scale_group": "projection",
    "model.quantization": 1.0,
    "model.initialization": "normal",
    "model.init_std": 0.02,
    "model.rms_norm_eps": 1e-5,
    "model.rope_theta": 10_000.0,
    "data.source": "stdlib",
    "data.held_out_source": None,
    "data.held_out_fraction": 0.1,
    "data.tokenizer": "bpe:50257",
    "data.order": "sequential",
    "data.batch_size": 4,
    "data.sequence_length": 32,
    "optimizer.name": "adamw",
    "optimizer.betas": [0.9, 0.95],
    "optimizer.eps": 1e-8,
    "optimizer.max_norm": 1.0,
    "optimizer.exempt": [],
    "optimizer.reset_moments_every_steps": None,
    "schedule.kind": "two-stage",
    "schedule.peak_learning_rate": 1.5e-3,
    "schedule.warmup_steps": 375,
    "schedule.boundary_fraction": 0.5,
    "schedule.boundary_learning_rate_fraction": 2 / 3,
    "schedule.stage2_peak_learning_rate": 1e-3,
    "schedule.final_learning_rate_fraction": 1e-3,
    "schedule.stage1_weight_decay": 0.1,
    "schedule.stage2_weight_decay": 0.0,
    "schedule.weight_decay_boundary_fraction": None,
    "probe.positions": 8192,
    "probe.eval_every_steps": None,
    "probe.random_prompts": 20,
    "probe.random_prompt_tokens": 8,
    "probe.seed": 0,
    "interventions": [],
}


def test_defaults_never_change() -> None:
    tree = RunConfig().model_dump(mode="json")
    assert {path: get_field(tree, path) for path in field_paths() if path != "recipe"} == DEFAULTS


@pytest.mark.parametrize(
    ("name", "digits"),
    [("b158", "ddeb3c107342"), ("origin", "017dd4e1168c"), ("portable", "eea39f5635a8"), ("quick", "5a7a7e8c17b8")],
)
def test_the_runs_of_earlier_versions_are_found(name: str, digits: str) -> None:
    assert build_config(name).hash.startswith(digits)


def test_the_hash_is_the_same_in_every_process() -> None:
    code = "from bitnetctl.config import build_config as b; print(b('origin').hash, b('b158', seed=3).hash)"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert hashes == {f"{build_config('origin').hash} {build_config('b158', seed=3).hash}\n"}


@given(trees(), trees())
def test_any_field_changes_the_hash(tree: dict[str, Any], other: dict[str, Any]) -> None:
    config = parse_config(tree)
    for path in FIELDS.keys() | WIDTHS:
        changed = copy.deepcopy(tree)
        set_field(changed, path, get_field(other, path))
        try:
            after = parse_config(changed)
        except ConfigError:
            assert path in WIDTHS
            continue
        assert (after.hash == config.hash) is (after == config), path


@given(trees())
def test_a_config_survives_json(tree: dict[str, Any]) -> None:
    config = parse_config(tree)
    dumped = json.loads(json.dumps(config.model_dump(mode="json"), allow_nan=False))
    assert parse_config(dumped) == config
    assert parse_config(dumped).hash == config.hash


def test_run_names() -> None:
    config = build_config("origin", interventions=parse_arm("reduced-lr:peak=5e-4"))
    assert config.run_name == f"h256-20000-reduced-lr-s0-{config.hash[:6]}"
    assert re.fullmatch(r"[0-9a-f]{64}", config.hash)
    assert quick(size=32, steps=20, seed=7).run_name.startswith("h32-20-baseline-s7-")
    both = build_config("quick", interventions=parse_arm("wd-schedule:stage2=0+reduced-lr"))
    assert both.run_name.startswith("h64-2000-wd-schedule+reduced-lr-s0-")
    assert both.arm == "wd-schedule:stage2=0+reduced-lr"
    assert quick().arm == "baseline"


@given(st.lists(NAME, max_size=20), st.integers(1, 10**9), st.integers(0, 2**63 - 1))
@example(["a" * 64] * 4, 10**9, 2**63 - 1)
def test_run_names_are_file_names(names: list[str], steps: int, seed: int) -> None:
    specs = tuple(InterventionSpec(name=name) for name in names)
    name = RunConfig(steps=steps, seed=seed, interventions=specs).run_name
    assert safe_name(name) == name


# arms


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("", []),
        ("baseline", []),
        (" baseline ", []),
        ("reduced-lr", [("reduced-lr", {})]),
        (
            "wd-schedule:stage2=0+reduced-lr:peak=1e+3",
            [("wd-schedule", {"stage2": 0}), ("reduced-lr", {"peak": 1000.0})],
        ),
        (" a:x=1 + b ", [("a", {"x": 1}), ("b", {})]),
        ("a:x=5e-4,y=true,z=none,t=word", [("a", {"x": 5e-4, "y": True, "z": None, "t": "word"})]),
        ("a:x=1e+3+b:y=-2", [("a", {"x": 1000.0}), ("b", {"y": -2})]),
        ("a+a", [("a", {}), ("a", {})]),
    ],
)
def test_arms(text: str, specs: list[tuple[str, dict[str, Any]]]) -> None:
    parsed = parse_arm(text)
    assert [(spec.name, spec.settings) for spec in parsed] == specs
    for spec, (_, settings) in zip(parsed, specs, strict=True):
        assert [type(value) for value in spec.settings.values()] == [type(value) for value in settings.values()]


@pytest.mark.parametrize(
    "text",
    ["a:", "a:x", "a:=1", "a:x=1,", "a:x=1,,y=2", "A", "-a", "a b", "a+", "+a", "a++b", "a:x=nan", "a:x=[1]", "!"],
)
def test_bad_arms_are_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="intervention") as caught:
        parse_arm(text)
    assert "\n" not in str(caught.value)


ARM_VALUE = (
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["word", "a-b", "none"])
).map(lambda value: None if value == "none" else value)


@given(st.lists(st.tuples(NAME, st.dictionaries(NAME, ARM_VALUE, max_size=3)), min_size=1, max_size=3))
def test_an_arm_reads_back_as_written(arms: list[tuple[str, dict[str, Any]]]) -> None:
    # a name that starts with a digit cannot follow a plus, as in 1e+3
    assume(all(name[0].isalpha() for name, _ in arms[1:]) and arms[0][0] != "baseline")
    specs = tuple(InterventionSpec(name=name, settings=settings) for name, settings in arms)
    assert parse_arm(RunConfig(interventions=specs).arm) == specs


def test_a_boolean_of_an_arm_reads_back_as_written() -> None:
    specs = parse_arm("a:x=true")
    assert parse_arm(str(specs[0])) == specs
