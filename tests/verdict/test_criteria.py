"""Criteria as data: what a file may declare, and the errors for an invalid one."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import healthy_run

from bitnetctl.errors import ConfigError
from bitnetctl.verdict import Criteria, Outcome, criteria_names, judge, load_criteria, parse_criteria
from bitnetctl.verdict.checks.level import LevelCheck
from bitnetctl.verdict.checks.twin import TwinCheck
from bitnetctl.verdict.criteria import KINDS

SMALL = """
title = "More than 100 distinct predictions"
[seeds]
rule = "rate"
max_failure_rate = 0.25
[[checks]]
kind = "finite"
[[checks]]
kind = "finished"
[[checks]]
kind = "level"
measure = "UniquePredictions"
last = 3
supported_above = 100
refuted_below = 20
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Criteria]:
    def write(text: str) -> Criteria:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return load_criteria(path)

    return write


def test_the_built_in_criteria() -> None:
    assert criteria_names() == ["origin", "sound"]
    assert [load_criteria(name).name for name in criteria_names()] == ["origin", "sound"]


def test_origin_states_the_founding_document() -> None:
    origin = load_criteria("origin")
    (level,) = origin.of_kind(LevelCheck)
    assert (level.measure, level.supports, level.refutes, level.last) == ("UniquePredictions", "> 50", "< 10", 1)
    assert origin.finished.min_steps == 20_000
    assert origin.seeds.rule == "every"
    assert origin.measures == ("UniquePredictions",)
    needs = {level.level: [(run.size, run.steps) for run in level.runs] for level in origin.evidence}
    assert needs == {
        "minimum": [(256, 20_000)],
        "strong": [(256, 20_000), (512, 20_000)],
        "comprehensive": [(256, 20_000), (512, 20_000), (768, 30_000)],
    }


def test_sound_requires_diversity_and_skill_in_more_than_half_of_the_runs() -> None:
    sound = load_criteria("sound")
    assert {"DiversityRatio", "TopShare", "Skill", "ContextInformation", "HeldOutLoss"} == set(sound.measures)
    assert (sound.seeds.rule, sound.seeds.max_failure_rate, sound.seeds.error_rate) == ("rate", 0.5, 0.05)
    skill = next(check for check in sound.of_kind(LevelCheck) if check.measure == "Skill" and check.at == "end")
    assert skill.supporting > 0
    assert [check.intervention for check in sound.of_kind(TwinCheck)] == ["full-precision"]


def test_a_custom_file(load: Callable[[str], Criteria]) -> None:
    mine = load(SMALL)
    assert (mine.name, mine.title) == ("mine", "More than 100 distinct predictions")
    assert [check.label for check in mine.checks] == ["finite", "finished", "level UniquePredictions"]


