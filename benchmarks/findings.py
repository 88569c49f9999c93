"""The page of findings, made again from the committed runs: outputs, table of verdicts, figures.

    python -m benchmarks.findings [--write]

`docs/findings.md` has commands of four kinds, and this program what they print:

- in a block ```console, a line `$ [COLUMNS=N] bitnetctl … [| sed …]`, and its output;
- in a block ```bash, a line `bitnetctl verify …  # N`, whose verdict, effect and seeds are the last cells of the row N
  of a table;
- in a row of a table that begins with the name of a claim, `bitnetctl verify --claim NAME runs/reference/claims`, whose
  title is the second cell, and whose verdict, effect and seeds the last ones;
- in a comment in front of a figure, `bitnetctl analyze PATHS [--show COLUMNS] --figure docs/findings/NAME.svg`.

A command that fails or prints nothing is an error, and so is a row or line of no such form. Without --write what
differs is printed, and the exit code is 1. Nothing is trained; all commands together take seconds.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import bitnetctl
from benchmarks import harness
from bitnetctl import cli
from bitnetctl.errors import ExitCode
from bitnetctl.report import figure_data_hash

PAGE = Path("docs/findings.md")
_JUDGED = (ExitCode.SUPPORTED, ExitCode.REFUTED, ExitCode.INCONCLUSIVE, ExitCode.INVALID)
_ANY_ROW = re.compile(r"^\| *(\d|`)", re.MULTILINE)
_ANY_COMMAND = re.compile(r"^\s*\$ ", re.MULTILINE)
FIGURE = re.compile(r"<!-- (bitnetctl analyze .*?--figure (\S+).*?) -->")
_BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
_LISTED = re.compile(r"^(bitnetctl verify .*?) +# (\d+)$", re.MULTILINE)
_ROW = re.compile(r"^\| (\d+) \|([^|\n]*)\|([^|\n]*)\|[^|\n]*\|[^|\n]*\|[^|\n]*\|$", re.MULTILINE)
_CLAIM_ROW = re.compile(r"^\| `([a-z0-9-]+)` \|[^|\n]*\|([^|\n]*)\|[^|\n]*\|[^|\n]*\|[^|\n]*\|$", re.MULTILINE)


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
    """Return the page with the output of every command and the cells of every row as they are now."""
    if len(_ANY_COMMAND.findall(page)) != sum(len(_ANY_COMMAND.findall(block)) for block in _BLOCK.findall(page)):
        raise ValueError(f"{PAGE}: a line that begins with $ is in no block of ```console")
    if len(_ANY_ROW.findall(page)) != len(_ROW.findall(page)) + len(_CLAIM_ROW.findall(page)):
        raise ValueError(f"{PAGE}: a row that begins with a number or a name has not six cells")
    page = _BLOCK.sub(lambda block: _with_outputs(block[1]), page)
    listed = {number: command for command, number in _LISTED.findall(page)}
    page = _ROW.sub(lambda row: _cells(row[1], row[2], row[3], *_verdict_cells(_judged(listed[row[1]]))), page)
    return _CLAIM_ROW.sub(_claim_row, page)


def _claim_row(row: re.Match[str]) -> str:
    tree = _judged(f"bitnetctl verify --claim {row[1]} runs/reference/claims")
    return _cells(f"`{row[1]}`", tree["claim"]["title"], row[2], *_verdict_cells(tree))


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cell.strip() for cell in cells)} |"


def _with_outputs(block: str) -> str:
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{command}\n{printed(command[2:])}" for command in commands)


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
