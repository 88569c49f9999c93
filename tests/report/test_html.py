"""The page: complete, self-contained, fast for hundreds of runs, and text stays text."""

import base64
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, Page
from synthetic import REFERENCES, curve, quick, simple_run, write_csv, write_run

from bitnetctl.analysis.study import study
from bitnetctl.api import load_runs
from bitnetctl.escape import html_text
from bitnetctl.records import Manifest, write_manifest
from bitnetctl.report import html_page
from bitnetctl.report.columns import MOST_POINTS
from bitnetctl.report.html.curves import embed, page_data


def page_of(*paths: Path, verdicts: Any = ()) -> Page:
    return Page(html_page(study(load_runs(paths)), verdicts))


def test_the_page_is_complete_and_needs_no_network(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick(arm, seed=seed)) for arm in ("", "no-decay") for seed in range(2)]
    text = html_page(study(load_runs(paths)))
    page = Page(text)
    for title in (
        "Findings",
        "Curves",
        "Arms",
        "Effects",
        "Factors",
        "Agreement with held-out loss",
        "Runs",
        "Manifests",
    ):
        assert title in page.texts
    assert page.rows() == 4
    without_namespace = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]|@import|url\(", without_namespace)
    assert not any({"src", "href", "style", "onclick"} & set(attributes) for _, attributes in page.tags)
    assert "prefers-color-scheme: dark" in text
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_only_the_page_s_own_script_and_style_may_run(tmp_path: Path) -> None:
    text = html_page(study(load_runs([simple_run(tmp_path, quick())])))
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_names_stay_text(tmp_path: Path) -> None:
    config = quick()
    rows = [row | REFERENCES for row in curve((1, 1000), HeldOutLoss=(7, 5))]
    path = write_csv(tmp_path / "x.csv", rows)
    (tmp_path / "x").mkdir()
    write_manifest(
        tmp_path / "x",
        Manifest(
            run=HOSTILE,
            status="failed",
            config=config.model_dump(mode="json"),
            config_hash=config.hash,
            created_at="2026-01-01T00:00:00+00:00",
            updated_at="2026-01-01T00:00:00+00:00",
            message=HOSTILE,
            command=["bitnetctl", HOSTILE, "@@DATA@@"],
            data={HOSTILE: HOSTILE},
        ),
    )
    verdict: dict[str, Any] = {
        "verdict": HOSTILE,
        "arm": HOSTILE,
        "criteria": {"name": HOSTILE},
        "reasons": [HOSTILE],
        "notes": [HOSTILE],
    }
    verdict |= {"checks": [{"run": HOSTILE, "check": HOSTILE, "outcome": HOSTILE, "reason": HOSTILE}]}
    text = html_page(study(load_runs([path])), [verdict])
    assert text.count("</script>") == 2
    page = Page(text)
    assert not any(tag == "img" or any(name.startswith("on") for name in attributes) for tag, attributes in page.tags)
    assert page.data["runs"][0]["name"] == HOSTILE
    assert HOSTILE in page.texts
    assert any("@@DATA@@" in text for text in page.texts)


def test_file_names_that_are_no_text(tmp_path: Path) -> None:
    name = tmp_path / "\udcff\x1b\u2028.csv"
    try:
        write_csv(name, curve((1, 100)))
    except OSError:
        pytest.skip("this file system takes no such name")
    page = page_of(name)
    page.data["runs"][0]["name"].encode()
    assert page.data["arms"] == ["���"]


def test_json_in_markup() -> None:
    text = embed({"a": "</script><!--&\u2028"})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {"a": "</script><!--&\u2028"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed(float("nan"))
    assert html_text("<a b=\"c\" d='e'>&") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"


def test_curves_have_gaps_where_a_value_is_unknown(tmp_path: Path) -> None:
    rows = [
        row | REFERENCES
        for row in curve((1, 100, 200, 300), HeldOutLoss=(7.5, None, 5.123456, "nan"), UniquePredictions=(9, 8, 7, 1))
    ]
    data = page_of(write_run(tmp_path, quick(), rows)).data
    [run] = data["runs"]
    assert data["grids"] == [[1, 100, 200, 300]]
    assert run["values"]["HeldOutLoss"] == [7.5, None, 5.1235, None]
    assert run["values"]["Skill"] == [-0.75, None, 0.43827, None]
    assert run["values"]["UniquePredictions"] == [9, 8, 7, 1]
    assert data["boundaries"] == [500]
    assert data["references"]["HeldOutLoss"] == [{"label": "unigram", "value": 6}, {"label": "bigram", "value": 4}]
    names = [metric["id"] for metric in data["metrics"]]
    assert names[:4] == ["HeldOutLoss", "UniquePredictions", "Loss", "Skill"]
    assert "FlipRate" not in names
    assert "UnigramLoss" not in names


def test_files_of_other_tools_are_drawn(tmp_path: Path) -> None:
    page = page_of(*(write_csv(tmp_path / f"{name}.csv", curve((1, 100, 200))) for name in ("one", "two")))
    assert page.data["arms"] == ["one", "two"]
    assert [metric["id"] for metric in page.data["metrics"]] == ["UniquePredictions", "Loss", "LR", "WD"]
    assert page.data["references"]["HeldOutLoss"] == []
    assert page.rows() == 2
    assert "Manifests" not in page.texts


def test_runs_with_equal_steps_share_them(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick(seed=seed)) for seed in range(3)]
    data = page_of(*paths).data
    assert len(data["grids"]) == 1
    assert [run["grid"] for run in data["runs"]] == [0, 0, 0]
    assert data["runs"][2]["detail"] == "baseline, size 64, seed 2"


def test_long_runs_are_thinned_with_a_hint(tmp_path: Path) -> None:
    page = page_of(write_csv(tmp_path / "long.csv", curve(range(1, 5001))))
    [grid] = page.data["grids"]
    assert len(grid) == MOST_POINTS
    assert (grid[0], grid[-1]) == (1, 5000)
    assert grid == sorted(set(grid))
    assert "thinned" in page.data["hint"]


def test_cells_sort_by_value_and_unknown_is_empty(tmp_path: Path) -> None:
    text = html_page(study(load_runs([write_csv(tmp_path / "x.csv", curve((1, 100), UniquePredictions=(20, 1234)))])))
    assert '<td data-v="1234.0">1,234</td>' in text
    assert '<td data-v="">–</td>' in text


def test_verdicts_are_shown(tmp_path: Path) -> None:
    verdict: dict[str, Any] = {
        "verdict": "refuted",
        "arm": "wd-schedule",
        "criteria": {"name": "origin", "hash": "abc"},
        "evidence": "scaled",
        "failure_rate": "a failure rate of up to 63 %",
        "account": "wd-schedule: 5 judged, 1 missing",
        "planned": {
            "runs": [{"run": "h64-<b>", "size": 64, "seed": None, "state": "missing", "reason": "its CSV was deleted"}]
        },
        "sizes": [{"size": 256, "verdict": "refuted"}, {"size": None, "verdict": "invalid"}],
        "runs": [],
        "checks": [{"run": None, "size": 256, "check": "unique", "outcome": "refuted", "reason": "8 < 10"}],
        "reasons": ["8 is below 10"],
        "notes": ["one seed"],
        "statistics": [],
    }
    page = page_of(simple_run(tmp_path, quick()), verdicts=[verdict, {"verdict": "novel", "planned": {"runs": [3]}}])
    shown = " ".join(page.texts)
    for text in (
        "refuted",
        "wd-schedule · origin",
        "hidden 256: refuted, unknown size: invalid",
        "8 is below 10",
        "one seed",
    ):
        assert text in shown
    for text in ("a failure rate of up to 63 %", "5 judged, 1 missing", "h64-<b>", "its CSV was deleted"):
        assert text in shown
    assert "1 planned run not judged" in page.texts
    assert "novel" in shown
    assert "1 check" in page.texts
    assert ("article", {"class": "card refuted"}) in page.tags


def test_many_reasons_are_cut_with_a_hint(tmp_path: Path) -> None:
    reasons = [f"reason {index}" for index in range(9)]
    page = page_of(simple_run(tmp_path, quick()), verdicts=[{"verdict": "refuted", "reasons": reasons}])
    assert "reason 4" in page.texts
    assert "reason 5" not in page.texts
    assert "… and 4 more reasons: see the checks" in page.texts


def test_fields_that_all_manifests_share_are_shown_once(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick(seed=seed), device="cpu (a fine one)") for seed in range(3)]
    page = page_of(*paths)
    assert page.texts.count("cpu (a fine one)") == 1
    assert page.texts.count("config.seed") == 3
    assert "what all 3 share" in page.texts


def test_hundreds_of_runs_stay_fast_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    paths = [
        simple_run(tmp_path, quick(arm, seed=seed)) for arm in ("", "no-decay", "reduced-lr") for seed in range(100)
    ]
    runs = load_runs(paths)
    few, many = study(runs[::10]), study(runs)
    sizes, times = [], []
    for one in (few, many):
        started = time.process_time()
        sizes.append(len(html_page(one)))
        times.append(time.process_time() - started)
    assert sizes[1] < 10 * sizes[0]
    assert sizes[1] / 300 < 8_000
    # linear would be ten times; a shared machine is not exact
    assert times[1] < 30 * max(times[0], 0.02)
    assert Page(html_page(many)).rows() == 300


def test_page_data_is_what_the_page_holds(tmp_path: Path) -> None:
    one = study(load_runs([simple_run(tmp_path, quick())]))
    assert Page(html_page(one)).data == json.loads(json.dumps(page_data(one)))
