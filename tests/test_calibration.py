"""The calibration in its short form: verdicts and effects keep their promises, and what does not is noticed."""

import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import compared, counts, curves, draws, effects, judge, means, paired, plans, rates
from benchmarks.calibration.__main__ import PARTS, main
from benchmarks.calibration.tables import Table, rate_text
from bitnetctl.verdict import parse_criteria
from bitnetctl.verdict.checks.pair_tests import Pairs, sign_test, two_sign_tests
from bitnetctl.verdict.rule import PValues, Tally, failure_rate_test, holm_levels

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    "statistics.md": ("rates", "plans", "means", "paired", "compared"),
    "statistics-analysis.md": ("effects", "factors", "metrics"),
}
SOME = 4_000


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget the tabulated p-values before and after."""
    tabulated = (counts.p_by_count, paired.p_by_wins, compared.p_by_counts, compared._p_of_signs, curves._weights)
    for table in tabulated:
        table.cache_clear()
    yield
    for table in tabulated:
        table.cache_clear()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Table]]:
    """Run every part in short, which must break no promise."""
    path = tmp_path_factory.mktemp("tables") / "tables.json"
    assert main(["--quick", "--json", str(path)]) == 0
    document = json.loads(path.read_text(encoding="utf-8"))
    assert (document["faults"], list(document["parts"])) == ([], list(PARTS))
    return {part: [Table(**table) for table in content["tables"]] for part, content in document["parts"].items()}


def rows(tables: list[Table], title: str) -> Iterator[dict[str, str]]:
    """Yield the rows of the one table with this title, by column."""
    (table,) = (one for one in tables if one.title.startswith(title))
    for row in table.rows:
        yield dict(zip(table.columns, row, strict=True))


def test_every_row_has_a_cell_for_every_column(short: dict[str, list[Table]]) -> None:
    for table in itertools.chain(*short.values()):
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert table.markdown().count("\n| ") == len(table.rows) + 2


def test_the_judge_decides_as_simulated(short: dict[str, list[Table]]) -> None:
    compared = [*rows(short["judge"], "The judge")]
    for outcome in ("supported", "refuted", "inconclusive"):
        assert sum(int(row[outcome]) for row in compared) > 5
    assert {row["judgings that differ"] for row in compared} == {"0"}


def test_the_interval_is_too_narrow_where_a_rare_seed_collapses(short: dict[str, list[Table]]) -> None:
    by_noise = {row["differences"]: row for row in rows(short["effects"], "Coverage")}
    assert float(by_noise["normal"]["3 seeds"]) > 0.93
    assert float(by_noise["10 % collapse"]["6 seeds"]) < 0.85


def test_an_effect_under_three_times_larger_differences_of_seeds_is_found(short: dict[str, list[Table]]) -> None:
    power = {row["design"]: float(row["p ≤ 0.05, the factor"]) for row in rows(short["factors"], "Power")}
    assert power["6 seeds × 2"] > 0.65
    assert power["10 seeds × 2"] > 0.95
    assert power["6 + 6, no seed in common"] < 0.4


def test_arms_that_differ_make_runs_look_related(short: dict[str, list[Table]]) -> None:
    (two,) = (row for row in rows(short["metrics"], "Kendall") if row["runs"].startswith("2 arms"))
    assert float(two["unrelated, arms exchanged"]) == 0
    assert float(two["unrelated, runs as if independent"]) > 0.2


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--part", "rates,luck"])
    assert "unknown luck" in capsys.readouterr().err


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
    monkeypatch.setattr(judge, "decisions", lambda supporting, refuting: np.zeros(supporting.shape, dtype=np.int64))
    table = judge.judge_table(judge.Fleet(tmp_path), 3)
    assert {fault.split(",")[0] for fault in table.faults} == {
        "failure rate",
        "level",
        "paired",
        "equivalent",
        "interaction",
    }


@pytest.mark.usefixtures("fresh")
def test_opposite_tests_that_do_not_share_the_level_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences of which half are far above and half far below break each of them; so do wide clusters."""

    def unshared(pairs: Pairs, within: float) -> PValues:
        p = two_sign_tests(pairs, within)
        return PValues(p.supporting, p.refuting / 2)

    monkeypatch.setattr(compared, "two_sign_tests", unshared)
    faults = compared.equivalent_table(SOME, 200).faults
    broken = {fault.split(",")[0] for fault in faults}
    assert "half and half" in broken
    assert broken <= {"half and half", "two clusters"}


