"""The calibration of verdicts in its short form: it keeps the promises, and notices where a rule does not."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import agreement, counts, draws, means, paired, plans, rates
from benchmarks.calibration.__main__ import PARTS, main
from benchmarks.calibration.tables import Table, markdown, rate_text
from bitnetctl.verdict import parse_criteria
from bitnetctl.verdict.rule import PValues, Tally, failure_rate_test, holm_levels

OWN = ("rates", "plans", "means", "paired", "agreement")
PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"
SOME = 4_000


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget the tabulated p-values before and after."""
    for table in (counts.p_by_count, paired.p_by_wins):
        table.cache_clear()
    yield
    for table in (counts.p_by_count, paired.p_by_wins):
        table.cache_clear()


def test_the_short_form_keeps_every_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tables.json"
    assert main(["--quick", "--part", ",".join(OWN), "--json", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    document = json.loads(path.read_text(encoding="utf-8"))
    assert (document["faults"], list(document["parts"])) == ([], list(OWN))
    for part, content in document["parts"].items():
        assert f"{part}: {content['minutes']:.2f} minutes" in printed.out
        for table in content["tables"]:
            assert f"**{table['title']}.** {table['note']}" in printed.out
            assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    compared = document["parts"]["agreement"]["tables"][0]["rows"]
    supported, refuted, inconclusive, differing = (sum(int(row[index]) for row in compared) for index in (3, 4, 5, 6))
    assert min(supported, refuted, inconclusive) > 5
    assert differing == 0


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--part", "rates,luck"])
    assert "unknown luck" in capsys.readouterr().err
    assert set(OWN) < set(PARTS)


# a rule that errs more often than it says


@pytest.mark.usefixtures("fresh")
def test_a_rule_that_is_too_lenient_breaks_the_promise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lenient(tally: Tally, max_rate: float) -> PValues:
        p = failure_rate_test(tally, max_rate)
        return PValues(p.supporting / 4, p.refuting)

    monkeypatch.setattr(counts, "failure_rate_test", lenient)
    for table in (rates.median_table(SOME), rates.true_rate_table(SOME), rates.mixed_table(SOME)):
        assert table.faults
    monkeypatch.setattr(rates, "tables", lambda *, quick: [rates.median_table(SOME)])
    assert main(["--part", "rates"]) == 1
    assert "broken promise: rates: Wrong verdicts with the median run at a threshold" in capsys.readouterr().err


def test_a_test_of_the_mean_that_assumes_normal_noise_breaks_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def student(values_SN: draws.Floats, threshold: float, limit: float) -> draws.Floats:
        supporting, _ = paired.student_p((values_SN - threshold)[:, None, :])
        return np.broadcast_to(supporting, values_SN.shape)

    monkeypatch.setattr(means, "betting_p", student)
    faults = " ".join(means.error_table(SOME).faults)
    assert "left-skewed" in faults
    assert "normal" not in faults


def test_levels_that_are_not_shared_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "holm_levels", lambda p_values, alpha, tests: [alpha] * len(p_values))
    with pytest.raises(AssertionError, match="Holm"):
        rates.median_table(SOME)


@pytest.mark.usefixtures("fresh")
def test_a_gate_that_counts_one_pair_too_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "sign_test", lambda pairs: PValues(0.5 ** (pairs.wins + 1), 1.0))
    assert paired.median_table(SOME).faults
    # with one wrong gate the other still holds the mean
    assert not paired.mean_table(SOME).faults
    monkeypatch.setattr(paired, "student_p", lambda improvements: np.zeros((2, *improvements.shape[:2])))
    assert paired.mean_table(SOME).faults


def test_a_judge_that_decides_otherwise_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "decisions", lambda supporting, refuting: np.zeros(supporting.shape, dtype=np.int64))
    table = agreement.agreement_table(agreement.Fleet(tmp_path), 3)
    assert {fault.split(",")[0] for fault in table.faults} == {"failure rate", "level", "paired"}


