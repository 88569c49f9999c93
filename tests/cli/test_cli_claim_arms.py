"""What a claim, plan or search names: files beside it; and mistakes that name the file and its field."""

import re
from pathlib import Path

import pytest
from calling import call
from claim_files import write_claim
from synthetic import simple_run

from bitnetctl.cli.claiming import ClaimTest
from bitnetctl.cli.judging import PlanRequest
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.sweeps.plan import plan_configs
from bitnetctl.sweeps.search import load_search

pytestmark = pytest.mark.usefixtures("plain_environment")

PLUGIN = """
from bitnetctl.intervention import Intervention


class HalvedRate(Intervention):
    summary = "half the rate"
"""
PLAN_ARMS = 'arms = ["no-decay"]'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plus sign in its name and a plug-in, which is not the working directory."""
    folder = tmp_path / "a+b"
    (folder / "arms").mkdir(parents=True)
    (folder / "arms" / "mine.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return folder


def at(folder: Path, arm: str, arms: str) -> ClaimTest:
    changes = {'arm = "no-decay"': f'arm = "{arm}"', PLAN_ARMS: f"arms = [{arms}]"}
    return ClaimTest(name_or_file=str(write_claim(folder / "mine.toml", **changes)))


@pytest.mark.parametrize("arm", ["arms/mine.py", "./arms/mine.py:HalvedRate", "halved-rate"])
def test_an_arm_is_a_file_beside_the_claim_or_its_label(folder: Path, arm: str) -> None:
    test = at(folder, arm, '"arms/mine.py"')
    assert test.arms == ["baseline", "halved-rate"]
    assert test.arm == "halved-rate"
    (spec,) = test.configs[-1].interventions
    assert spec.file == f"{folder / 'arms' / 'mine.py'}:HalvedRate"


def test_the_runs_of_such_an_arm_are_judged(folder: Path) -> None:
    test = at(folder, "halved-rate", '"arms/mine.py"')
    runs = folder / "runs"
    runs.mkdir()
    for config in test.configs:
        simple_run(runs, config, loss=(5.0 if config.arm == "baseline" else 4.5) + config.seed / 1000)
    done = call("verify", "--claim", folder / "mine.toml", "--runs-dir", runs, "--no-train", "--json")
    assert (done.code, done.json["claim"]["arm"]) == (ExitCode.SUPPORTED, "halved-rate")


def test_an_arm_of_a_plan_file_is_a_file_beside_it_and_one_that_is_typed_is_not(folder: Path) -> None:
    plan = folder / "plan.toml"
    plan.write_text('recipe = "quick"\narms = ["arms/mine.py"]\n[factors.f]\noff = ""\non = "arms/mine.py"\n')
    assert [config.arm for config in plan_configs(str(plan), {})] == ["halved-rate", "baseline"]
    typed = {"arms": ("arms/mine.py",), "factors": {}}
    with pytest.raises(ConfigError, match=re.escape(f"{folder.parent}/arms/mine.py: no such file")):
        plan_configs(str(plan), typed)
    moved = plan.rename(folder.parent / "plan.toml")
    with pytest.raises(ConfigError, match=re.escape(f"plan {moved}: arms: {folder.parent}/arms/mine.py: no such file")):
        plan_configs(str(moved), {})


def test_a_recipe_that_is_a_file_is_beside_the_file_that_names_it(folder: Path) -> None:
    (folder / "mine.toml").write_text('extends = "quick"\nsteps = 7\n', encoding="utf-8")
    (folder / "plan.toml").write_text('recipe = "./mine.toml"\n', encoding="utf-8")
    (folder / "search.toml").write_text(
        'recipe = "mine.toml"\nmin_tokens = 128\nmax_tokens = 128\nchoices = {arm = ["", "no-decay"]}\n',
        encoding="utf-8",
    )
    claim = write_claim(folder / "claim.toml", **{'recipe = "quick"': 'recipe = "mine.toml"'})
    [planned] = plan_configs("a+b/plan.toml", {})
    searched = load_search("a+b/search.toml", {}).all_trials()
    claimed = ClaimTest(name_or_file=str(claim)).configs
    assert (planned.recipe, planned.steps, len(searched)) == ("mine", 7, 2)
    assert {config.recipe for config in claimed} == {"mine"}
    # one that is typed is not
    with pytest.raises(ConfigError, match=r"mine\.toml: cannot read: No such file"):
        plan_configs("a+b/plan.toml", {"recipe": "mine.toml"})


def with_recipe(folder: Path, text: str, request: PlanRequest | None = None) -> ClaimTest:
    """A claim whose recipe is a file beside it, without sizes and steps of its own."""
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    changes = {'recipe = "quick"\nsizes = [64]\nsteps = 1000\n': 'recipe = "mine.toml"\n'}
    file = write_claim(folder / "claim.toml", **changes)
    return ClaimTest(name_or_file=str(file), request=request or PlanRequest())


@pytest.mark.parametrize("label", ["", 'recipe = "quick"\n', 'recipe = "lab"\n'])
def test_given_runs_are_those_of_the_recipe_whatever_it_calls_itself(folder: Path, label: str) -> None:
    test = with_recipe(folder, f'{label}extends = "quick"\nsteps = 9\n[schedule]\npeak_learning_rate = 2e-3\n')
    assert [config.hash for config in test.planned_like(test.configs)] == [config.hash for config in test.configs]


def test_a_requested_recipe_of_the_same_name_is_the_one(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "mine.toml").write_text('extends = "quick"\nsteps = 8\n', encoding="utf-8")
    request = PlanRequest(recipe=str(folder / "other" / "mine.toml"))
    test = with_recipe(folder, 'extends = "quick"\nsteps = 9\n', request)
    assert {config.steps for config in test.configs} == {8}
    assert [config.hash for config in test.planned_like(test.configs)] == [config.hash for config in test.configs]


def test_another_spelling_of_the_recipe_keeps_sizes_and_steps(folder: Path) -> None:
    (folder / "mine.toml").write_text('extends = "quick"\n', encoding="utf-8")
    file = write_claim(folder / "claim.toml", **{'recipe = "quick"': 'recipe = "arms/../mine.toml"', "1000": "900"})
    test = ClaimTest(name_or_file=str(file), request=PlanRequest(recipe="a+b/mine.toml"))
    assert {config.steps for config in test.configs} == {900}


MISTAKES: dict[str, tuple[str, str, str]] = {
    "arms": (PLAN_ARMS, 'arms = ["row-scal"]', "plan.arms: unknown intervention 'row-scal'; did you mean"),
    "no recipe": ('recipe = "quick"', 'recipe = "no.toml"', "plan.recipe: recipe file {folder}/no.toml: cannot read"),
    "home": ('recipe = "quick"', 'recipe = "~nobody-x/a.toml"', "plan.recipe: ~nobody-x/a.toml: no user 'nobody-x'"),
    "no file": (PLAN_ARMS, 'arms = ["no.py"]', "plan.arms: {folder}/no.py: no such file"),
    "settings": (
        PLAN_ARMS,
        'arms = ["group-scale:siz=64"]',
        "plan.arms: intervention group-scale: unknown field",
    ),
    "recipe": (
        'recipe = "quick"',
        'recipe = "quik"',
        "plan.recipe: unknown recipe 'quik'; did you mean 'quick'? Built",
    ),
    "override": ('["probe', '["prob', "plan.overrides: 'prob.eval_every_steps=100': unknown field"),
    "value": ("=100", "=-1", "plan: recipe quick: probe.eval_every_steps: input should be"),
    "arm": ('arm = "no-decay"', 'arm = "no-deca"', "arm: unknown intervention 'no-deca'; did you mean 'no-decay'?"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_names_file_and_field(folder: Path, kind: str) -> None:
    old, new, message = MISTAKES[kind]
    file = write_claim(folder / "mine.toml", **{old: new})
    done = call("verify", "--claim", file, "--dry-run")
    assert done.code == ExitCode.USAGE
    assert done.err.startswith(f"error: claim {file}: {message.format(folder=folder)}")
    assert done.err.count("\n") == 1


def test_a_mistake_of_the_command_line_is_told_as_one(folder: Path) -> None:
    file = write_claim(folder / "mine.toml")
    done = call("verify", "--claim", file, "--dry-run", "--set", "prob.positions=3")
    assert done.err.startswith("error: --set 'prob.positions=3': unknown field")
    assert call("verify", "--claim", file, "--dry-run", "--recipe", "quik").err.startswith(
        "error: unknown recipe 'quik'"
    )