@pytest.mark.usefixtures("fresh")
def test_one_test_of_equivalence_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_sided(pairs: Pairs, within: float) -> PValues:
        return PValues(
            sign_test(Pairs(values=tuple(within - value for value in pairs.values), planned=pairs.planned)).supporting,
            1.0,
        )

    monkeypatch.setattr(compared, "two_sign_tests", one_sided)
    assert compared.equivalent_table(SOME, 200).faults


@pytest.mark.usefixtures("fresh")
def test_a_gate_of_interactions_that_counts_one_seed_too_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        compared, "sign_test", lambda pairs: PValues(0.5 ** (pairs.wins + 1), 0.5 ** (pairs.losses + 1))
    )
    monkeypatch.setattr(compared, "COMPARED", 0)
    assert compared.interaction_table(SOME, 200).faults


@pytest.mark.usefixtures("fresh")
def test_a_time_average_that_is_weighed_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    even = np.full(curves.EVALUATIONS, 1 / curves.EVALUATIONS)
    monkeypatch.setattr(curves, "_weights", lambda: even)
    with pytest.raises(AssertionError, match="over='area'"):
        curves.areas(curves.counts(np.random.default_rng(0), (2, 5)))


def test_bets_that_ignore_a_side_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared, "two_bets_on_mean", lambda pairs, limits, within: PValues(0.0, 1.0))
    with pytest.raises(AssertionError, match="p of"):
        compared.mean_table(SOME)


def test_support_that_an_arm_without_failures_loses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fickle(seeds: int, max_rate: float, absent: int = 0) -> tuple[draws.Floats, draws.Floats]:
        supporting, refuting = counts.p_by_count(seeds, max_rate, absent)
        return (np.ones_like(supporting) if seeds == 9 else supporting), refuting

    assert not plans.efficient_table().faults
    monkeypatch.setattr(plans, "p_by_count", fickle)
    assert plans.efficient_table().faults == ["9 seeds: more seeds take support from an arm without failures"]


def test_a_sign_test_and_an_interval_that_err_more_often_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "sign_test_p", lambda better, worse: 0.5 ** max(better, worse))
    assert effects.error_table(SOME).faults
    monkeypatch.setattr(effects, "mean_bounds", lambda samples, side, confidence: samples.mean(1))
    assert effects.coverage_table(SOME).faults


def test_a_power_that_is_not_kept_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # the noncentral approximation that was promised before: 0.64 of 0.8 at six seeds
    monkeypatch.setattr(effects, "detectable_factor", lambda seeds, alpha: 1.4248)
    assert effects.found_table(SOME).faults


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
        values_SN = 0.5 + 0.25 * noise.centred(np.random.default_rng(0), (20_000, 10), "mean")
        for seeds, rate in zip((3, 6, 10), expected, strict=True):
            supported, _ = counts.former_rule(values_SN[:, :seeds], 0.5, 0.0)
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


# the pages


@pytest.mark.parametrize(
    "table",
    [
        plans.seeds_table(),
        plans.efficient_table(),
        means.fewest_table(),
        compared.equivalent_power_table(),
        compared.interaction_power_table(),
    ],
    ids=lambda table: table.title,
)
def test_exact_tables_stand_in_the_page_as_they_are_printed(table: Table) -> None:
    assert table.markdown() in (DOCS / "statistics.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_is_valid() -> None:
    page = (DOCS / "statistics.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    criteria = parse_criteria(tomllib.loads(example))
    assert [check.kind for check in criteria.checks if check.about_arm] == ["level", "paired"]


@pytest.mark.parametrize(("page", "parts"), PAGES.items())
def test_every_table_of_a_page_is_one_that_is_printed(
    short: dict[str, list[Table]], page: str, parts: tuple[str, ...]
) -> None:
    def without_counts(text: str) -> str:
        return re.sub(r"[0-9,]+ (draws|of)", r"N \1", text)

    printed = {"".join([without_counts(table.title), *table.columns]) for part in parts for table in short[part]}
    shown = re.findall(r"^\*\*(.+?)\.\*\* .+\n\n\| (.+) \|$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) > 5
    for title, columns in shown:
        assert "".join([without_counts(title), *columns.split(" | ")]) in printed
