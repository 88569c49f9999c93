"""The page of findings: every output, every cell of its table and every figure is what the committed runs give."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks import findings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / findings.PAGE).read_text(encoding="utf-8")
SETS = sorted(path for path in (ROOT / "runs" / "reference").iterdir() if path.is_dir())


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the commands of the page read: judging a claim may add a look."""
    shutil.copytree(ROOT / "runs" / "reference", tmp_path / "runs" / "reference")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("plain_environment")
def test_the_page_is_what_its_commands_print(checkout: Path) -> None:
    assert findings.made_again(PAGE).splitlines() == PAGE.splitlines()
    # a judgement that was made before leaves nothing behind
    looks = {path.relative_to(checkout): path.read_bytes() for path in checkout.rglob("claims/*.json")}
    assert looks == {path: (ROOT / path).read_bytes() for path in looks}


def test_another_value_on_the_page_is_found(checkout: Path) -> None:
    command = "bitnetctl verify runs/reference/origin-h256"
    row = "| 3 | is it? | no | refuted | {} | 6 |\n"
    page = f"{row}{{}}```console\n$ {command} | sed -n '/^VERDICT/p'\n{{}}\n```\n```bash\n{command}  # 3\n```\n"
    found = "h256: 0 of 6 runs pass, held-out loss 5.80; h256: 6 of 6 runs pass, held-out loss 5.67"
    verdict = "VERDICT  REFUTED (exit 1): the strictest of 2 arms: baseline refuted,"
    right = page.format(found, "", verdict)
    assert findings.made_again(page.format("h256: 6 of 6", "", "VERDICT  SUPPORTED")) == right
    wide = right.replace("$ bitnetctl", "$ COLUMNS=120 bitnetctl")
    assert findings.made_again(wide) == wide.replace(verdict, f"{verdict} decoupled-decay supported")
    claim = "| `ternary-cause` | {} | this bench | {} | {} | 6 |\n"
    again = findings.made_again(claim.format("", "supported", "none"))
    assert again.startswith("| `ternary-cause` | Ternary weights cause the collapse: ")
    assert " | this bench | refuted | share of the run" in again


def test_every_row_of_the_page_has_its_command() -> None:
    rows = [line[2:].split(" | ") for line in PAGE.splitlines() if re.match(r"\| (\d+|`[a-z0-9-]+`) \|", line)]
    numbers = [cells[0] for cells in rows if cells[0].isdecimal()]
    assert numbers == [line.rpartition("# ")[2] for line in PAGE.splitlines() if line.startswith("bitnetctl verify")]
    claims = {path.stem for path in (ROOT / "bitnetctl" / "claims" / "builtin").glob("*.toml")}
    assert claims == {cells[0].strip("`") for cells in rows} - set(numbers)
    assert {cells[-3] for cells in rows} == {"supported", "refuted", "inconclusive"}


@pytest.mark.parametrize(
    "changed", ["| 3a | is it? | no | refuted | none | 6 |", "| 3 | is it? | refuted | none | 6 |"]
)
def test_a_row_that_would_be_passed_over_is_an_error(changed: str) -> None:
    with pytest.raises(ValueError, match="has not six cells"):
        findings.made_again(f"{changed}\n")


def test_a_command_that_fails_or_prints_nothing_is_an_error(checkout: Path) -> None:
    for command in ("verify no/such/folder", "analyze runs/reference/origin-h256 | sed -n '/^nothing/p'"):
        with pytest.raises(ValueError, match=r"ended with \d and printed [01] characters"):
            findings.made_again(f"```console\n$ bitnetctl {command}\n```\n")
    with pytest.raises(ValueError, match="in no block"):
        findings.made_again(" ```console\n $ bitnetctl analyze runs/reference/origin-h256\n ```\n")


@pytest.mark.parametrize(("command", "figure"), findings.FIGURE.findall(PAGE))
def test_a_figure_shows_the_committed_runs(command: str, figure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert findings.is_drawn(command, figure)
    assert not findings.is_drawn(command.replace("HeldOutLoss", "Loss"), figure)
    assert f"]({Path(figure).relative_to('docs')})" in PAGE


@pytest.mark.parametrize("option", ["--baseline muon", "--map step=Step", "--show=Loss", "-q"])
def test_an_option_that_the_comparison_of_a_figure_would_drop_is_an_error(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option.split()[0]} is not compared"):
        findings.is_drawn(f"bitnetctl analyze runs/reference/origin-h256 {option} --figure a.svg", "a.svg")


def test_every_path_of_a_figure_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "runs")
    command, figure = next(one for one in findings.FIGURE.findall(PAGE) if "origin-h256" in one[0])
    beside, drawn = command.replace("runs/reference", "reference"), f"../{figure}"
    assert findings.is_drawn(beside, drawn)
    assert not findings.is_drawn(beside.replace(" --show", " reference/quick-h64 --show"), drawn)


def test_every_figure_is_on_the_page() -> None:
    assert {path.name for path in (ROOT / "docs" / "findings").iterdir()} == {
        Path(figure).name for _, figure in findings.FIGURE.findall(PAGE)
    }


@pytest.mark.parametrize("folder", SETS, ids=lambda path: path.name)
def test_a_set_of_runs_is_small_complete_and_has_its_command(folder: Path) -> None:
    names = {path.stem for path in folder.glob("*.csv")}
    assert names == {path.parent.name for path in folder.glob("*/run.json")}
    assert not [path for path in folder.rglob("*") if path.suffix == ".safetensors"]
    readme = (ROOT / "runs" / "reference" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{folder.name}` \|", readme, re.MULTILINE)
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*/run.json"))
    assert '"/' not in text


def test_all_sets_together_are_small() -> None:
    assert sum(path.stat().st_size for one in SETS for path in one.rglob("*")) < 15e6
