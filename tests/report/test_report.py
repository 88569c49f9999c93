"""Tables and plots for a terminal, and Markdown: readable at 80 columns, also where much is unknown."""

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic import REFERENCES, curve, quick, simple_run, write_csv, write_run

from bitnetctl import report
from bitnetctl.analysis import wording
from bitnetctl.analysis.study import Study, study
from bitnetctl.api import load_runs
from bitnetctl.escape import markdown_text, printable
from bitnetctl.report.columns import arm_rows, p_cell, run_rows, signed
from bitnetctl.report.plots import curves
from bitnetctl.report.terminal import key_value_table
from bitnetctl.units import format_value

FOREIGN = curve(
    (1, 1000, 5000, 6000, 7000),
    UniquePredictions=(20, 16, 2, 10, 14),
    WD=(0.1, 0.1, 0.1, 0.0, 0.0),
    Loss=(11, 10, 10.8, 7, 7),
)


@pytest.fixture
def sweep(tmp_path: Path) -> Study:
    """Two arms, two sizes, three seeds, one failure."""
    paths = []
    for arm, size, seed in itertools.product(("", "decoupled-decay:decayed=all"), (64, 128), range(3)):
        fields: dict[str, Any] = {"status": "diverged", "diverged_at": 700} if (arm, size, seed) == ("", 64, 2) else {}
        config = quick(arm, size=size, seed=seed, optimizer__name="adam")
        loss = (5.0 if arm else 7.0) + seed / 100 + size / 1000
        paths.append(simple_run(tmp_path, config, loss=loss, unique=100 + seed, prompt=20 - 3 * seed, **fields))
    return study(load_runs(paths))


def rendered(*parts: Any, width: int = 80, terminal: bool = False) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    for part in parts:
        console.print(part)
    return file.getvalue().splitlines()


