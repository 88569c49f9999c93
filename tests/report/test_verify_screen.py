"""The first screen of `verify`, frozen at 80 columns in tests/golden/screens.

With SCREENS=write in the environment the files are written; read the difference before it is committed.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calling import Done, call
from synthetic import CURED, STAGE_1, bare_run, healthy_run, origin_run, quick, simple_run

from bitnetctl.report import summary_lines
from bitnetctl.verdict import Summary

GOLDEN = Path(__file__).parents[1] / "golden" / "screens"
SICK: dict[str, Any] = {"TopShare": 0.9, "ContextInformation": 0.05, "HeldOutLoss": 7.0}
LONG = "wd-schedule:stage2=0.05+reduced-lr:peak=0.0004+label-smoothing:epsilon=0.15"
COMPARED = """
[seeds]
rule = "rate"
[[checks]]
kind = "finite"
[[checks]]
kind = "finished"
[[checks]]
"""
PAIRED = 'kind = "paired"\nmeasure = "HeldOutLoss"\nbetter = "lower"\nmargin = 0.05\n'
EQUIVALENT = 'kind = "equivalent"\nmeasure = "HeldOutLoss"\nwithin = 0.05\n'
INTERACTION = (
    'kind = "interaction"\nmeasure = "UniquePredictions"\nover = "area"\nbetter = "higher"\n'
    'modifier = "full-precision"\nmargin = 10\n'
)


def two_arms(folder: Path, seeds: int, *, sick: float = 0.0, arm: str = "no-decay") -> None:
    """Write runs of two arms and two sizes; with `sick`, all of them collapsed, the arm less so."""
    for name, better in (("baseline", 0.0), (arm, 0.4)):
        for size in (256, 512):
            for seed in range(seeds):
                shift = seed / 1000 + size / 10_000
                if sick:
                    values = {"HeldOutLoss": 7.0 - better + shift, "TopShare": sick - better / 4 + seed / 100}
                    columns: dict[str, Any] = SICK | values | {"unique": [8000, *[9 - seed] * 10]}
                    healthy_run(folder, seed, arm=name, size=size, **columns)
                else:
                    healthy_run(folder, seed, arm=name, size=size, HeldOutLoss=4.9 - better / 2 + shift)


def refuted(folder: Path) -> list[str]:
    two_arms(folder, 3, sick=0.9)
    return ["-i", "no-decay"]


def short_runs(folder: Path) -> list[str]:
    for arm, loss in (("", 7.2), ("no-decay", 6.8)):
        for size in (32, 64):
            for seed in range(3):
                simple_run(folder, quick(arm, size=size, seed=seed, steps=300), loss=loss + seed / 100 - size / 100)
    return ["-i", "no-decay"]


def supported(folder: Path) -> list[str]:
    two_arms(folder, 6)
    return ["-i", "no-decay"]


def inconclusive(folder: Path) -> list[str]:
    two_arms(folder, 3)
    return ["-i", "no-decay"]


def invalid(folder: Path) -> list[str]:
    for arm in ("", "no-decay"):
        for seed in range(3):
            unique = [4000, *[200 + seed + 10 * bool(arm)] * 10]
            origin_run(folder, unique, seed=seed, arm=arm, data={"fingerprint": ("b" if seed == 2 else "a") * 64})
    return ["-i", "no-decay"]


def one_run(folder: Path) -> list[str]:
    healthy_run(folder)
    return []


def unnamed(folder: Path) -> list[str]:
    for letter, last in zip("abc", (60, 61, 62), strict=True):
        bare_run(folder, [45, *CURED[1:-1], last], name=f"log_{letter}.csv", ProbePositions=None)
    return ["--steps", "20000"]


def crashed(folder: Path) -> list[str]:
    for seed in range(5):
        origin_run(folder, [4000, *[200 + seed] * 10], seed=seed)
    origin_run(folder, [4000, *[200] * 5], "failed", seed=5, message="out of memory")
    return ["--criteria", "sound"]


def unknown_arm(folder: Path) -> list[str]:
    two_arms(folder, 3)
    return ["-i", "reduced-lr"]


def relapsed(folder: Path) -> list[str]:
    for seed in range(3):
        bare_run(folder, [*STAGE_1, 100, 50, 12, 11, 11 + seed], seed=seed)
    return ["--criteria", "origin"]


def compared(folder: Path, check: str) -> list[str]:
    (folder.parent / "mine.toml").write_text(COMPARED + check, encoding="utf-8")
    return ["--criteria", str(folder.parent / "mine.toml")]


def paired(folder: Path) -> list[str]:
    two_arms(folder, 6)
    return compared(folder, PAIRED)


def equivalent(folder: Path) -> list[str]:
    for seed, difference in enumerate((0.01, -0.02, 0.03, 0.12, -0.01, 0.0, -0.2, 0.02)):
        for arm, loss in (("baseline", 4.9), ("label-smoothing", 4.9 + difference)):
            healthy_run(folder, seed, arm=arm, HeldOutLoss=loss + seed / 1000)
    return compared(folder, EQUIVALENT)


def interaction(folder: Path) -> list[str]:
    arms = {"baseline": 100, "higher-rate": 150, "full-precision": 300, "full-precision+higher-rate": 310}
    for seed in range(7):
        for arm, count in arms.items():
            healthy_run(folder, seed, arm=arm, unique=[8000, *[count + seed * 2] * 10])
    return compared(folder, INTERACTION)


def many_arms(folder: Path) -> list[str]:
    for index in range(12):
        for size in (128, 256, 512, 768):
            sick = SICK | {"unique": [8000, *[3] * 10]} if index == 7 else {}
            loss = {"HeldOutLoss": 4.7 + index / 100 + size / 1e5} | sick
            healthy_run(folder, arm=f"reduced-lr:peak=0.00{index + 10}", size=size, **loss)
    return []


def long_arm(folder: Path) -> list[str]:
    for seed in range(3):
        healthy_run(folder, seed, arm=LONG)
    return []


CASES: dict[str, Callable[[Path], list[str]]] = {
    case.__name__: case
    for case in (
        refuted,
        short_runs,
        supported,
        inconclusive,
        invalid,
        one_run,
        unnamed,
        crashed,
        unknown_arm,
        relapsed,
        paired,
        equivalent,
        interaction,
        many_arms,
        long_arm,
    )
}
CODES = {"supported": 0, "refuted": 1, "invalid": 4, "inconclusive": 5}


def shown(case: str, folder: Path, *more: str) -> Done:
    """Return what `verify` prints of a case."""
    return call("verify", folder, *CASES[case](folder), *more)


@pytest.mark.usefixtures("plain_environment")
@pytest.mark.parametrize("case", CASES)
def test_the_first_screen_is_frozen(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = shown(case, tmp_path / "runs")
    lines = done.out.splitlines()
    golden = GOLDEN / f"verify-{case}.txt"
    if os.environ.get("SCREENS") == "write":
        golden.write_text(done.out, encoding="utf-8")
    assert done.out == golden.read_text(encoding="utf-8")
    assert lines[0].startswith("CLAIM  ")
    assert lines[-1].startswith("verdict")
    assert done.code == CODES[lines[-1].rpartition(": ")[2]]
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 20


@pytest.mark.usefixtures("plain_environment")
@pytest.mark.parametrize("case", CASES)
def test_a_summary_fits_any_width(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = shown(case, tmp_path / "runs", "--json")
    summary = Summary.model_validate(done.json["summary"])
    assert done.json["verdict"] == summary.outcome.value
    assert summary.exit_code == done.code
    for width in (40, 60, 80, 100, 120, 200):
        lines = [line.plain for line in summary_lines(summary, width)]
        assert max(map(len, lines)) <= width
        # what was claimed and what came out is there at any width
        text = " ".join(" ".join(lines).split())
        assert summary.outcome.value.upper() in text
        assert "CLAIM" in text
    assert len(summary_lines(summary, 120)) <= 20


def test_the_page_on_criteria_shows_a_screen_of_today() -> None:
    page = (Path(__file__).parents[2] / "docs" / "criteria.md").read_text(encoding="utf-8")
    assert (GOLDEN / "verify-refuted.txt").read_text(encoding="utf-8") in page


@pytest.mark.usefixtures("plain_environment")
def test_details_follow_the_summary_and_the_verdict_is_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short = shown("inconclusive", tmp_path / "runs").out.splitlines()
    full = call("verify", tmp_path / "runs", "-i", "no-decay", "--details").out.splitlines()
    assert full[: len(short) - 1] == short[:-1]
    assert full[-1] == short[-1] == "verdict (no-decay): inconclusive"
    assert len(full) > 3 * len(short)
