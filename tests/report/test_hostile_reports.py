"""Text of others in reports: no spreadsheet runs it, and on a page it stays text."""

import csv
from pathlib import Path

import pytest
from calling import call
from hostile import environment as environment, refused
from synthetic import CURED, bare_run, curve, origin_run, write_csv

from bitnetctl.analysis.study import study
from bitnetctl.api import load_runs
from bitnetctl.errors import ExitCode
from bitnetctl.escape import escape_formula
from bitnetctl.report import junit_xml, markdown_report
from bitnetctl.verdict import judge, load_criteria

FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "-2x", "＝1+1", "+", "-")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_defused(text: str) -> None:
    assert escape_formula(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["-1.5", "+2", "-1e-3", ".5", "-.5e+7", "1.", "0", "", "a=1", "'=1", "wd=0", "–", "−∞"]
)
def test_numbers_and_words_stay(text: str) -> None:
    assert escape_formula(text) == text


def formula_runs(folder: Path) -> list[Path]:
    """Write runs whose names are formulas, and one whose name is a number."""
    folder.mkdir()
    names = [text for text in FORMULAS if not set(text) & set("/\t\r\n|")] + ["-1.5"]
    # each with values of its own: several files of one run would count once
    return [
        write_csv(folder / f"{name}.csv", curve((1, 1000), HeldOutLoss=(7.5 + index, 1.5), ZeroFraction=(0.3, None)))
        for index, name in enumerate(names)
    ]


def test_the_export_holds_every_field_and_no_formula(tmp_path: Path) -> None:
    paths = formula_runs(tmp_path / "runs")
    done = call("analyze", *paths, "--csv", "summary.csv", "--json")
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "written: summary.csv\n")
    with Path("summary.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    summaries = done.json["runs"]
    assert header == list(summaries[0])
    assert len(rows) == len(summaries) == len(paths)
    for row, summary in zip(rows, summaries, strict=True):
        for text, value in zip(row, summary.values(), strict=True):
            match value:
                case None:
                    assert text == ""
                case bool():
                    assert text == str(value).lower()
                case int() | float():
                    assert float(text) == value
                case _:
                    assert text == escape_formula(value)
                    assert not text.startswith(("=", "@")) or text == "-1.5"
    exported = {row[header.index("name")] for row in rows}
    assert {"'=1+1", "'@SUM(A1)", "-1.5"} <= exported
    assert {row[header.index("final_held_out_loss")] for row in rows} == {"1.5"}


def test_cells_of_reports_are_defused(tmp_path: Path) -> None:
    paths = formula_runs(tmp_path / "runs")
    text = markdown_report(study(load_runs(paths)))
    cells = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if " | " in line]
    assert {"'=1+1", "'@SUM(A1)", "-1.5"} <= set(cells)
    assert not any(cell.startswith(("=", "@", "+")) for cell in cells)
    assert call("analyze", *paths, "--html", "page.html").code == ExitCode.SUPPORTED
    page = Path("page.html").read_text(encoding="utf-8")
    assert ">&#x27;=1+1</td>" in page
    assert ">=1+1</td>" not in page
    assert ">-1.5</td>" in page
    xml = junit_xml([judge(load_runs(paths), load_criteria("origin"), arm="unknown")])
    assert 'classname="\'=1+1"' in xml
    assert 'classname="="' not in xml


# what a page shows stays text

MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_every_text_of_a_manifest_is_escaped(tmp_path: Path) -> None:
    run = origin_run(
        tmp_path,
        CURED,
        "failed",
        message=MARKUP,
        device=MARKUP,
        git={"commit": MARKUP},
        versions={MARKUP: MARKUP},
        plugins=[{"name": MARKUP, "module": MARKUP, "source_sha256": MARKUP, "settings": {MARKUP: MARKUP}}],
        pack=[MARKUP],
    )
    other = bare_run(tmp_path, CURED, name="<script>alert(2)<.csv", seed=1)
    done = call("analyze", run.path, other.path, "--html", "page.html", "--markdown", "report.md")
    assert done.code == ExitCode.SUPPORTED
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "<script" not in Path("report.md").read_text(encoding="utf-8").replace(r"\<", "")
    assert "source_sha256" in page


def test_a_hostile_arm_or_setting_is_refused_before_it_is_shown() -> None:
    for arm in (MARKUP, f"no-decay:{MARKUP}=1", "no-decay+=cmd"):
        refused(call("config", "show", "-i", arm))
