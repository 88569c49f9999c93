"""Built-in recipes and recipe files."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from configs import RECIPES, failure, get_field

from bitnetctl.config import (
    build_config,
    builtin_names,
    field_paths,
    load_recipe,
)
from bitnetctl.config.load import config_text
from bitnetctl.errors import ConfigError


def test_recipes_are_listed_and_labelled() -> None:
    assert builtin_names("bitnetctl.config", "recipes") == RECIPES
    assert [build_config(name).recipe for name in RECIPES] == RECIPES


SHARED_DEFAULTS = {
    "seed",
    "model.quantization",
    "model.rms_norm_eps",
    "model.rope_theta",
    "model.logit_soft_cap",
    "data.held_out_source",
    "data.held_out_fraction",
    "data.text_field",
    "data.on_bad_document",
    "data.gradient_accumulation",
    "optimizer.eps",
    "optimizer.reset_moments_every_steps",
    "optimizer.learning_rate_factors.embeddings",
    "optimizer.learning_rate_factors.head",
    "optimizer.learning_rate_factors.norms",
    "schedule.weight_decay_boundary_fraction",
    "probe.positions",
    "probe.eval_every_steps",
    "probe.random_prompts",
    "probe.random_prompt_tokens",
    "probe.seed",
    "interventions",
    "continues",
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_sets_every_field_that_differs_between_recipes(name: str) -> None:
    tree = load_recipe(name)
    stated = {f"{key}.{field}" for key, value in tree.items() if isinstance(value, dict) for field in value}
    stated |= {key for key, value in tree.items() if not isinstance(value, dict)}
    unused = {"model.init_std"} if tree["model"]["initialization"] == "default" else set()
    unused |= {
        "two-stage": {"schedule.stage2_peak_learning_rate"},
        "paper": {"schedule.boundary_learning_rate_fraction"},
    }[tree["schedule"]["kind"]]
    assert stated == set(field_paths()) - SHARED_DEFAULTS - unused


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


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Return the fields in which two dumped configs differ."""
    return {path for path in field_paths() if get_field(one, path) != get_field(other, path)}


def test_quick_is_origin_except_for_scale_and_order() -> None:
    origin, quick_tree = (build_config(name).model_dump() for name in ("origin", "quick"))
    scale = {"recipe", "steps", "model.hidden_size", "data.tokenizer", "schedule.warmup_steps"}
    assert differing(origin, quick_tree) == {*scale, "data.order"}
    assert (get_field(origin, "data.order"), get_field(quick_tree, "data.order")) == ("sequential", "shuffled")


def test_portable_widths_are_multiples_of_256() -> None:
    model = build_config("portable").model
    widths = (model.hidden_size, model.intermediate_size)
    assert [width % 256 for width in widths] == [0, 0]
    assert (model.activation, model.tie_word_embeddings, model.inner_norms) == ("silu", True, False)


def test_small_is_portable_with_what_the_search_changed() -> None:
    portable, small = (build_config(name).model_dump() for name in ("portable", "small"))
    searched = {"data.batch_size", "model.init_std"}
    searched |= {f"schedule.{field}" for field in ("peak_learning_rate", "kind", "warmup_steps", "stage1_weight_decay")}
    fixed = {"recipe", "steps", "data.tokenizer", "data.sequence_length"}
    assert differing(portable, small) == searched | fixed


@pytest.mark.parametrize("name", ["b158", "portable"])
def test_the_papers_recipe(name: str) -> None:
    config = build_config(name)
    schedule, optimizer = config.schedule, config.optimizer
    assert (schedule.kind, schedule.peak_learning_rate, schedule.stage2_peak_learning_rate) == ("paper", 1.5e-3, 1e-3)
    assert (schedule.warmup_steps, schedule.boundary_fraction) == (375, 0.5)
    assert (schedule.stage1_weight_decay, schedule.stage2_weight_decay) == (0.1, 0.0)
    assert (optimizer.name, optimizer.betas) == ("adamw", (0.9, 0.95))
    assert set(optimizer.exempt) == {"embeddings", "head", "norms"}