def test_the_hash_covers_what_decides(load: Callable[[str], Criteria]) -> None:
    mine = load(SMALL)
    assert len(mine.hash) == 64
    renamed = SMALL.replace('title = "More', '# a comment\ntitle = "Many more').replace(
        'kind = "level"', 'kind = "level"\nname = "count"\nat = "end"'
    )
    assert load(renamed).hash == mine.hash
    for old, new in (
        ("supported_above = 100", "supported_above = 101"),
        ("max_failure_rate = 0.25", "max_failure_rate = 0.3"),
        ('rule = "rate"', 'rule = "rate"\nconfidence = 0.9'),
        ("last = 3", 'last = 3\nclaim = "mean"'),
        ("last = 3", "last = 2"),
        ('kind = "finished"', 'kind = "finished"\nmin_steps = 5'),
    ):
        assert old in SMALL
        assert load(SMALL.replace(old, new)).hash != mine.hash


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "supported_above",
            "supported_abov",
            "checks.3 (level): unknown field 'supported_abov'; did you mean 'supported_above'?",
        ),
        ('"level"', '"levle"', "checks.3: kind: unknown 'levle'; did you mean 'level'?"),
        ('kind = "level"\n', "", "checks.3: kind: missing; known: finite, finished, "),
        (
            '"UniquePredictions"',
            '"UniquePrediction"',
            "checks.3 (level): measure: unknown 'UniquePrediction'; did you mean",
        ),
        ('"UniquePredictions"', '"zzz"', "checks.3 (level): measure: unknown 'zzz'; known: Loss, "),
        ("last = 3", "last = 0", "checks.3 (level): last: input should be greater than 0, got 0"),
        ("supported_above = 100", "supported_above = nan", "checks.3 (level): supported_above: "),
        (
            "supported_above = 100\n",
            "",
            "checks.3 (level): give supported_above and refuted_below, or supported_below and",
        ),
        ("refuted_below = 20", "supported_below = 20", "checks.3 (level): give supported_above and refuted_below"),
        (
            "refuted_below = 20",
            "refuted_below = 200",
            "checks.3 (level): refuted_below 200 is more than supported_above 100",
        ),
        (
            "supported_above = 100\nrefuted_below = 20",
            "supported_below = 100\nrefuted_above = 20",
            "checks.3 (level): refuted_above 20 is less than supported_below 100",
        ),
        (
            "max_failure",
            "max_failures",
            "unknown field 'seeds.max_failures_rate'; did you mean 'seeds.max_failure_rate'?",
        ),
        ("= 0.25", "= 1.0", "seeds.max_failure_rate: input should be less than or equal to 0.999999, got 1.0"),
        ('rule = "rate"', 'rule = "most"', "seeds.rule: input should be 'every' or 'rate', got 'most'"),
        ("last = 3", "range = [0, 200]", 'checks.3 (level): range is for claim = "mean"'),
        (
            "last = 3",
            'claim = "mean"\nrange = [0, 100]',
            "checks.3 (level): range: 0 to 100 must hold both thresholds inside",
        ),
        (
            'rule = "rate"\nmax_failure_rate = 0.25',
            '[[checks]]\nkind = "paired"\nmeasure = "Skill"\nbetter = "higher"',
            "checks: 'paired Skill' is a statement over seeds and needs seeds.rule = \"rate\"",
        ),
        (
            'kind = "finished"',
            'kind = "finished"\n[[checks]]\nkind = "paired"\nmeasure = "Skill"\nbetter = "higher"\nrange = [-1, 1]',
            'checks.3 (paired): range is for claim = "mean"',
        ),
        (
            'kind = "finished"',
            'kind = "finished"\n[[checks]]\nkind = "paired"\nmeasure = "Skill"\nbetter = "more"',
            "checks.3 (paired): better: input should be 'higher' or 'lower', got 'more'",
        ),
        (
            'kind = "finite"',
            'kind = "finite"\ncolumns = ["Skill"]',
            "checks.1 (finite): columns: unknown 'Skill'; known: Loss, ",
        ),
        (
            'kind = "finite"',
            'kind = "probe"',
            "checks: exactly one of kind 'finite' is needed, or a failed run could pass",
        ),
        ('kind = "finished"', 'kind = "probe"', "checks: exactly one of kind 'finished' is needed"),
        ('kind = "finished"', 'kind = "finite"\nname = "b"', "checks: exactly one of kind 'finite' is needed"),
        ('title = "', 'name = "', "unknown field 'name'; the file's name is the name"),
        ("title =", "titel =", "unknown field 'titel'; did you mean 'title'?"),
        ("[seeds]", "[[seeds]", "not valid TOML: "),
    ],
)
def test_an_invalid_file_gets_a_one_line_error(
    load: Callable[[str], Criteria], tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in SMALL
    with pytest.raises(ConfigError) as caught:
        load(SMALL.replace(old, new))
    text = str(caught.value)
    assert text.startswith(f"criteria {tmp_path / 'mine.toml'}: {message}")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "checks: "),
        ({"checks": 3}, "checks: expected [[checks]] tables, got 3"),
        ({"checks": [3]}, "checks.1: expected a table, got 3"),
        ({"checks": [{"kind": 3}]}, "checks.1: kind: unknown 3; known: "),
        ({"checks": [{"kind": "finite"}, {"kind": "finished"}]}, "checks: at least one of kind 'level', 'paired', "),
    ],
)
def test_an_invalid_tree_gets_an_error(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^criteria: ") as caught:
        parse_criteria(tree)
    assert str(caught.value).removeprefix("criteria: ").startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        # these had another meaning before: an old file fails and is not judged differently
        ('kind = "recovery"\ncollapsed_below = 10', "checks.4 (recovery): within: field required"),
        ('kind = "lasting"\nshare = 0.5', "checks.4 (lasting): collapsed_below: field required"),
        ('kind = "lasting"', "checks.4 (lasting): collapsed_below: field required"),
        ('kind = "steady"\nfactor = 2.0', "checks.4 (steady): healthy_above: field required"),
        ('kind = "steady"', "checks.4 (steady): healthy_above: field required"),
        (
            'kind = "steady"\nhealthy_above = 100\nnormal_factor = 3',
            "checks.4 (steady): normal_factor 3 is more than erratic_factor 2",
        ),
        (
            'kind = "steady"\nhealthy_above = 100\nfloor = 100',
            "checks.4 (steady): floor 100 is not less than healthy_above 100",
        ),
    ],
)
def test_shape_checks_say_what_they_measure(load: Callable[[str], Criteria], fields: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f'{SMALL}[[checks]]\nmeasure = "UniquePredictions"\n{fields}\n')
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_checks_of_one_name_are_refused(load: Callable[[str], Criteria]) -> None:
    level = SMALL[SMALL.index('[[checks]]\nkind = "level"') :]
    with pytest.raises(ConfigError, match="two are called 'level UniquePredictions'; give one a name"):
        load(SMALL + level)
    assert len(load(SMALL + level + 'name = "other"\n').of_kind(LevelCheck)) == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot read: No such file"):
        load_criteria(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not UTF-8"):
        load_criteria(tmp_path / "latin.toml")
    with pytest.raises(
        ConfigError, match=r"unknown criteria 'orign'; did you mean 'origin'.*origin, sound; or give a FILE"
    ):
        load_criteria("orign")


@pytest.mark.parametrize(
    ("fields", "value", "outcome"),
    [
        ({"supported_above": 50, "refuted_below": 10}, 50.5, Outcome.SUPPORTED),
        ({"supported_above": 50, "refuted_below": 10}, 50, Outcome.INCONCLUSIVE),
        ({"supported_above": 50, "refuted_below": 10}, 10, Outcome.INCONCLUSIVE),
        ({"supported_above": 50, "refuted_below": 10}, 9, Outcome.REFUTED),
        ({"supported_below": 0.25, "refuted_above": 0.5}, 0.2, Outcome.SUPPORTED),
        ({"supported_below": 0.25, "refuted_above": 0.5}, 0.25, Outcome.INCONCLUSIVE),
        ({"supported_below": 0.25, "refuted_above": 0.5}, 0.5, Outcome.INCONCLUSIVE),
        ({"supported_below": 0.25, "refuted_above": 0.5}, 0.6, Outcome.REFUTED),
        ({"supported_above": 0.0, "refuted_below": 0.0}, 0.0, Outcome.INCONCLUSIVE),
    ],
)
def test_thresholds_are_strict(fields: dict[str, float], value: float, outcome: Outcome) -> None:
    assert LevelCheck.model_validate({"measure": "Skill", **fields}).outcome(value) is outcome


def test_every_kind_is_documented_and_names_itself() -> None:
    for kind, cls in KINDS.items():
        assert cls.__doc__
        assert cls.model_fields["kind"].default == kind


def test_the_rule_of_the_first_version_is_judged_with_an_error_rate(
    load: Callable[[str], Criteria], tmp_path: Path
) -> None:
    rule = 'rule = "share"\nmin_seeds = 3\nrefuted_share = 0.25'
    old = load(SMALL.replace('rule = "rate"\nmax_failure_rate = 0.25', rule))
    new = load(SMALL)
    assert (old.seeds.rule, old.seeds.max_failure_rate, old.hash) == ("rate", 0.25, new.hash)
    runs = [healthy_run(tmp_path, seed) for seed in range(3)]
    by_old, by_new = (judge(runs, criteria) for criteria in (old, new))
    assert by_old.outcome is by_new.outcome is Outcome.INCONCLUSIVE
    [note] = set(by_old.notes) - set(by_new.notes)
    assert note == 'seeds.rule = "share" controlled no error rate and is judged as "rate" with max_failure_rate = 0.25'


def test_the_checks_that_the_page_shows_are_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "criteria.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    rule = first[: first.index("[[checks]]")]
    completion = first[len(rule) : first.rindex("[[checks]]")]
    assert parse_criteria(tomllib.loads(first)).checks[-1].kind == "level"
    kinds = [check.kind for text in others for check in parse_criteria(tomllib.loads(rule + completion + text)).checks]
    assert [kind for kind in kinds if kind not in ("finite", "finished")] == ["equivalent", "interaction", "level"]