def cells(lines: Iterable[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def test_the_collapse_table_has_a_row_for_every_run(sweep: Study) -> None:
    lines = rendered(report.collapse_table(run_rows(sweep.summaries)))
    assert lines[0].rstrip() == "Stage 1 and the boundary"
    assert ["baseline", "64", "0", "100", "200", "–", "100%", "1.00", "0.000"] in cells(lines)
    assert ["diverged", "at", "700"] in cells(lines)


def test_the_end_table(sweep: Study) -> None:
    assert ["baseline", "64", "0", "7.064", "−0.532", "100", "0.00", "–", "–"] in cells(
        rendered(report.end_table(run_rows(sweep.summaries)))
    )


def test_arms_are_means_and_collapses_are_counted(sweep: Study) -> None:
    rows = arm_rows(sweep.summaries, sweep.arms)
    assert [(row.arm, row.size, row.seed, row.state) for row in rows] == [
        ("baseline", "64", "3", "1 failed"),
        ("baseline", "128", "3", ""),
        ("decoupled-decay:decayed=all", "64", "3", ""),
        ("decoupled-decay:decayed=all", "128", "3", ""),
    ]
    lines = rendered(report.collapse_table(rows))
    assert ["baseline", "128", "3", "101", "3/3", "0/3", "100%", "1.00", "0.000"] in cells(lines)


def test_effects_factors_and_agreement(sweep: Study) -> None:
    lines = rendered(report.effects_table(sweep.effects))
    effects = " ".join("\n".join(lines).split())
    assert "− baseline: 3 seeds, 6 pairs, the baseline failed in 1 of 6 pairs" in effects
    # better in three seeds, the mean of the two without a failure
    assert ["held-out", "loss", "3", ":", "0", "−2.000", "(2", "of", "3)", "–", "0.250", "min", "0.750"] in cells(lines)
    assert "∞" not in effects
    factors = "\n".join(rendered(report.factors_table(sweep.outcomes)))
    assert "optimizer.name, " in factors
    assert "all terms (R²)" in factors
    assert "seeds  " in factors
    assert "adamw" in factors
    agreement = rendered(report.agreement_table(sweep.agreements))
    assert "RandomPromptUnique  end of stage 1" in "\n".join(agreement)
    # two arms can be exchanged in one way
    assert ["RandomPromptUnique", "end", "12", "+0.28", "1.000", "1.000"] in cells(agreement)


@pytest.mark.parametrize("width", [80, 60, 40, 30])
def test_nothing_is_wider_than_the_terminal(sweep: Study, width: int) -> None:
    plots = report.plots(sweep, width=width - 2, color=False)
    tables = [report.collapse_table(run_rows(sweep.summaries)), report.end_table(run_rows(sweep.summaries))]
    tables += [report.effects_table(sweep.effects), report.agreement_table(sweep.agreements)]
    assert all(len(line.rstrip()) <= width for line in rendered(*tables, *plots, width=width))


def test_plots_without_colour_have_no_codes_and_letters_distinguish_curves(sweep: Study) -> None:
    loss, unique = (text.plain for text in report.plots(sweep, width=78, color=False))
    assert loss.startswith("held-out loss (nats)\n")
    assert unique.startswith("distinct predictions\n")
    assert "\x1b" not in loss + unique
    assert " a baseline h64" in loss
    assert " d decoupled-decay:decayed=all h128" in loss
    assert "┊ boundary at step 500" in loss
    assert all(letter in loss.partition("└")[0] for letter in "bd┊")


def test_plots_with_colour(sweep: Study) -> None:
    lines = rendered(*report.plots(sweep, width=78, color=True), terminal=True)
    assert any("\x1b[" in line for line in lines)
    assert not any(line.rstrip().endswith("a baseline h64") for line in lines)


def test_a_curve_is_the_mean_of_its_arm(sweep: Study) -> None:
    curve = curves(sweep, "UniquePredictions", logarithmic=False)["baseline h128"]
    assert curve == dict.fromkeys(range(100, 1001, 100), 101.0)


def test_many_curves_are_cut_with_a_hint(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"run{index}.csv", FOREIGN) for index in range(9)]
    [loss, _] = report.plots(study(load_runs(paths)), width=78, color=False)
    assert "… and 3 more; --html shows all" in loss.plain


def test_files_of_other_tools_have_every_table_and_plots(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "hidden256.csv", FOREIGN, "Hidden 256\n")
    shown = study(load_runs([path]))
    rows = run_rows(shown.summaries)
    lines = rendered(report.collapse_table(rows), report.end_table(rows), report.effects_table(shown.effects))
    assert ["hidden256", "256", "–", "2", "–", "–", "25%", "5.00", "–"] in cells(lines)
    loss, unique = report.plots(shown, width=78, color=False)
    assert loss.plain.startswith("training loss (nats)")
    assert "boundary at step 5,000" in unique.plain
    assert "| hidden256 | 256 | – | 2 |" in report.markdown_report(shown)


def test_constant_and_single_values_can_be_drawn(tmp_path: Path) -> None:
    one = study(load_runs([write_csv(tmp_path / "one.csv", curve((1, 100)))]))
    assert len(report.plots(one, width=60, color=False)) == 2
    nothing = study(load_runs([write_csv(tmp_path / "none.csv", curve((1,)))]))
    assert report.plots(nothing, width=60, color=False) == []
    assert "# bitnetctl analysis" in report.markdown_report(nothing)


def test_an_unfinished_run_is_marked(tmp_path: Path) -> None:
    rows = [row | REFERENCES for row in curve((1, 100, 200), HeldOutLoss=(7.5, 6.0, 5.5))]
    path = write_run(tmp_path, quick(), rows, status="running")
    shown = study(load_runs([path]))
    assert run_rows(shown.summaries)[0].state == "running at 200 of 1,000"
    assert any("1 of 1 runs are unfinished" in note for note in shown.notes)
    assert arm_rows(shown.summaries, shown.arms)[0].state == "1 unfinished"


def test_markdown_has_every_part(sweep: Study) -> None:
    text = report.markdown_report(sweep)
    for title in ("## Arms", "## Effects", "## Factors", "## Agreement with held-out loss", "## Runs", "## Notes"):
        assert f"\n{title}\n" in text
    assert (
        "| decoupled-decay:decayed=all | baseline | 3 seeds, 6 pairs, the baseline failed in 1 of 6 pairs "
        "| held-out loss | better in 3 of 3 seeds | −2.000 (2 of 3) | – | 0.250 min | 0.750 | – | 64: −∞, 128: −2.000 |"
    ) in text
    for hint in (wording.effects_hint(3), wording.factors_hint(sweep.outcomes[0].tests), wording.AGREEMENT_HINT):
        assert f"\n{hint}\n" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for _, group in itertools.groupby(tables, key=lambda line: line.count(" | ")):
        assert list(group)


def test_markdown_keeps_names_as_text(tmp_path: Path) -> None:
    path = simple_run(tmp_path, quick(), name="x")
    shown = study(load_runs([write_csv(tmp_path / "a|b*c_<i>.csv", FOREIGN), path]))
    text = report.markdown_report(shown)
    assert r"a\|b\*c\_\<i\>" in text
    assert "<i>" not in text
    assert markdown_text("</script><img src=x onerror=alert(1)>") == r"\</script\>\<img src=x onerror=alert(1)\>"


def test_names_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\nc\udc80") == "a�[31mb�c�"


def test_values_have_one_format() -> None:
    assert [p_cell(p) for p in (None, 0.00001, 0.05, 1.0)] == ["–", "< 0.001", "0.050", "1.000"]
    assert [p_cell(p, 0.25) for p in (None, 0.25, 0.5)] == ["–", "0.250 min", "0.500"]
    # a test that could only give 1 has no smallest p worth a mark
    assert p_cell(1.0, 1.0) == "1.000"
    assert [signed(value) for value in (None, 0.5, -0.5, float("inf"), float("-inf"))] == [
        "–",
        "+0.500",
        "−0.500",
        "+∞",
        "−∞",
    ]
    assert [format_value(value, ",.0f") for value in (None, 1234.0, "nan")] == ["–", "1,234", "nan"]


def test_the_tables_of_other_commands() -> None:
    row = {"size": 64, "arm": "[x]", "seed": 0, "status": "failed", "final": None}
    assert ["[x]", "64", "0", "failed", "–", "–"] in cells(rendered(report.sweep_table([row])))
    pack = {"size": 64, "steps": 2000, "runs": 4, "packs": 1, "runs_in_a_pack": 4, "memory_bytes": 2**30}
    lines = rendered(report.packs_table([pack | {"seconds": 60, "arms": ["baseline"]}]))
    assert ["64", "2,000", "4", "1", "4", "1.00", "GiB", "1.0", "min", "baseline"] in cells(lines)


def test_keys_and_values_are_shown_unchanged() -> None:
    lines = rendered(key_value_table("run", {"time": "about 5 s", "text": "file:[a-z].txt"}))
    assert cells(lines) == [["run"], ["time", "about", "5", "s"], ["text", "file:[a-z].txt"]]
