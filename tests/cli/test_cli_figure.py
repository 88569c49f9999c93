"""`bitnetctl analyze --figure` from the command line: what it writes and refuses."""

import sys
from pathlib import Path

import pytest
from calling import Done, call
from synthetic import quick, simple_run

from bitnetctl.analysis.study import study
from bitnetctl.api import load_runs
from bitnetctl.report import figure_data_hash

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of two arms with one seed."""
    for arm in ("", "no-decay"):
        simple_run(tmp_path / "runs", quick(arm, steps=200))
    return tmp_path / "runs"


def analyze(*arguments: str | Path) -> Done:
    return call("analyze", *arguments)


def test_a_figure_has_the_hash_of_what_it_shows(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "curves.SVG"
    done = analyze(runs, "--figure", file, "--show", "Skill,LR")
    assert (done.code, done.err) == (0, f"written: {file}\n")
    shown = study(load_runs([runs]))
    assert f"sha256:{figure_data_hash(shown, ['Skill', 'LR'])}".encode() in file.read_bytes()
    assert figure_data_hash(shown, ["Skill", "LR"]) != figure_data_hash(shown)
    # the same on stdout
    again = analyze(runs, "--figure", "-", "--show", "Skill,LR")
    assert (again.code, again.out, again.err) == (0, file.read_text(encoding="utf-8"), "")
    both = analyze(runs, "--figure", "-", "--json")
    assert both.error == "error: --figure and --json would share stdout; give all but one of them a file"


def test_mistakes_are_told_before_anything_is_read(tmp_path: Path) -> None:
    for arguments, message in (
        (["--show", "LR"], "--show chooses what --figure draws; give --figure FILE, too"),
        (["--figure", "a.jpg"], "--figure a.jpg: the file must end in .svg, .png or .pdf"),
        (["--figure", "svg"], "--figure svg: the file must end in .svg, .png or .pdf"),
        (["--figure", "a.svg", "--show", "Losses"], "--show: unknown column 'Losses'; did you mean 'Loss'?"),
    ):
        done = analyze(tmp_path / "none.csv", *arguments)
        assert (done.code, done.error) == (2, f"error: {message}")


def test_a_missing_library_is_named(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = analyze(runs, "--figure", "a.svg")
    assert done.error == "error: --figure needs the library matplotlib: pip install 'bitnetctl[figures]'"
    assert analyze(runs).code == 0


def test_a_figure_that_cannot_be_drawn_leaves_no_other_file(runs: Path, tmp_path: Path) -> None:
    page, figure = tmp_path / "page.html", tmp_path / "figure.svg"
    done = analyze(runs, "--html", page, "--figure", figure, "--show", "FlipRate")
    assert done.error == "error: --show FlipRate: no run has a value of it after step 1"
    assert not page.exists()
    assert not figure.exists()


def test_no_file_that_was_given_is_overwritten(runs: Path, tmp_path: Path) -> None:
    # a CSV may be called anything
    given = tmp_path / "curves.svg"
    given.write_bytes(next(runs.glob("*.csv")).read_bytes())
    done = analyze(given, "--figure", given)
    assert done.error == f"error: {given}: is one of the files given; write to another"


def test_no_file_is_written_twice(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.svg"
    done = analyze(runs, "--html", file, "--figure", tmp_path / "." / "page.svg")
    assert done.error == f"error: {file}: is to be written twice; give each output a file of its own"
    assert not file.exists()
    # a device takes more than one
    assert analyze(runs, "--html", "/dev/null", "--markdown", "/dev/null").code == 0
