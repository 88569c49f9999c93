"""The page of findings, made again from the committed runs: outputs, table of verdicts, figures.

    python -m benchmarks.findings [--write]

`docs/findings.md` has commands of three kinds, and this program what they print:

- in a block ```console, a line `$ bitnetctl …`, which may end in `| sed -n FIRST,LASTp`, and its output;
- in the last cell of a row of the table, `bitnetctl verify …`, whose verdict, effect and seeds are the cells before it;
- in a comment in front of a figure, `bitnetctl analyze … --figure docs/findings/NAME.svg`.

Without --write it says what differs, and ends with 1. Nothing is trained; all commands together take seconds.
"""

import argparse
import contextlib
import difflib
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks import harness
from bitnetctl import cli

PAGE = Path("docs/findings.md")
FIGURE = re.compile(r"<!-- (bitnetctl analyze .*?--figure (\S+).*?) -->")
_BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
_CUT = re.compile(r"\s*\|\s*sed -n (\d+),(\d+)p$")
_ROW = re.compile(r"^(\|[^|\n]*\|[^|\n]*)\|[^|\n]*\|[^|\n]*\|[^|\n]*\| `bitnetctl (verify [^`|\n]*)` \|$", re.MULTILINE)


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
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    for command, _ in FIGURE.findall(after):
        printed(command)
    return 0


def made_again(page: str) -> str:
    """Return the page with the output of every command and the cells of every row as they are now."""
    page = _BLOCK.sub(lambda block: _with_outputs(block[1]), page)
    return _ROW.sub(lambda row: f"{row[1]}| {' | '.join(verdict_cells(row[2]))} | `bitnetctl {row[2]}` |", page)


def _with_outputs(block: str) -> str:
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{command}\n{printed(command[2:])}" for command in commands)


def printed(command: str) -> str:
    """Return what a command prints to stdout, without a terminal, from the folder of the checkout."""
    cut = _CUT.search(command)
    _, *arguments = shlex.split(command[: cut.start()] if cut else command)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        cli.run(arguments)
    lines = out.getvalue().splitlines(keepends=True)
    return "".join(lines[int(cut[1]) - 1 : int(cut[2])] if cut else lines)


def verdict_cells(command: str) -> tuple[str, str, str]:
    """Return verdict, effect and seeds of `verify`, for the arm of a claim or of -i, else for the strictest."""
    tree: dict[str, Any] = json.loads(printed(f"bitnetctl {command} --json"))
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
