"""Claim files: fields, hashes, mistakes; every built-in one."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnetctl.claims import Claim, claim_names, load_claim, parse_claim
from bitnetctl.errors import ConfigError
from bitnetctl.verdict import Outcome

TEXT = """
title = "Half the rate is better"
source = "a paper"
claimed = "Half the rate gives a lower loss."
scale = "hidden 1024, 1B tokens"
arm = "reduced-lr:factor=0.5"
limits = ["that any lower rate is better"]

[plan]
recipe = "quick"
seeds = 6
arms = ["reduced-lr:factor=0.5"]

[criteria]
seeds = { rule = "rate" }
checks = [
  { kind = "finite" },
  { kind = "finished" },
  { kind = "paired", measure = "HeldOutLoss", better = "lower", margin = 0.05 },
]

[conclusions]
supported = "Take half the rate."
refuted = "Keep the rate."
inconclusive = "More seeds."
"""


@pytest.fixture
def tree() -> dict[str, Any]:
    return tomllib.loads(TEXT)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a claim file called `mine.toml`."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_is_read_with_its_name(write: Callable[[str], Path]) -> None:
    claim = load_claim(write(TEXT))
    assert (claim.name, claim.title) == ("mine", "Half the rate is better")
    assert claim.arm == "reduced-lr:factor=0.5"
    assert claim.plan == {"recipe": "quick", "seeds": 6, "arms": ["reduced-lr:factor=0.5"]}
    assert (claim.criteria.name, claim.criteria.references) == ("mine", ("baseline",))
    assert claim.limits == ("that any lower rate is better",)


def test_each_outcome_has_its_conclusion(tree: dict[str, Any]) -> None:
    conclusions = parse_claim(tree).conclusions
    assert [conclusions.of(outcome) for outcome in Outcome] == [
        "Take half the rate.",
        "Keep the rate.",
        "More seeds.",
        "Nothing: the set-up could not have shown it.",
    ]


def _hash(text: str) -> str:
    return parse_claim(tomllib.loads(text)).hash


def test_the_hash_is_that_of_what_decides() -> None:
    before = _hash(TEXT)
    for old, new in (
        ("Half the rate is better", "Better"),
        ("a paper", "another"),
        ("Half the rate gives", "It gives"),
        ("hidden 1024", "hidden 512"),
        ("any lower", "every"),
        ("Take half", "Take 0.5 times"),
        ("[plan]\n", '[plan]\ndescription = "a plan"\n'),
    ):
        assert old in TEXT
        assert _hash(TEXT.replace(old, new)) == before
    for old, new in (
        ("seeds = 6", "seeds = 8"),
        ('recipe = "quick"', 'recipe = "origin"'),
        ("margin = 0.05", "margin = 0.04"),
        ('arm = "reduced-lr:factor=0.5"', 'arm = "reduced-lr"'),
        ('rule = "rate"', 'rule = "rate", confidence = 0.9'),
    ):
        assert old in TEXT
        assert _hash(TEXT.replace(old, new)) != before


def test_an_arm_is_written_as_its_label(tree: dict[str, Any]) -> None:
    tree["arm"] = " reduced-lr:factor=0.5 + no-decay"
    assert parse_claim(tree).arm == "reduced-lr:factor=0.5+no-decay"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Half the rate is better"', "", "claim FILE: title: field required"),
        ('title = "Half the rate is better"', 'title = ""', "title: string should have at least 1 character"),
        ('source = "a paper"', 'sourc = "a paper"', "unknown field 'sourc'; did you mean 'source'?"),
        ('source = "a paper"', 'source = "a paper"\nname = "x"', "unknown field 'name'; the file's name is the name"),
        ("[conclusions]", "[conclusion]", "unknown field 'conclusion'"),
        ('refuted = "Keep the rate."', "", "claim FILE: conclusions.refuted: field required"),
        ('measure = "HeldOutLoss"', 'measure = "HeldOut"', "claim FILE: criteria: checks.3 (paired): measure: unknown"),
        ('kind = "paired"', 'kind = "pared"', "claim FILE: criteria: checks.3: kind: unknown 'pared'; did you mean"),
        (
            "[criteria]",
            "[criterion]",
            "claim FILE: criteria: expected a table [criteria] as in a criteria",
        ),
        ('seeds = { rule = "rate" }', "", "is a statement over seeds and needs seeds.rule"),
        ("seeds = 6", "seeds = nan", "claim FILE: plan.seeds.float: input should be a finite number"),
        ("seeds = 6", "seeds = 2026-01-01", "claim FILE: plan.seeds"),
        ("[plan]", "[[plan]]", "claim FILE: plan: expected a table"),
        ('arm = "reduced-lr:factor=0.5"', 'arm = "baseline"', "claim FILE: arm: the criteria compare others with base"),
        ('limits = ["that', 'limits = "that', "not valid TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_field(
    write: Callable[[str], Path], old: str, new: str, message: str
) -> None:
    assert TEXT.count(old) == 1
    path = write(TEXT.replace(old, new))
    with pytest.raises(ConfigError) as raised:
        load_claim(path)
    assert message.replace("FILE", str(path)) in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_is_told_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"unknown claim 'coupled-decay'; did you mean 'coupled-decay-cause'\?"):
        load_claim("coupled-decay")


@pytest.mark.parametrize("name", claim_names())
def test_a_built_in_claim_says_all_that_it_can(name: str) -> None:
    claim = load_claim(name)
    assert isinstance(claim, Claim)
    assert claim.name == name
    assert claim.scale
    assert claim.limits
    texts = [claim.title, claim.claimed, claim.source, *claim.limits, *claim.conclusions.model_dump().values()]
    assert all(len(text) > 20 and "\n" not in text for text in texts)
    assert len(set(texts)) == len(texts)


def test_the_example_of_the_documentation_is_a_claim() -> None:
    text = (Path(__file__).parents[2] / "docs" / "claims.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    claim = parse_claim(tomllib.loads(example))
    documented = set(re.findall(r"^\| `\[?(\w+)\]?` \|", text, re.MULTILINE))
    assert documented == Claim.model_fields.keys() - {"name"} == claim.model_fields_set - {"name"}
