"""The page of findings, made again from the committed runs: outputs, table of verdicts, figures.

    python -m benchmarks.findings [--write]

`docs/findings.md` has commands of four kinds, and this program what they print:

- in a block ```console, a line `$ [COLUMNS=N] bitnetctl … [| sed …]`, and its output;
- in a block ```bash, a line `bitnetctl verify …  # N`, whose verdict, effect and seeds are the last cells of the row N
  of a table of questions;
- in a row of a table of claims, which begins with the name of one, `bitnetctl verify --claim NAME
  runs/reference/claims`, whose title is the second cell, and whose verdict, effect and seeds the last ones;
- in a comment below a figure, `bitnetctl analyze PATHS [--show COLUMNS] --figure docs/findings/NAME.svg`.

A command that fails or prints nothing is an error, and so is a block, table, row or figure of no such form, a row
without a command and a command without a row. Without --write what differs is printed, and the exit code is 1. Nothing
is trained; all commands together take seconds.
"""

import argparse
import contextlib
import difflib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import bitnetctl
from benchmarks import harness
from bitnetctl import cli
from bitnetctl.errors import ExitCode
from bitnetctl.report import figure_data_hash

PAGE = Path("docs/findings.md")
_JUDGED = (ExitCode.SUPPORTED, ExitCode.REFUTED, ExitCode.INCONCLUSIVE, ExitCode.INVALID)
FIGURE = re.compile(r"<!-- (bitnetctl analyze .*?--figure (\S+).*?) -->")
_PICTURE = re.compile(r"!\[[^\]]*\]\((\S+)\)")
_ANY_PICTURE = re.compile(r"!\[|<img\b|<!--")
_ANY_CELL = re.compile(r"\||<t[rd]\b")
_CODE_SPAN = re.compile(r"`[^`]+`")
_COMMAND = re.compile(r"\$ (COLUMNS=\d+ )?bitnetctl .+")
_ANY_COMMAND = re.compile(r"\s*\$ ")
_BLOCKS = ("console", "bash")
_HEADS = {"questions": "| | question |", "claims": "| claim |"}
_DELIMITER = re.compile(r"\|(:?-+:?\|){6}")
_SIX_CELLS = r"\| {} \|(?P<second>[^|]*)\|(?P<third>[^|]*)(\|[^|]*){{3}}\|"
# what every line of a kind has to be
_FORMS = {
    "bash": ("`bitnetctl verify …  # NUMBER`", re.compile(r"(?P<command>bitnetctl verify .*?) +# (?P<name>\d+)")),
    "questions": ("| NUMBER | and five more cells", re.compile(_SIX_CELLS.format(r"(?P<name>\d+)"))),
    "claims": ("| `NAME` | and five more cells", re.compile(_SIX_CELLS.format("`(?P<name>[a-z0-9-]+)`"))),
}


class _Line(NamedTuple):
    """A line of the page; `kind` is that of its block or table, "edge" at the beginning and end of these, or "text"."""

    number: int
    text: str
    kind: str

    def error(self, what: str) -> ValueError:
        """Return an error about this line."""
        return ValueError(f"{PAGE}:{self.number}: {what}: {self.text}")


