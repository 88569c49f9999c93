"""The page of a verdict: it opens with the summary, then a panel for each arm."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from calling import call
from pages import HOSTILE, Page
from synthetic import REFERENCES, curve, healthy_run, quick, simple_run, write_csv

from bitnetctl.analysis.study import study
from bitnetctl.api import load_runs
from bitnetctl.report import html_page
from bitnetctl.report.html.head import summary_section
from bitnetctl.report.html.panels import MOST_CURVES, MOST_PANELS, MOST_POINTS, panels_section
from bitnetctl.verdict import Summary

pytestmark = pytest.mark.usefixtures("wide_terminal")


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A folder of two arms, two sizes and three seeds."""
    for arm, loss in (("baseline", 4.9), ("no-decay", 4.7)):
        for size in (256, 512):
            for seed in range(3):
                healthy_run(tmp_path / "runs", seed, arm=arm, size=size, HeldOutLoss=loss + seed / 1000)
    return tmp_path / "runs"


def places(text: str, *parts: str) -> list[int]:
    """Return where the parts begin; each must be there."""
    found = [text.find(part) for part in parts]
    assert -1 not in found
    return found


def panels(text: str) -> list[str]:
    return re.findall(r"<figure>.*?</figure>", text, re.DOTALL)


def test_verify_writes_a_page_that_opens_with_the_verdict(judged: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    done = call("verify", judged, "-i", "no-decay", "--html", path)
    assert done.err == f"written: {path}\n"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    order = places(text, 'id="summary"', 'class="needed"', 'id="panels"', 'id="curves"', 'id="verdicts"', 'id="runs"')
    assert order == sorted(order)
    assert "<title>bitnetctl: inconclusive, 12 runs</title>" in text
    assert ("section", {"id": "summary", "class": "card inconclusive"}) in page.tags
    for shown in (
        "h256, h512 trained with `no-decay` do not collapse (2 sizes × 3 seeds, 20,000 steps)",
        "3 seeds cannot decide at a failure rate of 50 %: 7 needed",
        "fix the number of seeds before looking, then train them: --seeds 7",
    ):
        assert shown in " ".join(page.texts)
    assert not any({"src", "href", "style", "onclick"} & set(attributes) for _, attributes in page.tags)


def test_a_panel_for_each_arm_and_measure_has_every_run_and_the_references(judged: Path) -> None:
    text = panels_section(study(load_runs([judged])))
    drawn = panels(text)
    assert len(drawn) == 4
    assert [panel.count('class="curve') for panel in drawn] == [6] * 4
    # sizes differ by colour
    assert [len(set(re.findall(r"curve (k\d)", panel))) for panel in drawn] == [2] * 4
    assert [panel.count('class="reference"') for panel in drawn] == [2, 2, 0, 0]
    assert "unigram" in drawn[0]
    assert "hidden 256" in text
    # panels of a measure share their scales
    assert len({tuple(re.findall(r"<text[^>]*>([^<]*)</text>", panel)) for panel in drawn[:2]}) == 1


def test_curves_lie_within_their_panel(tmp_path: Path) -> None:
    rows = [
        row | REFERENCES for row in curve(range(1, 501), HeldOutLoss=[*range(500)], UniquePredictions=[0, *[7] * 499])
    ]
    drawn = panels(panels_section(study(load_runs([write_csv(tmp_path / "x.csv", rows)]))))
    for panel in drawn:
        [path] = re.findall(r'class="curve k\d" d="M([^"]*)"', panel)
        points = [tuple(map(float, point.split())) for point in path.split("L")]
        assert len(points) <= MOST_POINTS
        assert all(0 <= x <= 260 and 0 <= y <= 150 for x, y in points)


def test_one_evaluation_is_drawn_and_nothing_known_is_no_panel(tmp_path: Path) -> None:
    text = panels_section(study(load_runs([write_csv(tmp_path / "one.csv", curve((1,)))])))
    assert [panel.count('class="curve') for panel in panels(text)] == [1, 1]
    assert "training loss" in text
    unknown = write_csv(tmp_path / "none.csv", curve((1, 2), Loss="nan", UniquePredictions="nan"))
    assert panels_section(study(load_runs([unknown]))) == ""


def test_many_arms_and_runs_are_cut_with_a_hint(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"arm{index}.csv", curve((1, 100))) for index in range(MOST_PANELS + 3)]
    text = panels_section(study(load_runs(paths)))
    assert len(panels(text)) == 2 * MOST_PANELS
    assert "… 3 more arms in the curves below" in text
    seeds = [simple_run(tmp_path / "seeds", quick(seed=seed)) for seed in range(MOST_CURVES + 2)]
    drawn = panels(panels_section(study(load_runs(seeds))))
    assert [panel.count('class="curve') for panel in drawn] == [MOST_CURVES] * 2
    assert f"{MOST_CURVES} of {MOST_CURVES + 2} runs" in drawn[0]


def test_names_in_a_summary_stay_text(judged: Path) -> None:
    tree = call("verify", judged, "--json").json["summary"]

    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: hostile(one) if name not in ("outcome", "verdict") else one for name, one in value.items()}
        if isinstance(value, list):
            return [hostile(one) for one in value]
        return HOSTILE if isinstance(value, str) else value

    summary = Summary.model_validate(hostile(tree) | {"other_arms": {HOSTILE: "refuted"}})
    text = html_page(study(load_runs([judged])), [], [summary])
    assert text.count("</script>") == 2
    page = Page(text)
    assert not any(tag == "img" for tag, _ in page.tags)
    assert HOSTILE in " ".join(page.texts)
    assert summary_section(summary) in text


def test_the_verdict_of_a_file_opens_the_page_of_an_analysis(judged: Path, tmp_path: Path) -> None:
    done = call("verify", judged, "-i", "no-decay", "--json")
    verdict = tmp_path / "verdict.json"
    verdict.write_text(done.out, encoding="utf-8")
    assert call("analyze", judged, "--html", tmp_path / "page.html", "--verdict", verdict).code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert summary_section(Summary.model_validate(done.json["summary"])) in text
    # a file without one, or with one of another version, has its verdicts only
    for summary in (None, {"claim": 3}):
        verdict.write_text(json.dumps(done.json | {"summary": summary}), encoding="utf-8")
        assert call("analyze", judged, "--html", tmp_path / "page.html", "--verdict", verdict).code == 0
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert 'id="summary"' not in text
        assert 'id="verdicts"' in text


def test_a_page_without_runs_says_that_none_is_there(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    call("verify", "--recipe", "quick", "--no-train", "--runs-dir", tmp_path / "none", "--html", path)
    page = Page(path.read_text(encoding="utf-8"))
    assert "origin, sound: 1 missing of 1 planned seed" in " ".join(page.texts)
    assert page.rows() == 0
