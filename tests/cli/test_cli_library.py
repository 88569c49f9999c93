"""`bitnetctl recipes`, `plans`, `searches`, `criteria` and `claims`."""

import tomllib
from pathlib import Path

import pytest
from calling import call

from bitnetctl.config import build_config
from bitnetctl.errors import ExitCode

KINDS = {
    "recipes": "quick",
    "plans": "root-cause",
    "searches": "small",
    "criteria": "sound",
    "claims": "coupled-decay-cause",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_built_in_is_listed_with_what_it_is(kind: str) -> None:
    rows = call(kind, "list", "--json").json
    assert KINDS[kind] in [row["name"] for row in rows]
    assert all(len(row["summary"]) > 20 for row in rows)
    out = call(kind, "list").out
    assert all(row["name"] in out and row["summary"].split()[-1] in out for row in rows)


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_one_is_shown_as_its_file(kind: str, name: str) -> None:
    shown = call(kind, "show", name)
    assert tomllib.loads(shown.out) == call(kind, "show", name, "--json").json


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_a_new_file_can_be_used_at_once(kind: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "my own.toml"
    made = call(kind, "new", str(file), "--from", name)
    assert (made.code, made.err) == (ExitCode.SUPPORTED, "")
    assert str(file) in made.out
    assert f"'{file}'" in made.out.splitlines()[-1]
    assert call(kind, "show", str(file)).code == ExitCode.SUPPORTED
    before = file.read_bytes()
    assert "exists already" in call(kind, "new", str(file), "--from", name).error
    assert file.read_bytes() == before


def test_a_new_recipe_extends_the_other(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    call("recipes", "new", str(file), "--from", "b158")
    config = build_config(str(file))
    assert config.recipe == "mine"
    assert config.hash == build_config("b158").hash


def test_a_new_recipe_extends_a_file_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('extends = "quick"\nsteps = 7\n', encoding="utf-8")
    Path("other").mkdir()
    assert call("recipes", "new", "other/new.toml", "--from", "mine.toml").code == ExitCode.SUPPORTED
    assert build_config("other/new.toml").steps == 7


def test_a_new_file_that_lacks_what_it_names_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text('extends = "quick"\n', encoding="utf-8")
    Path("plan.toml").write_text('recipe = "recipe.toml"\n', encoding="utf-8")
    Path("other").mkdir()
    done = call("plans", "new", "other/plan.toml", "--from", "plan.toml")
    assert done.code == ExitCode.USAGE
    assert "plan other/plan.toml: recipe: recipe file other/recipe.toml: cannot read" in done.error
    assert list(Path("other").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recipes", "show", "qick"), "did you mean 'quick'?"),
        (("criteria", "new", "mine", "--from", "sound"), "ends in .toml"),
        (("plans", "new", "mine.toml", "--from", "nope"), "unknown plan 'nope'"),
        (("plans", "show", "none.toml"), "No such file"),
    ],
)
def test_mistakes_say_what_there_is(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.code == ExitCode.USAGE
    assert message in done.error
    assert list(tmp_path.iterdir()) == []
