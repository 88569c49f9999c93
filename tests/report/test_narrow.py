"""The tables of every command in 40 columns and in a log of 80: rows can be told apart, numbers are whole."""

import itertools
import re
from pathlib import Path

import pytest
from calling import call
from synthetic import CURED, STAGE_1, origin_run

from bitnetctl import api, report
from bitnetctl.report.columns import run_rows
from bitnetctl.report.fitted import FittedTable
from bitnetctl.report.terminal import key_value_table
from bitnetctl.verdict import Verdict

WIDTHS = (30, 40, 80)


def lines(table: FittedTable, width: int) -> list[str]:
    shown = [line.plain for line in table.lines(width)]
    assert max(map(len, shown)) <= width
    return shown


@pytest.fixture
def verdict(tmp_path: Path) -> tuple[list[api.Run], Verdict]:
    dead = [*STAGE_1, 2, 2, 2, 2, 2]
    curves = [dead if seed == 1 else [value + seed for value in CURED] for seed in range(5)]
    runs = [origin_run(tmp_path, unique, seed=seed) for seed, unique in enumerate(curves)]
    return runs, api.judge(runs, "sound")["baseline"]


@pytest.mark.parametrize("width", WIDTHS)
def test_trajectories_keep_size_seed_and_the_end(verdict: tuple[list[api.Run], Verdict], width: int) -> None:
    runs, _ = verdict
    text = lines(report.trajectory_table("baseline", runs), width)
    rows = [match.groups() for line in text if (match := re.match(r" *(256) +(\d) .*?(\d+ · 4\.70)(?: |$)", line))]
    assert [(size, seed) for size, seed, _ in rows] == [("256", str(seed)) for seed in range(5)]
    assert any("100%" in line for line in text)


@pytest.mark.parametrize("width", WIDTHS)
def test_checks_keep_size_seed_outcome_and_reason(verdict: tuple[list[api.Run], Verdict], width: int) -> None:
    _, judged = verdict
    text = lines(report.checks_table(judged), width)
    rows = [match[1] for line in text if (match := re.match(r" *256 +(\S+) +(?:healthy|failed|\w+)", line))]
    assert set(rows) == {"all", "0", "1", "2", "3", "4"}
    whole = "".join("".join(text).split())
    assert all("".join(run.reason.split()) in whole for run in judged.runs)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_keeps_size_steps_and_time(width: int) -> None:
    row = {"size": 64, "steps": 20000, "runs": 12, "packs": 1, "runs_in_a_pack": 12, "memory_bytes": 2**30}
    arms = ["baseline", "reduced-lr+no-decay+label-smoothing:epsilon=0.2"]
    whole = "\n".join(lines(report.packs_table([row | {"seconds": 75, "arms": arms}]), width))
    assert "64" in whole
    assert "20,000" in whole
    assert "1.2 min" in whole
    assert "".join(", ".join(arms).split()) in "".join(whole.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_keys_and_values_are_whole(width: int) -> None:
    text = lines(key_value_table("h64-100-baseline-s0-438816", {"memory": "about 0.01 GiB of 20.44 GiB free"}), width)
    assert " ".join(" ".join(text[1:]).split()) == "memory about 0.01 GiB of 20.44 GiB free"


@pytest.mark.parametrize("columns", ["30", "40", "80"])
def test_interventions_are_listed_with_their_names(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = call("interventions", "list")
    names = [entry["name"] for entry in call("interventions", "list", "--json").json]
    shown = [line.split()[0].removeprefix("name:") or line.split()[1] for line in done.out.splitlines() if line]
    assert set(names) <= set(shown)
    assert max(map(len, done.out.splitlines())) <= int(columns)
    settings = call("interventions", "show", "label-smoothing").out
    assert re.search(r"^epsilon +0\.1", settings, re.MULTILINE)


def test_every_table_of_analyze_keeps_its_rows(tmp_path: Path) -> None:
    runs = [
        origin_run(tmp_path, [value + seed for value in CURED], arm=arm, seed=seed, status="finished")
        for arm, seed in itertools.product(("", "no-decay"), range(2))
    ]
    summaries = api.analyze(runs).summaries
    for table in (report.collapse_table(run_rows(summaries)), report.end_table(run_rows(summaries))):
        for width in WIDTHS:
            rows = [line.split()[:3] for line in lines(table, width) if re.match(r"baseline|no-decay", line)]
            assert rows == [[arm, "256", seed] for arm in ("baseline", "no-decay") for seed in ("0", "1")]
