"""Whole screens of `analyze` and `sweep` at 40, 80 and 120 columns, against files in tests/golden/screens.

With SCREENS=write in the environment the files are written; read the difference before it is committed.
"""

import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic import REFERENCES, curve, quick, simple_run, write_run

from bitnetctl import report
from bitnetctl.analysis.study import Study, study
from bitnetctl.api import load_runs
from bitnetctl.report.terminal import sweep_table

SCREENS = Path(__file__).parents[1] / "golden" / "screens"
WIDTHS = (40, 80, 120)
STEPS = [1, *range(100, 1001, 100)]
LONG = "reduced-lr:peak=0.0003+label-smoothing:epsilon=0.2"
# final held-out loss by seed: collapsed to the end, better in every seed, no visible help
ENDS = {"": (6.30, 6.35, 5.90), "no-decay": (5.67, 5.72, 5.27), LONG: (6.31, 6.34, 5.912)}


def trained(folder: Path, arm: str, size: int, seed: int, **fields: Any) -> Path:
    """Write a run that is worse than the unigram predictor until its end, by ENDS."""
    end = ENDS[arm][seed] - size / 1000
    losses = [7.6, *(end + 0.1 * (len(STEPS) - 1 - index) for index in range(1, len(STEPS)))]
    rows = curve(
        STEPS,
        HeldOutLoss=[round(loss, 4) for loss in losses],
        UniquePredictions=[1000, *(4 + 7 * index + seed for index in range(1, len(STEPS)))],
        RandomPromptUnique=[20, *(15 - index for index in range(1, len(STEPS)))],
        ZeroFraction=0.31,
        FlipRate=0.004,
        WD=[0.1 if step <= 500 else 0.0 for step in STEPS],
        **REFERENCES,
    )
    return write_run(folder, quick(arm, size=size, seed=seed), rows, **fields)


@pytest.fixture(scope="module")
def three_arms(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three arms, two sizes, three seeds; one run has diverged."""
    folder = tmp_path_factory.mktemp("runs")
    paths = []
    for arm, size, seed in itertools.product(ENDS, (64, 128), range(3)):
        failed = (arm, size, seed) == (LONG, 128, 2)
        fields = {"status": "diverged", "diverged_at": 1000} if failed else {}
        paths.append(trained(folder, arm, size, seed, **fields))
    return study(load_runs(paths))


@pytest.fixture(scope="module")
def two_arms(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("runs")
    grid = itertools.product(("", "no-decay"), (64, 128), range(3))
    return study(load_runs([trained(folder, arm, size, seed) for arm, size, seed in grid]))


def compare(name: str, width: int, draw: Callable[[Console], None]) -> str:
    """Draw a screen and compare it with its file; return it."""
    file = io.StringIO()
    draw(Console(file=file, width=width, color_system=None, emoji=False))
    text = file.getvalue()
    path = SCREENS / f"{name}-{width}.txt"
    if os.environ.get("SCREENS") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs"
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.mark.parametrize("width", WIDTHS)
def test_two_arms(two_arms: Study, width: int) -> None:
    text = compare("analyze-two-arms", width, lambda console: report.print_study(two_arms, console, details=False))
    assert width < 80 or len(text.splitlines()) <= 30


@pytest.mark.parametrize("width", WIDTHS)
def test_three_arms(three_arms: Study, width: int) -> None:
    compare("analyze-three-arms", width, lambda console: report.print_study(three_arms, console, details=False))


@pytest.mark.parametrize("width", WIDTHS)
def test_details(three_arms: Study, width: int) -> None:
    compare("analyze-details", width, lambda console: report.print_study(three_arms, console, details=True))


@pytest.mark.parametrize("width", WIDTHS)
def test_arms_that_differ_at_their_end(width: int) -> None:
    arm = "reduced-lr+no-decay+label-smoothing:epsilon=0."
    final = {"UniquePredictions": 63.0, "HeldOutLoss": 5.785}
    rows = [
        {"size": 64, "arm": f"{arm}{index}", "seed": 0, "status": "finished", "final": final} for index in (1, 2, 3)
    ]
    text = compare("sweep", width, lambda console: console.print(sweep_table(rows)))
    whole = "".join(text.split())
    assert all(whole.count(f"epsilon=0.{index}") == 1 for index in (1, 2, 3))
    assert "…" not in text


def test_only_the_kind_of_a_finding_is_bold(two_arms: Study) -> None:
    for line in report.overview.finding_lines(two_arms.findings, 80):
        assert str(line.style) == ""
        assert {str(span.style) for span in line.spans if span.start >= 10} <= {"", "dim"}


def test_of_many_arms_those_that_did_not_collapse_are_counted(tmp_path: Path) -> None:
    def collapse(name: str, losses: list[float]) -> str:
        for number, loss in enumerate(losses):
            simple_run(tmp_path / name, quick(f"reduced-lr:factor=0.{number + 1}"), loss=loss)
        lines = report.overview.finding_lines(study(load_runs([tmp_path / name])).findings, 200)
        return "\n".join(line.plain for line in lines if "collapse" in line.plain)

    # the unigram predictor has 6 nats
    assert collapse("none", [5.0] * 9).startswith("collapse  9 arms (--details): 0 of 9 runs collapsed")
    text = collapse("one", [5.0, 7.0, *[5.0] * 7])
    assert text.startswith("collapse  reduced-lr:factor=0.2: collapsed")
    assert "\n          … and 8 more (--details): 0 of 8 runs collapsed\n" in text
    assert collapse("few", [5.0] * 8).count("no collapse") == 8