def test_a_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('steps = 7\n[model]\nhidden_size = 32\n[optimizer]\nexempt = ["head"]\n', encoding="utf-8")
    config = build_config(str(path), overrides=["model.num_layers=2"])
    assert (config.recipe, config.steps, config.model.hidden_size, config.model.num_layers) == ("mine", 7, 32, 2)
    assert config.optimizer.exempt == ("head",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_recipe_file_of_any_editor(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(f"steps = 7{end}[model]{end}hidden_size = 32{end}".encode(encoding))
    config = build_config(str(path))
    assert (config.steps, config.model.hidden_size) == (7, 32)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "No such file"),
        ("steps = 7".encode("utf-16"), "is UTF-16, and TOML is UTF-8; save it as UTF-8"),
        ("steps = 7".encode("utf-16-be"), "is UTF-16"),
        (b"steps = \xff", "not UTF-8"),
        (b"steps = ", "not valid TOML"),
        (b"[model]\nhiden_size = 3", "unknown field 'model.hiden_size'; did you mean 'model.hidden_size'?"),
        (b"model = 3", "recipe: model must be a table"),
        (b"steps = 'many'", "steps: input should be a valid integer"),
    ],
)
def test_errors_in_a_recipe_file(tmp_path: Path, content: bytes | None, fragment: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    assert fragment in failure(["model.num_layers=2"], recipe=str(path))


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    message = failure([], recipe="orign")
    assert "unknown recipe 'orign'; did you mean 'origin'?" in message
    assert all(name in message for name in RECIPES)
    assert "did you mean" not in failure([], recipe="zzz")


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_extends_a_recipe(tmp_path: Path) -> None:
    file = written(tmp_path, "mine.toml", 'extends = "quick"\nsteps = 7\n[optimizer]\nname = "adamw"\n')
    quick, mine = build_config("quick"), build_config(file)
    assert (mine.recipe, mine.steps, mine.optimizer.name) == ("mine", 7, "adamw")
    same = {"recipe": "quick", "steps": quick.steps, "optimizer": quick.optimizer}
    assert mine.model_copy(update=same) == quick


def test_files_extend_each_other_from_where_they_lie(tmp_path: Path) -> None:
    written(
        tmp_path, "base.toml", 'extends = "quick"\nsteps = 7\n[data]\nbatch_size = 2\n[optimizer]\nexempt = ["head"]\n'
    )
    file = written(tmp_path, "below/mine.toml", 'extends = "../base.toml"\n[optimizer]\nexempt = ["norms"]\n')
    config = build_config(file)
    assert (config.steps, config.data.batch_size, config.optimizer.exempt) == (7, 2, ("norms",))
    assert config.model == build_config("quick").model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "mine.toml"\n', "extends itself"),
        ('extends = "other.toml"\n', "extends itself"),
        ('extends = "qick"\n', "did you mean 'quick'?"),
        ('extends = "none.toml"\n', "No such file"),
        ("extends = 3\n", "expected the name of a recipe"),
        ('extends = "quick"\n[[interventions]]\nname = "muon"\n', "give them with -i, such as -i muon"),
        ('recipe = "quick"\nsteps = 7\n', 'write extends = "quick" instead'),
    ],
)
def test_a_recipe_file_that_cannot_be_used_is_refused(text: str, message: str, tmp_path: Path) -> None:
    written(tmp_path, "other.toml", 'extends = "mine.toml"\n')
    file = written(tmp_path, "mine.toml", text)
    with pytest.raises(ConfigError) as caught:
        build_config(file)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shown_config_is_a_recipe_file(name: str, tmp_path: Path) -> None:
    config = build_config(name)
    assert build_config(written(tmp_path, "shown.toml", config_text(config))) == config
