"""Plans and grids: which runs they name, and that they name each once."""

import itertools
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bitnetctl.config import RunConfig, builtin_names
from bitnetctl.config.numbers import MAX_RUNS, parse_numbers, parse_seeds
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.sweeps import plan
from bitnetctl.sweeps.plan import Plan, load_plan, make_plan

# plan → runs, arms, sizes, seeds, steps
PLANS = {
    "aggressive-clipping": (2, 2, [256], [0], 4000),
    "gpu-verification": (12, 1, [256, 512], [0, 1, 2, 3, 4, 5], 20000),
    "label-smoothing": (2, 2, [256], [0], 4000),
    "reduced-lr": (2, 2, [256], [0], 4000),
    "root-cause": (16, 16, [256], [0], 20000),
    "scaling": (8, 2, [256, 512, 768, 1024], [0], 10000),
    "stage1-only": (1, 1, [256], [0], 7000),
}


def write(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def one_line(caught: pytest.ExceptionInfo[ConfigError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code is ExitCode.USAGE
    return message


def key(config: RunConfig) -> tuple[int, str, int]:
    return config.model.hidden_size, config.arm, config.seed


# built-in plans


def test_the_table_covers_every_plan() -> None:
    assert builtin_names("bitnetctl.sweeps", "plans") == list(PLANS)


@pytest.mark.parametrize("name", PLANS)
def test_a_built_in_plan(name: str) -> None:
    runs, arms, sizes, seeds, steps = PLANS[name]
    plan = load_plan(name, {})
    assert plan.description.endswith((".", "?"))
    configs = plan.configs()
    assert len(configs) == runs == arms * len(sizes) * len(seeds)
    assert len({config.arm for config in configs}) == arms
    assert sorted({config.model.hidden_size for config in configs}) == sizes
    assert sorted({config.seed for config in configs}) == seeds
    assert {config.steps for config in configs} == {steps}
    assert {config.recipe for config in configs} == {"origin"}
    assert len({key(config) for config in configs}) == runs
    assert len({config.hash for config in configs}) == runs
    assert len({config.run_name for config in configs}) == runs


def test_the_root_cause_is_a_full_factorial() -> None:
    arms = [frozenset(spec.name for spec in config.interventions) for config in load_plan("root-cause", {}).configs()]
    factors = ["decoupled-decay", "full-precision", "wd-schedule", "reduced-lr"]
    expected = {
        frozenset(name for name, on in zip(factors, levels, strict=True) if on)
        for levels in itertools.product((False, True), repeat=4)
    }
    assert set(arms) == expected
    assert Counter(name for arm in arms for name in arm) == dict.fromkeys(factors, 8)
    configs = load_plan("root-cause", {}).configs()
    [all_four] = [config for config in configs if len(config.interventions) == 4]
    assert [(spec.name, spec.settings) for spec in all_four.interventions] == [
        ("decoupled-decay", {"decayed": "all"}),
        ("full-precision", {}),
        ("wd-schedule", {"stage2": 0.1}),
        ("reduced-lr", {}),
    ]


def test_the_arms_of_the_founding_document() -> None:
    def arms(name: str) -> list[str]:
        return list(dict.fromkeys(config.arm for config in load_plan(name, {}).configs()))

    throughout = "wd-schedule:stage2=0.1"
    assert arms("scaling") == ["baseline", "wd-schedule:preset=before-fix"]
    assert arms("gpu-verification") == ["baseline"]
    assert arms("stage1-only") == ["wd-schedule:preset=stage1-only"]
    for name in ("aggressive-clipping", "label-smoothing", "reduced-lr"):
        assert arms(name) == [throughout, f"{throughout}+{name}"]


# plans from files


def test_a_plan_from_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.toml",
        """
        description = "mine"
        recipe = "quick"
        steps = 100
        sizes = [32, 64]
        seeds = 3
        arms = ["reduced-lr", "no-decay+reduced-lr:peak=1e-3"]
        overrides = ["schedule.warmup_steps=5", "data.batch_size=2"]
        """,
    )
    plan = load_plan(path, {})
    assert (plan.recipe, plan.steps, plan.sizes, plan.seeds) == ("quick", 100, (32, 64), (0, 1, 2))
    configs = plan.configs()
    arms = ["baseline", "reduced-lr", "no-decay+reduced-lr:peak=0.001"]
    assert [key(config) for config in configs] == list(itertools.product((32, 64), arms, range(3)))
    assert {(config.steps, config.schedule.warmup_steps, config.data.batch_size) for config in configs} == {(100, 5, 2)}
    assert {config.recipe for config in configs} == {"quick"}


def test_unset_fields_are_those_of_the_recipe(tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe.toml", "steps = 77\nseed = 9\n[model]\nhidden_size = 128\n")
    [config] = load_plan(write(tmp_path / "plan.toml", f'recipe = "{recipe}"\n'), {}).configs()
    assert (config.steps, config.model.hidden_size, config.seed, config.arm) == (77, 128, 0, "baseline")
    assert config.recipe == "recipe"
    [empty] = make_plan({}).configs()
    assert (empty.recipe, empty.steps) == ("origin", 20_000)


@pytest.mark.parametrize(
    ("seeds", "expected"), [("1", (0,)), ("4", (0, 1, 2, 3)), ("[4]", (4,)), ("[7, 0, 3]", (7, 0, 3)), ("[0]", (0,))]
)
def test_seeds_are_a_number_or_a_list(seeds: str, expected: tuple[int, ...], tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path / "plan.toml", f"seeds = {seeds}\n"), {})
    assert plan.seeds == expected
    assert tuple(config.seed for config in plan.configs()) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seeds = 0", "no seeds"),
        ("seeds = -2", "no seeds"),
        ("seeds = []", "no seeds"),
        ("seeds = true", "seeds"),
        ("seeds = 2.5", "seeds"),
        ('seeds = "3"', "seeds"),
        ("seeds = [-1]", "seeds"),
        ("seeds = [1, 2, 1]", "seed 1 is named twice"),
        ("sizes = [64, 128, 64]", "size 64 is named twice"),
        ('arms = ["reduced-lr", "no-decay", "reduced-lr"]', "arm reduced-lr is named twice"),
        ("sizes = [0]", "sizes"),
        ("sizes = 64", "sizes"),
        ("steps = 0", "steps"),
        ("arms = 'reduced-lr'", "arms"),
        ("arms = [1]", "arms"),
        ("baseline = 'perhaps'", "baseline"),
        ("[factors.decay]", "a factor has no levels"),
        ("[factors]\ndecay = ['a']", "factors"),
        ("sizs = [64]", "unknown field 'sizs'; did you mean 'sizes'?"),
        ("seeds = = 1", "not valid TOML"),
        ("seeds = 1\nseeds = 2", "not valid TOML"),
    ],
)
def test_a_malformed_plan_is_refused(text: str, part: str, tmp_path: Path) -> None:
    path = write(tmp_path / "plan.toml", text)
    with pytest.raises(ConfigError) as caught:
        load_plan(path, {})
    message = one_line(caught)
    assert part in message
    assert path in message


