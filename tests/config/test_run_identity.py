"""Hash, run name and arm of a config."""

import copy
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from configs import FIELDS, NAME, WIDTHS, get_field, quick, set_field, trees
from hypothesis import assume, example, given, strategies as st

from bitnetctl.config import (
    InterventionSpec,
    RunConfig,
    build_config,
    canonical_hash,
    field_paths,
    parse_arm,
    parse_config,
)
from bitnetctl.errors import ConfigError
from bitnetctl.files import safe_name


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


# the hash leaves defaults out: if a default changed, two different runs would have one hash
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
    "model.logit_soft_cap": None,
    "data.source": "stdlib",
    "data.held_out_source": None,
    "data.held_out_fraction": 0.1,
    "data.text_field": "text",
    "data.on_bad_document": "error",
    "data.tokenizer": "bpe:50257",
    "data.order": "sequential",
    "data.batch_size": 4,
    "data.sequence_length": 32,
    "data.gradient_accumulation": 1,
    "optimizer.name": "adamw",
    "optimizer.betas": [0.9, 0.95],
    "optimizer.eps": 1e-8,
    "optimizer.max_norm": 1.0,
    "optimizer.exempt": [],
    "optimizer.reset_moments_every_steps": None,
    "optimizer.learning_rate_factors.embeddings": 1.0,
    "optimizer.learning_rate_factors.head": 1.0,
    "optimizer.learning_rate_factors.norms": 1.0,
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
    "continues": None,
}


def test_defaults_never_change() -> None:
    tree = RunConfig().model_dump(mode="json")
    assert {path: get_field(tree, path) for path in field_paths() if path != "recipe"} == DEFAULTS


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("b158", "ddeb3c107342"),
        ("origin", "017dd4e1168c"),
        ("portable", "eea39f5635a8"),
        ("quick", "5a7a7e8c17b8"),
        ("small", "072284defad3"),
    ],
)
def test_the_hashes_of_the_recipes_never_change(name: str, digits: str) -> None:
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
def test_a_config_round_trips_through_json(tree: dict[str, Any]) -> None:
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
def test_the_text_of_an_arm_parses_to_the_same_arm(arms: list[tuple[str, dict[str, Any]]]) -> None:
    # a plus before a digit does not join interventions, as in 1e+3
    assume(all(name[0].isalpha() for name, _ in arms[1:]) and arms[0][0] != "baseline")
    specs = tuple(InterventionSpec(name=name, settings=settings) for name, settings in arms)
    assert parse_arm(RunConfig(interventions=specs).arm) == specs


def test_a_name_in_the_style_of_python_is_corrected() -> None:
    with pytest.raises(ConfigError, match="lower case and hyphens; did you mean 'decoupled-decay'"):
        parse_arm("Decoupled_decay:decayed=all")


def test_a_boolean_setting_parses_to_the_same_setting() -> None:
    specs = parse_arm("a:x=true")
    assert parse_arm(str(specs[0])) == specs


def test_plus_signs_join_interventions_but_not_numbers() -> None:
    assert parse_arm("reduced-lr:peak=1e+3+no-decay") == (
        InterventionSpec(name="reduced-lr", settings={"peak": 1000.0}),
        InterventionSpec(name="no-decay"),
    )
