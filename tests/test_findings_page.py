"""The page of findings: every output, every cell of its table and every figure is what the committed runs give."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks import findings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / findings.PAGE).read_text(encoding="utf-8")
QUESTIONS = "| | question | answer | verdict on the claim | effect | seeds |\n|---|---|---|---|---|---|\n"
CLAIMS = "| claim | what it says | made by | verdict | effect | seeds |\n|---|---|---|---|---|---|\n"
ROW = "| 3 | is it? | no | refuted | none | 6 |"
LISTED = "```bash\nbitnetctl verify runs/reference/origin-h256    # 3\n```"
FIGURE = (
    "![two curves](findings/quick.svg)\n<!-- bitnetctl analyze runs/reference/a --figure docs/findings/quick.svg -->"
)
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
    block = f"```console\n$ {command} | sed -n '/^VERDICT/p'\n{{}}\n```\n"
    page = f"{QUESTIONS}{row}\n{{}}{block}```bash\n{command}  # 3\n```\n"
    passed = ((0, 5.80), (6, 5.67), (0, 8.54))
    found = "; ".join(f"h256: {count} of 6 runs pass, held-out loss {loss:.2f}" for count, loss in passed)
    verdict = "VERDICT  REFUTED (exit 1): the strictest of 3 arms: baseline refuted,"
    right = page.format(found, "", verdict)
    assert findings.made_again(page.format("h256: 6 of 6", "", "VERDICT  SUPPORTED")) == right
    wide = right.replace("$ bitnetctl", "$ COLUMNS=120 bitnetctl")
    assert findings.made_again(wide) == wide.replace(verdict, f"{verdict} decoupled-decay supported,")
    claim = f"{CLAIMS}| `ternary-cause` | {{}} | this bench | {{}} | {{}} | 6 |\n"
    again = findings.made_again(claim.format("", "supported", "none"))
    assert again.startswith(f"{CLAIMS}| `ternary-cause` | Ternary weights cause the collapse: ")
    assert " | this bench | refuted | share of the run" in again


def test_every_row_of_the_page_has_its_command() -> None:
    rows = [line[2:].split(" | ") for line in PAGE.splitlines() if re.match(r"\| (\d+|`[a-z0-9-]+`) \|", line)]
    numbers = [cells[0] for cells in rows if cells[0].isdecimal()]
    assert numbers == [line.rpartition("# ")[2] for line in PAGE.splitlines() if line.startswith("bitnetctl verify")]
    claims = {path.stem for path in (ROOT / "bitnetctl" / "claims" / "builtin").glob("*.toml")}
    assert claims == {cells[0].strip("`") for cells in rows} - set(numbers)
    assert {cells[-3] for cells in rows} == {"supported", "refuted", "inconclusive"}


@pytest.mark.parametrize(
    "row",
    [
        "| 3a | is it? | no | refuted | none | 6 |",
        "| 3 | is it? | refuted | none | 6 |",
        "| **3** | is it? | no | refuted | none | 6 |",
        " | 3 | is it? | no | refuted | none | 6 |",
        "| 3 | is it? | no | refuted | none | 6 | ",
        "3 | is it? | no | refuted | none | 6",
        "| `ternary-cause` | is it? | no | refuted | none | 6 |",
        "supported",
    ],
)
def test_a_row_of_another_form_is_an_error(row: str) -> None:
    message = rf"findings\.md:4: expected \| NUMBER \| and five more cells: {re.escape(row)}$"
    with pytest.raises(ValueError, match=message):
        findings.made_again(f"{QUESTIONS}{ROW}\n{row}\n\n{LISTED}\n")
    with pytest.raises(ValueError, match=r"findings\.md:3: expected \| `NAME` \| and five more cells: \| \*\*`"):
        findings.made_again(f"{CLAIMS}| **`ternary-cause`** | it | us | supported | none | 6 |\n")


PASSED_OVER = {
    "head of other words": (f"{QUESTIONS.replace('question', 'asked')}{ROW}\n", "1: a row is in no table .*asked"),
    "indented head": (f" {QUESTIONS}{ROW}\n", r"1: a row is in no table that begins with \| \| question \|"),
    "row after its table": (f"{QUESTIONS}{ROW}\n\n{ROW}\n{LISTED}\n", "5: a row is in no table"),
    "row in a quotation": (f"> {ROW}\n", "1: a row is in no table"),
    "table in HTML": ("<tr><td>3</td><td>supported</td></tr>\n", "1: a row is in no table"),
    "row without a command": (f"{QUESTIONS}{ROW}\n", "3: no command in a block of ```bash has # 3: .*is it"),
    "command without a row": (f"text\n\n{LISTED}\n", "4: no row of a table has the number 3: bitnetctl verify"),
    "row twice": (f"{QUESTIONS}{ROW}\n{ROW}\n\n{LISTED}\n", "4: 3 is in line 3 already: "),
    "command twice": (f"{QUESTIONS}{ROW}\n\n{LISTED}\n{LISTED}\n", "9: 3 is in line 6 already: bitnetctl"),
    "command without a number": ("```bash\nbitnetctl verify runs\n```\n", "2: expected `bitnetctl verify …  # NUM"),
    "other command": ("```bash\nbitnetctl analyze runs  # 3\n```\n", "2: expected `bitnetctl verify …  # NUMBER`"),
    "figure without a command": (FIGURE.splitlines()[0], r"1: expected !\[…\]\(findings/NAME.svg\), .*two curves"),
    "figure and text": (f"Here: {FIGURE}\n", "1: expected !.*: Here: "),
    "two figures": (f"{FIGURE.splitlines()[0]}\n{FIGURE}\n", "1: expected !"),
    "figure of another name": (FIGURE.replace("(findings/quick", "(findings/other"), r"1: expected !.*other\.svg"),
    "figure in HTML": ("<img src='findings/quick.svg'>\n", "1: expected !"),
    "command without a figure": (FIGURE.splitlines()[1], "1: expected !.*: <!-- bitnetctl analyze"),
    "figure of another command": (FIGURE.replace("analyze", "verify"), "1: expected !"),
    "output without a command": (
        "```console\nVERDICT  SUPPORTED\n```\n",
        r"2: expected `\$ .*: VERDICT  SUPPORTED",
    ),
    "indented command": ("```console\n $ bitnetctl analyze runs\n```\n", r"2: expected `\$ "),
    "command of another program": ("```console\n$ ls\n```\n", r"2: expected `\$ .*: \$ ls"),
    "command outside": (" $ bitnetctl analyze runs\n", "1: a command is in no block"),
    "indented block": (" ```console\n $ bitnetctl analyze runs\n ```\n", "1: a block begins with ```console or"),
    "block of another kind": ("```text\nVERDICT  SUPPORTED\n```\n", "1: a block begins with ```console or ```bash"),
    "block with an indented end": ("```console\n$ bitnetctl plans\n ```\n", "3: .* ends with ```"),
    "block without an end": ("```console\n$ bitnetctl plans\n", "its last block does not end with ```"),
}


@pytest.mark.parametrize(("page", "message"), PASSED_OVER.values(), ids=PASSED_OVER)
def test_what_would_be_passed_over_is_an_error(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^docs/findings\.md: ?{message}"):
        findings.made_again(page)


def test_every_row_of_the_page_that_is_changed_is_found() -> None:
    lines = PAGE.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\| (\d+|`[a-z0-9-]+`) \|", line):
            for changed in (
                f" {line}",
                line.replace("| ", "| **", 1),
                line.rpartition("|")[0],
                f"{line} |",
                f"> {line}",
            ):
                with pytest.raises(ValueError, match=f":{number + 1}: expected "):
                    findings.made_again("\n".join([*lines[:number], changed, *lines[number + 1 :]]))


def test_a_command_of_the_page_that_is_removed_is_found() -> None:
    command = next(line for line in PAGE.splitlines() if line.endswith("# 15"))
    with pytest.raises(ValueError, match=r"^docs/findings\.md:\d+: no command in a block of ```bash has # 15: \| 15 "):
        findings.made_again(PAGE.replace(f"{command}\n", ""))


def test_a_command_that_fails_or_prints_nothing_is_an_error(checkout: Path) -> None:
    for command in ("verify no/such/folder", "analyze runs/reference/origin-h256 | sed -n '/^nothing/p'"):
        with pytest.raises(ValueError, match=r"ended with \d and printed [01] characters"):
            findings.made_again(f"```console\n$ bitnetctl {command}\n```\n")


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