def main() -> int:
    """Compare the page with what its commands print, or write it anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write page and figures")
    write = parser.parse_args().write
    harness.enter_cli_environment()
    before = PAGE.read_text(encoding="utf-8")
    after = made_again(before)
    if not write:
        sys.stdout.writelines(
            difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(PAGE), "made again")
        )
        old = [figure for command, figure in FIGURE.findall(before) if not is_drawn(command, figure)]
        sys.stdout.writelines(f"{figure} shows other values\n" for figure in old)
        return int(before != after or bool(old))
    PAGE.write_text(after, encoding="utf-8")
    for command, _ in FIGURE.findall(after):
        printed(command)
    return 0


def is_drawn(command: str, figure: str) -> bool:
    """Whether a figure shows what its command would draw now; needs no matplotlib."""
    paths, columns = _what_is_drawn(command)
    study = bitnetctl.analyze(bitnetctl.load_runs(paths))
    return f"sha256:{figure_data_hash(study, columns)}" in Path(figure).read_text(encoding="utf-8")


def _what_is_drawn(command: str) -> tuple[list[str], list[str] | None]:
    """Return the paths and columns of `bitnetctl analyze`; raises ValueError for options that may change the values."""
    paths: list[str] = []
    columns = None
    words = iter(shlex.split(command.removeprefix("bitnetctl analyze ")))
    for word in words:
        if word == "--show":
            columns = next(words, "").split(",")
        elif word == "--figure":
            next(words)
        elif word.startswith("-"):
            raise ValueError(f"{PAGE}: {word} is not compared, only paths and --show of a figure are: {command}")
        else:
            paths.append(word)
    return paths, columns


def made_again(page: str) -> str:
    """Return the page with the output of every command and the cells of every row as they are now.

    Raises ValueError, with the number of the line, for what has no form of this page.
    """
    lines = list(_lines(page))
    for before, line, below in zip([None, *lines], lines, [*lines[1:], None], strict=False):
        _require_form(line, before, below)
    commands = _listed(lines)
    return "".join(f"{text}\n" for line in lines for text in _again(line, commands))


def _lines(page: str) -> Iterator[_Line]:
    """Yield the lines of a page; a table ends at an empty one, as Markdown has it."""
    kind = "text"
    for number, text in enumerate(page.removesuffix("\n").split("\n"), 1):
        if text.lstrip().startswith(("```", "~~~")):
            if text not in (("```",) if kind in _BLOCKS else ("```console", "```bash")):
                raise _Line(number, text, kind).error("a block begins with ```console or ```bash, and ends with ```")
            kind = text.removeprefix("```") or "text"
            yield _Line(number, text, "edge")
        elif kind in _BLOCKS or (kind in _HEADS and text):
            yield _Line(number, text, "edge" if kind in _HEADS and _DELIMITER.fullmatch(text) else kind)
        else:
            kind = next((name for name, head in _HEADS.items() if text.startswith(head)), "text")
            yield _Line(number, text, "text" if kind == "text" else "edge")
    if kind in _BLOCKS:
        raise ValueError(f"{PAGE}: its last block does not end with ```")


def _require_form(line: _Line, before: _Line | None, below: _Line | None) -> None:
    """Raise ValueError for a line that is not what its kind demands, between the lines before and below."""
    text = _CODE_SPAN.sub("", line.text)
    if line.kind in _FORMS:
        name, form = _FORMS[line.kind]
        if line.text and not form.fullmatch(line.text):
            raise line.error(f"expected {name}")
    elif line.kind == "console":
        is_first = before is not None and before.kind == "edge"
        if (is_first or _ANY_COMMAND.match(line.text)) and not _COMMAND.fullmatch(line.text):
            raise line.error("expected `$ [COLUMNS=N] bitnetctl … [| sed …]`")
    elif line.kind == "text" and _ANY_COMMAND.match(line.text):
        raise line.error("a command is in no block of ```console")
    elif line.kind == "text" and _ANY_CELL.search(text):
        raise line.error(f"a row is in no table that begins with {' or '.join(_HEADS.values())}")
    elif line.kind == "text" and _ANY_PICTURE.search(text):
        picture, comment = (before, line) if text.startswith("<!--") else (line, below)
        if not (picture and comment and _is_figure(picture.text, comment.text)):
            raise line.error("expected ![…](findings/NAME.svg), and below it <!-- bitnetctl analyze … --figure … -->")


def _is_figure(picture: str, comment: str) -> bool:
    """Whether a line is a figure, and the one below it the comment with its command."""
    shown, drawn = _PICTURE.fullmatch(picture), FIGURE.fullmatch(comment)
    return shown is not None and drawn is not None and drawn[2] == f"docs/{shown[1]}"


def _listed(lines: Sequence[_Line]) -> dict[str, str]:
    """Return the command of every row with a number; raises ValueError where these are not one to one."""
    named = {kind: _by_name(lines, kind) for kind in _FORMS}
    for name, line in named["questions"].items():
        if name not in named["bash"]:
            raise line.error(f"no command in a block of ```bash has # {name}")
    for name, line in named["bash"].items():
        if name not in named["questions"]:
            raise line.error(f"no row of a table has the number {name}")
    return {name: _match(line)["command"] for name, line in named["bash"].items()}


def _by_name(lines: Sequence[_Line], kind: str) -> dict[str, _Line]:
    """Return the lines of a kind by number or name; raises ValueError for one that is there twice."""
    found: dict[str, _Line] = {}
    for line in lines:
        if line.kind == kind and line.text:
            name = _match(line)["name"]
            if name in found:
                raise line.error(f"{name} is in line {found[name].number} already")
            found[name] = line
    return found


def _match(line: _Line) -> re.Match[str]:
    match = _FORMS[line.kind][1].fullmatch(line.text)
    assert match is not None
    return match


def _again(line: _Line, commands: Mapping[str, str]) -> Iterator[str]:
    """Yield a line as it is now, after a command its output, and nothing for a line of an output of before."""
    if line.kind == "console":
        if _COMMAND.fullmatch(line.text):
            yield line.text
            yield from printed(line.text.removeprefix("$ ")).removesuffix("\n").split("\n")
    elif line.kind == "questions":
        row = _match(line)
        tree = _judged(commands[row["name"]])
        yield _cells(row["name"], row["second"], row["third"], *_verdict_cells(tree))
    elif line.kind == "claims":
        row = _match(line)
        tree = _judged(f"bitnetctl verify --claim {row['name']} runs/reference/claims")
        yield _cells(f"`{row['name']}`", tree["claim"]["title"], row["third"], *_verdict_cells(tree))
    else:
        yield line.text


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cell.strip() for cell in cells)} |"


def printed(command: str) -> str:
    """Return what a command prints to stdout, without a terminal, from the folder of the checkout."""
    shown, _, excerpt = command.partition(" | sed ")
    columns, *arguments = shlex.split(shown)
    width = {"COLUMNS": columns.removeprefix("COLUMNS=")} if arguments[0] == "bitnetctl" else {}
    out = io.StringIO()
    with (
        mock.patch.dict(os.environ, width),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        code = cli.run(arguments[len(width) :])
    text = out.getvalue()
    if excerpt:
        sed = ["sed", *shlex.split(excerpt)]
        done = subprocess.run(sed, input=text, capture_output=True, encoding="utf-8", check=True)
        text = done.stdout.rstrip("\n") + "\n"
    # a figure is written and not printed
    if code not in _JUDGED or not (text.strip() or "--figure" in arguments):
        raise ValueError(f"ended with {code} and printed {len(text)} characters: {command}")
    return text


def _judged(command: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(printed(f"{command} --json"))
    return tree


def _verdict_cells(tree: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return verdict, effect and seeds of `verify --json`, for the arm of a claim or of -i, else for the strictest."""
    summary = tree["summary"]
    asked = [row for row in summary["rows"] if row["is_asked"]]
    values = [pair["value"] for one in tree["verdicts"][0]["statistics"] for pair in one["pairs"].values()]
    found = [
        f"h{row['size']}: {row['seeds_ok']} of {row['seeds']} runs pass, held-out loss {row['held_out_loss']:.2f}"
        for row in asked
    ]
    effect = [f"{value}: {text}" for value, text in zip(values, summary["effect"], strict=True)] if values else found
    seeds = sorted({row["seeds"] for row in asked})
    return tree["verdict"], "; ".join(effect), " and ".join(map(str, seeds))


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "80")
    sys.exit(main())