def test_support_that_an_arm_without_failures_loses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fickle(seeds: int, max_rate: float, absent: int = 0) -> tuple[draws.Floats, draws.Floats]:
        supporting, refuting = counts.p_by_count(seeds, max_rate, absent)
        return (np.ones_like(supporting) if seeds == 9 else supporting), refuting

    assert not plans.efficient_table().faults
    monkeypatch.setattr(plans, "p_by_count", fickle)
    assert plans.efficient_table().faults == ["9 seeds: more seeds take support from an arm without failures"]


# known values


def test_holm_for_many_arms_is_that_of_the_product() -> None:
    p_SK = np.random.default_rng(0).choice([0.001, 0.0062, 0.0125, 0.03, 0.05, 0.4, 1.0], (SOME, 4))
    for row, ours in zip(p_SK.tolist(), draws.rejected(p_SK).tolist(), strict=True):
        assert ours == [p < level for p, level in zip(row, holm_levels(row, 0.05, 4), strict=True)]


@pytest.mark.parametrize("noise", [*rates.NOISES, *paired.NOISES], ids=lambda noise: noise.name)
def test_noises_have_the_median_and_the_mean_that_they_say(noise: draws.Noise) -> None:
    values = noise.draw(np.random.default_rng(0), (200_000,))
    assert (values < noise.median).mean() == pytest.approx(0.5, abs=0.005)
    if noise is not draws.HEAVY:
        assert values.mean() == pytest.approx(noise.mean, abs=4 * values.std() / 200_000**0.5)


def test_the_former_rule_errs_as_it_was_found_to() -> None:
    """Version 0.1.0 at its thresholds: .049/.015/.001 for normal seeds, .70/.53/.35 where a tenth collapses."""
    for noise, expected in ((draws.NORMAL, (0.049, 0.015, 0.001)), (draws.COLLAPSING, (0.70, 0.53, 0.35))):
        values_SN = 0.5 + 0.25 * noise.at(np.random.default_rng(0), (20_000, 10), 0.0, "mean")
        for seeds, rate in zip((3, 6, 10), expected, strict=True):
            supported, _ = counts.share_rule(values_SN[:, :seeds], 0.5, 0.0)
            assert supported.mean() == pytest.approx(rate, abs=0.035 if rate > 0.3 else 0.005)


def test_the_seeds_and_the_pairs_to_plan() -> None:
    assert plans.seeds_table().rows[0][:3] == ["0.5", "5, 8, 11, 13; 5", "6, 9, 12, 15; 6"]
    worth = [row[0] for row in plans.efficient_table().rows if row[-1] == "yes"]
    assert worth == ["5", "8", "11", "13"]
    assert [row[1:3] for row in paired.choice_table(SOME).rows] == [
        ["5", "7 of 8"],
        ["6", "8 of 9"],
        ["7", "9 of 10"],
        ["8", "10 of 11"],
    ]


@pytest.mark.parametrize(
    ("rate", "text"), [(0.0, ".000"), (0.0004, "<.001"), (0.0494, ".049"), (0.9999, "1.000"), (1.0, "1.000")]
)
def test_rates_as_text(rate: float, text: str) -> None:
    assert rate_text(rate) == text


# the page


@pytest.mark.parametrize("table", [plans.seeds_table(), plans.efficient_table(), means.fewest_table()])
def test_exact_tables_stand_in_the_page_as_they_are_printed(table: Table) -> None:
    assert markdown(table) in PAGE.read_text(encoding="utf-8")


def test_the_example_of_the_page_is_valid() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    criteria = parse_criteria(tomllib.loads(example))
    assert [check.kind for check in criteria.checks if check.about_arm] == ["level", "paired"]


def test_every_table_of_the_page_is_one_that_is_printed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    printed = {
        table.title.replace(f"{draws.QUICK_DRAWS:,}", f"{draws.DRAWS:,}").replace(
            f"{draws.QUICK_DRAWS // draws.ARMS:,} of", f"{draws.DRAWS // draws.ARMS:,} of"
        )
        for part in (rates, plans, means, paired)
        for table in part.tables(quick=True)
    }
    titles = re.findall(r"^\*\*(.+?)\.\*\* .+\n\n\|", page, re.MULTILINE)
    assert len(titles) > 5
    assert [title for title in titles if title not in printed] == []