@pytest.mark.parametrize(
    ("tree", "part"),
    [
        ({"arms": ["reduced-rl"]}, "did you mean 'reduced-lr'?"),
        ({"arms": ["reduced-lr:peek=1"]}, "did you mean 'peak'?"),
        ({"arms": ["reduced-lr:peak"]}, "expected NAME:key=value"),
        ({"factors": {"f": {"on": "no-dekay"}}}, "did you mean 'no-decay'?"),
        ({"recipe": "orign"}, "did you mean 'origin'?"),
        ({"overrides": ["schedule.warmup=1"]}, "schedule.warmup"),
        ({"overrides": ["steps=many"]}, "steps"),
        ({"sizes": [30]}, "30"),
    ],
)
def test_a_plan_with_impossible_runs_is_refused(tree: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(tree).configs()
    assert part in one_line(caught)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    for name, part in {
        "root-casue": "unknown plan 'root-casue'; did you mean 'root-cause'? Built in: aggressive-clipping, ",
        "xyzzy": "unknown plan 'xyzzy'; built in: aggressive-clipping, ",
        "": "unknown plan ''",
        "../plans/scaling": "unknown plan",
        str(tmp_path / "none.toml"): "No such file",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load_plan(name, {})
        assert part in one_line(caught)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b'description = "\xe9"')
    for name, part in {"folder.toml": "Is a directory", "latin.toml": "not UTF-8"}.items():
        with pytest.raises(ConfigError, match=part):
            load_plan(name, {})


@pytest.mark.parametrize("value", ["5", '"steps=5"', "true", "{ steps = 5 }"])
def test_overrides_must_be_a_list(value: str, tmp_path: Path) -> None:
    path = write(tmp_path / "plan.toml", f"overrides = {value}\n")
    with pytest.raises(ConfigError) as caught:
        load_plan(path, {"overrides": ["steps=6"]}).configs()
    assert "overrides" in one_line(caught)
    assert path in str(caught.value)


def test_a_seed_out_of_range_is_refused() -> None:
    [largest] = make_plan({"seeds": [2**63 - 1]}).configs()
    assert RunConfig.model_validate(largest.model_dump()).seed == 2**63 - 1
    with pytest.raises(ConfigError, match="seeds"):
        make_plan({"seeds": [2**63]}).configs()


# the runs of a plan


def arms(**fields: Any) -> list[str]:
    return make_plan({"recipe": "quick", **fields}).all_arms()


def test_the_baseline_is_added_once() -> None:
    assert arms() == [""]
    assert arms(arms=["reduced-lr"]) == ["", "reduced-lr"]
    assert arms(arms=["reduced-lr", "baseline"]) == ["reduced-lr", ""]
    assert arms(arms=["reduced-lr", " "]) == ["reduced-lr", ""]
    assert arms(arms=["reduced-lr"], baseline=False) == ["reduced-lr"]
    assert arms(arms=["baseline"], baseline=False) == [""]
    assert arms(baseline=False) == []
    assert make_plan({"baseline": False}).configs() == []
    factors = {"rate": {"high": "", "low": "reduced-lr"}}
    assert arms(factors=factors) == ["", "reduced-lr"]
    assert arms(factors={"rate": {"low": "reduced-lr"}}) == ["", "reduced-lr"]


def test_factors_are_crossed_after_the_arms() -> None:
    factors = {
        "rate": {"high": "", "low": "reduced-lr", "lower": "reduced-lr:peak=1e-4"},
        "precision": {"ternary": "", "full": "full-precision"},
    }
    crossed = [
        "",
        "full-precision",
        "reduced-lr",
        "reduced-lr+full-precision",
        "reduced-lr:peak=1e-4",
        "reduced-lr:peak=1e-4+full-precision",
    ]
    assert arms(factors=factors) == crossed
    assert arms(factors=factors, arms=["no-decay"]) == ["no-decay", *crossed]
    configs = make_plan({"factors": factors, "seeds": 2, "sizes": [64, 128]}).configs()
    assert len({config.hash for config in configs}) == len(configs) == 6 * 2 * 2


@pytest.mark.parametrize(
    "names",
    [
        ["baseline", ""],
        ["reduced-lr", "reduced-lr:peak=5e-4"],
        ["reduced-lr", " reduced-lr "],
        ["reduced-lr:peak=1", "reduced-lr:peak=1.0"],
        ["reduced-lr:peak=1e-3,factor=2", "reduced-lr:factor=2,peak=1e-3"],
    ],
)
def test_the_same_run_never_twice(names: list[str]) -> None:
    configs = make_plan({"arms": names, "baseline": False, "seeds": [4, 2]}).configs()
    assert [config.seed for config in configs] == [4, 2]
    crossed = make_plan({"arms": names[:1], "factors": {"f": {"again": names[1]}}, "baseline": False}).configs()
    assert len(crossed) == 1


def test_the_order_of_an_arm_is_part_of_it() -> None:
    configs = make_plan({"arms": ["no-decay+reduced-lr", "reduced-lr+no-decay"], "baseline": False}).configs()
    assert len(configs) == 2


def test_a_size_of_the_recipe_is_the_same_run() -> None:
    assert make_plan({"sizes": [256]}).configs() == make_plan({}).configs()


def test_a_plan_of_too_many_runs() -> None:
    sizes = tuple(range(1, 251))
    with pytest.raises(ConfigError, match="more than 100,000 runs"):
        make_plan({"arms": ["reduced-lr"], "sizes": sizes, "seeds": MAX_RUNS // 500 + 1}).configs()


# the command line on top of a plan


def test_changes_override_a_plan() -> None:
    plan = load_plan("scaling", {"sizes": (64,), "seeds": (3, 5), "steps": 50, "recipe": "quick"})
    configs = plan.configs()
    assert [key(config) for config in configs] == [
        (64, arm, seed) for arm in ("baseline", "wd-schedule:preset=before-fix") for seed in (3, 5)
    ]
    assert {(config.steps, config.recipe) for config in configs} == {(50, "quick")}
    assert plan.description == load_plan("scaling", {}).description


def test_arms_of_the_command_line_replace_factors() -> None:
    changes = {"arms": ("no-decay",), "factors": {}, "baseline": True}
    assert load_plan("root-cause", changes).all_arms() == ["", "no-decay"]
    assert load_plan("stage1-only", {"baseline": True}).all_arms() == ["", "wd-schedule:preset=stage1-only"]


def test_overrides_come_after_those_of_the_plan(tmp_path: Path) -> None:
    path = write(tmp_path / "plan.toml", 'overrides = ["steps=10", "schedule.warmup_steps=3"]\n')
    assert load_plan(path, {}).overrides == ("steps=10", "schedule.warmup_steps=3")
    plan = load_plan(path, {"overrides": ["steps=20"]})
    assert plan.overrides == ("steps=10", "schedule.warmup_steps=3", "steps=20")
    [config] = plan.configs()
    assert (config.steps, config.schedule.warmup_steps) == (20, 3)
    assert load_plan("scaling", {"overrides": ["data.batch_size=8"]}).configs()[0].data.batch_size == 8


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"steps": 30, "overrides": ["steps=20"]},
            "overrides: steps=20: no effect beside steps (--steps); take --steps",
        ),
        ({"steps": 30, "grid": {"steps": (30, 20)}}, "grid: steps: no effect beside steps (--steps); take one of them"),
        (
            {"sizes": [64, 128], "overrides": ["model.hidden_size=64"]},
            "overrides: model.hidden_size=64: no effect beside sizes (--sizes); take --sizes",
        ),
        (
            {"sizes": [64], "grid": {"model": {"hidden_size": (64, 128)}}},
            "grid: model.hidden_size: no effect beside sizes (--sizes); take --sizes",
        ),
        ({"overrides": ["seed=3"]}, "overrides: seed=3: no effect beside seeds (--seeds); take --seeds"),
        (
            {"overrides": ["steps=20"], "grid": {"steps": (30, 20)}},
            "overrides: steps=20: no effect beside the values in the grid; take one of them",
        ),
    ],
)
def test_values_that_a_plan_would_drop_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(tree)
    assert str(caught.value) == f"sweep: {message}"


