"""`bitnetctl power`."""

from pathlib import Path
from typing import Any

import pytest
from calling import call
from claim_files import write_claim

from bitnetctl.errors import ExitCode

pytestmark = pytest.mark.usefixtures("plain_environment")

CRITERIA = """
[seeds]
rule = "rate"
[[checks]]
kind = "finite"
[[checks]]
kind = "finished"
[[checks]]
measure = "HeldOutLoss"
"""


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    path = tmp_path / "better.toml"
    path.write_text(CRITERIA + 'kind = "paired"\nbetter = "lower"\nmargin = 0.1\n', encoding="utf-8")
    return path


@pytest.fixture
def equivalent(tmp_path: Path) -> Path:
    path = tmp_path / "equal.toml"
    path.write_text(CRITERIA + 'kind = "equivalent"\nwithin = 0.1\n', encoding="utf-8")
    return path


def test_the_seeds_that_a_claim_needs(paired: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = call("power", "--criteria", paired, "--effect", "1.5")
    assert done.code == ExitCode.SUPPORTED
    lines = done.out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["seeds", "power", "heavy", "tails"],
        ["5", "0.708", "0.611"],
        ["8", "0.905", "0.832", "least", "for", "0.8"],
    ]
    assert "8 seeds for a power of 0.8; fix the number before looking" in lines
    text = " ".join(done.out.split())
    assert "assumed: a true effect of 1.5 sd beyond the margin; normal noise, or Student's t" in text
    assert "every run ends healthy, where the claim needs a failure rate below 50%; 1 arm at one size" in text
    assert max(len(line) for line in lines[:3]) <= 80


def test_json_has_the_same_figures(paired: Path) -> None:
    tree: dict[str, Any] = call("power", "--criteria", paired, "--effect", "0.25", "--sd", "0.1", "--json").json
    same = call("power", "--criteria", paired, "--effect", "1.5", "--json").json
    assert tree["seeds_needed"] == tree["seeds_needed_heavy_tails"] == 8
    assert [row["power"] for row in tree["rows"]] == pytest.approx([row["power"] for row in same["rows"]])
    assert (tree["effect"], tree["sd"], tree["arms"], tree["seeds_planned"]) == (0.25, 0.1, 1, None)
    assert call("power", "--criteria", paired, "--effect", "1.5", "--arms", "2", "--json").json["seeds_needed"] == 9


def test_equivalence_is_asked_for_no_difference_by_default(equivalent: Path) -> None:
    tree = call("power", "--criteria", equivalent, "--sd", "0.05", "--json").json
    assert (tree["effect"], tree["seeds_needed"]) == (0.0, 8)
    farther = call("power", "--criteria", equivalent, "--sd", "0.05", "--effect", "0.05", "--json").json
    assert farther["seeds_needed"] > 8


def test_a_claim_that_is_not_true_has_no_power(paired: Path) -> None:
    done = call("power", "--criteria", paired, "--effect", "0.1", "--sd", "0.1")
    assert "no number of seeds has a power of 0.8" in done.out


def test_a_claim_brings_its_arms_and_its_planned_seeds() -> None:
    tree = call("power", "--claim", "coupled-decay-cause", "--effect", "2", "--json").json
    planned = tree["seeds_planned"]
    assert planned in [row["seeds"] for row in tree["rows"]]
    assert tree["arms"] == 1
    assert "planned" in call("power", "--claim", "coupled-decay-cause", "--effect", "2").out


def test_a_claim_brings_its_sizes() -> None:
    done = call("power", "--claim", "decay-zero-cures", "--effect", "2", "--json").json
    assert done["sizes"] == 4
    assert "at 4 sizes, each of which has to be supported" in done["assumed"]


def test_a_simulated_power_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mean.toml"
    path.write_text(CRITERIA + 'kind = "paired"\nbetter = "lower"\nclaim = "mean"\n', encoding="utf-8")
    assert "; simulated, standard error 0.0" in call("power", "--criteria", path, "--effect", "3").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--effect", "1"], "give either --claim or --criteria"),
        (["--criteria", "sound", "--claim", "x"], "give either --claim or --criteria"),
        (["--criteria", "sound", "--effect", "1"], "criteria sound compares no arms"),
        (["--criteria", "{paired}"], "give --effect"),
        (["--criteria", "{paired}", "--effect", "1", "--power", "1"], "--power 1: give a probability between 0 and 1"),
        (["--criteria", "{paired}", "--effect", "1", "--sd", "0"], "--sd 0: give a standard deviation above 0"),
        (["--criteria", "{paired}", "--effect", "1", "--sd", "inf"], "--sd inf: give a standard deviation above 0"),
        (["--criteria", "{paired}", "--effect", "1", "--sd", "nan"], "--sd nan: give a standard deviation above 0"),
        (["--criteria", "{paired}", "--effect", "nan"], "--effect nan: give a finite number"),
        (["--criteria", "{paired}", "--effect", "inf"], "--effect inf: give a finite number"),
        (["--criteria", "{paired}", "--effect", "1", "--arms", "1" + "0" * 400], "--arms"),
        (["--criteria", "{paired}", "--effect=-inf"], "--effect -inf: give a finite number"),
        (["--criteria", "{paired}", "--effect", "-1"], "--effect -1: a negative effect is one against the claim"),
        (["--criteria", "{equivalent}"], "so give the standard deviation of the pairs in it (--sd)"),
    ],
)
def test_a_mistake_is_one_line(paired: Path, equivalent: Path, arguments: list[str], message: str) -> None:
    done = call("power", *(one.format(paired=paired, equivalent=equivalent) for one in arguments))
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert message in done.err


def test_a_claim_that_names_what_is_not_there_is_refused(tmp_path: Path) -> None:
    file = write_claim(tmp_path / "mine.toml", **{'recipe = "quick"': 'recipe = "no.toml"'})
    done = call("power", "--claim", file)
    assert done.code == ExitCode.USAGE
    assert f"claim {file}: plan.recipe: recipe file {tmp_path}/no.toml: cannot read" in done.error