def test_the_same_value_twice_is_no_contradiction() -> None:
    tree = {"steps": 30, "sizes": [64], "overrides": ["steps=30"], "grid": {"model.hidden_size": (64,)}}
    [config] = make_plan(tree).configs()
    assert (config.steps, config.model.hidden_size) == (30, 64)


def test_steps_and_sizes_can_be_overrides_and_a_grid() -> None:
    grid = {"model.hidden_size": (64, 128), "steps": (30, 20)}
    configs = make_plan({"grid": grid}).configs()
    assert [(config.model.hidden_size, config.steps) for config in configs] == [
        (64, 30),
        (64, 20),
        (128, 30),
        (128, 20),
    ]
    [config] = make_plan({"overrides": ["model.hidden_size=64", "steps=20"]}).configs()
    assert (config.model.hidden_size, config.steps) == (64, 20)


def test_the_command_line_contradicts_no_plan_silently() -> None:
    for changes, place in (
        ({"overrides": ["steps=300"]}, "overrides: steps=300"),
        ({"grid": {"steps": (3, 6)}}, "grid"),
    ):
        with pytest.raises(ConfigError, match=f"plan scaling: {place}"):
            load_plan("scaling", changes)


def test_changes_replace_values_of_the_same_fields(tmp_path: Path) -> None:
    overrides = write(
        tmp_path / "overrides.toml", 'overrides = ["steps=10", "model.hidden_size = 64", "data.batch_size=2"]'
    )
    grid = write(tmp_path / "grid.toml", "grid = { steps = [10, 20], model.hidden_size = [64] }")
    for path in (overrides, grid):
        configs = load_plan(path, {"steps": 30, "sizes": (32, 128)}).configs()
        assert [(config.steps, config.model.hidden_size) for config in configs] == [(30, 32), (30, 128)]
    assert {config.data.batch_size for config in load_plan(overrides, {"steps": 30}).configs()} == {2}
    # those of another field stay
    assert load_plan(grid, {"steps": 30}).grid == {"model.hidden_size": (64,)}
    assert [config.steps for config in load_plan(overrides, {"grid": {"steps": (5, 6)}}).configs()] == [5, 6]


def test_a_change_that_makes_a_plan_invalid_is_refused() -> None:
    with pytest.raises(ConfigError, match="plan scaling: size 64 is named twice"):
        load_plan("scaling", {"sizes": (64, 64)})
    with pytest.raises(ConfigError, match="sweep: steps: "):
        make_plan({"steps": 0})


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("6", (0, 1, 2, 3, 4, 5)),
        (" 2 ", (0, 1)),
        ("1", (0,)),
        ("0,3,7", (0, 3, 7)),
        ("7, 0", (7, 0)),
        ("3,", (3,)),
        ("0,", (0,)),
        ("3, 4, ", (3, 4)),
        ("12345678901,", (12345678901,)),
    ],
)
def test_seeds_of_the_command_line(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds
    assert make_plan({"seeds": parse_seeds(text)}).seeds == seeds


@pytest.mark.parametrize(
    "text", ["", ",", ",3", "3,,4", "-1", "1.5", "1e3", "six", "1;2", "1 2", "٣", "0x10", "9" * 19]
)
def test_malformed_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_seeds(text)
    message = one_line(caught)
    assert "--seeds" in message
    assert repr(text.rstrip().removesuffix(",")) in message


@pytest.mark.parametrize("text", ["100001", "0"])
def test_a_count_of_seeds_is_never_taken_for_a_seed(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


def test_numbers_of_the_command_line() -> None:
    assert parse_numbers("256, 512", "--sizes", "sizes") == (256, 512)
    assert parse_numbers("6", "--sizes", "sizes") == (6,)
    with pytest.raises(ConfigError, match="--sizes '256,': expected whole sizes"):
        parse_numbers("256,", "--sizes", "whole sizes")


def test_a_plan_is_frozen_and_comparable() -> None:
    assert make_plan({"seeds": 2}) == Plan(seeds=(0, 1))
    with pytest.raises(ConfigError, match="unknown field 'seed'"):
        plan.make_plan({"seed": 1})


# no torch


def test_plans_and_arms_need_no_torch(tmp_path: Path) -> None:
    code = """
        import sys
        from bitnetctl.config import builtin_names
        from bitnetctl.plugins import registry
        from bitnetctl.sweeps import plan as plans
        names = [plugin.name for plugin in registry.load_all()]
        assert len(names) >= 12, names
        assert not [plugin.error_message for plugin in registry.load_all() if plugin.problem]
        plan = plans.make_plan({"arms": names, "recipe": "quick"})
        assert len(plan.configs()) == len(names) + 1
        for name in builtin_names("bitnetctl.sweeps", "plans"):
            for config in plans.load_plan(name, {}).configs():
                registry.compose(config.interventions).configure(config)
        assert not {"torch", "pandas", "scipy"} & set(sys.modules), "something heavy is loaded"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_field_of_the_grid_needs_no_quotes() -> None:
    grid = {"schedule": {"warmup_steps": [5, 10]}, "data.batch_size": [2]}
    assert make_plan({"grid": grid}).points() == [
        ("schedule.warmup_steps=5", "data.batch_size=2"),
        ("schedule.warmup_steps=10", "data.batch_size=2"),
    ]
