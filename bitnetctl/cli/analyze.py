"""`bitnetctl analyze`: what a set of runs shows."""

import glob
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bitnetctl.cli.options import JsonOption, print_json, stderr, stdout
from bitnetctl.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from bitnetctl.analysis.study import Study

MOST_ROWS = 24
"""Runs up to which a terminal shows each; above, arms and sizes."""

_PLOT_WIDTHS = (40, 120)


def analyze(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS", help="CSVs of runs, folders of them, or patterns.")],
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="ARM", help="Arm to compare with; unset: the one in all others.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the report as Markdown.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one page with curves to explore.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the facts of every run as CSV.")
    ] = None,
    verdicts: Annotated[
        list[Path] | None,
        typer.Option("--verdict", metavar="FILE", help="Show a verdict on the page: the output of verify --json."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Show when runs collapsed and recovered, what each arm changes, which factor explains it, which metrics agree."""
    judged = [verdict for file in verdicts or () for verdict in _read_verdicts(file)]
    from bitnetctl import report
    from bitnetctl.analysis import load_begun_runs
    from bitnetctl.analysis.study import study
    from bitnetctl.files import write_atomic

    files = find_csvs(paths)
    outputs = [file for file in (markdown, html, csv) if file is not None]
    inputs = {os.path.realpath(file) for file in files}
    for file in outputs:
        if os.path.realpath(file) in inputs:
            raise ConfigError(f"{file}: is one of the files to analyse; write to another")
    runs, notes = load_begun_runs(files)
    if not runs:
        raise ConfigError(f"no evaluation in any of {len(files)} runs yet")
    found = study(runs, baseline=baseline, notes=notes)
    if markdown is not None:
        write_atomic(markdown, report.markdown_report(found).encode())
    if html is not None:
        write_atomic(html, report.html_page(found, judged).encode())
    if csv is not None:
        write_atomic(csv, report.facts_csv(found).encode())
    if as_json:
        print_json(found.to_json())
    else:
        show(found, stdout())
    for file in outputs:
        stderr().print(f"written: {file}", markup=False, highlight=False, soft_wrap=True)
    return ExitCode.SUPPORTED


def find_csvs(paths: Sequence[str]) -> list[Path]:
    """Return the CSVs that files, folders and patterns name, each once, in order; raises ConfigError."""
    found: dict[str, Path] = {}
    for text in paths:
        path = Path(text)
        if "\0" in text:
            raise ConfigError(f"{text!r}: no path can hold a NUL byte")
        # Path.is_dir and Path.exists raise for a long name
        if os.path.isdir(text):  # noqa: PTH112
            files = _ordered(entry for entry in _entries(path) if entry.suffix.lower() == ".csv" and entry.is_file())
            if not files:
                raise ConfigError(f"{path}: no CSV in this folder")
        elif os.path.exists(text) or not glob.has_magic(text):  # noqa: PTH110
            files = [path]
        else:
            # a shell that finds nothing, or does not look, hands the pattern on as it is
            files = _ordered(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207 - takes absolute patterns
            if not files:
                raise ConfigError(f"{text}: no file matches")
        for file in files:
            # Path.resolve raises for a link in a circle
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot read: {error.strerror or error}") from error


def _ordered(files: Iterable[Path]) -> list[Path]:
    """Sort as a person would: h256 before h1024."""
    pieces = re.compile(r"(\d+)")
    return sorted(
        files, key=lambda file: [part.zfill(20) if part.isdigit() else part for part in pieces.split(str(file))]
    )


def show(found: "Study", console: Console) -> None:
    """Print tables, plots and sentences."""
    from bitnetctl import report
    from bitnetctl.report.columns import arm_rows, printable, run_rows

    grouped = len(found.facts) > MOST_ROWS
    rows = arm_rows(found.facts, found.arms) if grouped else run_rows(found.facts)

    def line(text: str, style: str = "") -> None:
        console.print(printable(text), style=style, markup=False, highlight=False)

    if grouped:
        line(f"{len(found.facts)} runs; means by arm and size, every run with --json or --html", "dim")
    console.print(report.collapse_table(rows, grouped=grouped))
    console.print()
    console.print(report.end_table(rows, grouped=grouped))
    if found.effects:
        console.print()
        console.print(report.effects_table(found.effects))
    if found.outcomes:
        console.print()
        console.print(report.factors_table(found.outcomes))
        for sentence in dict.fromkeys(outcome.sentence for outcome in found.outcomes):
            line(f"• {sentence}")
    if any(agreement.tau is not None for agreement in found.agreements):
        console.print()
        console.print(report.agreement_table(found.agreements))
        for agreement in found.agreements:
            if agreement.metric == "RandomPromptUnique" and agreement.tau is not None:
                line(f"• {agreement.sentence}")
    low, high = _PLOT_WIDTHS
    color = console.color_system is not None
    for plot in report.plots(found, width=max(low, min(high, console.width - 2)), color=color):
        console.print()
        console.print(plot, no_wrap=True, overflow="crop")
    if found.notes:
        console.print()
        for note in found.notes:
            line(f"note: {note}", "dim")


def _read_verdicts(file: Path) -> list[dict[str, Any]]:
    """Return the verdicts in a file that `verify --json` wrote; raises ConfigError."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--verdict {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--verdict {file}: not JSON: {error}") from error
    found = tree.get("verdicts", [tree]) if isinstance(tree, dict) else tree
    if not isinstance(found, list) or not all(map(_is_verdict, found)):
        raise ConfigError(f"--verdict {file}: not what `bitnetctl verify --json` writes")
    return found


def _is_verdict(tree: Any) -> bool:
    """Whether a tree has the shape that the page shows."""

    def lists(kind: type, *names: str) -> bool:
        parts = [tree.get(name, []) for name in names]
        return all(isinstance(part, list) and all(isinstance(one, kind) for one in part) for part in parts)

    if not isinstance(tree, dict) or not isinstance(tree.get("verdict"), str):
        return False
    if not lists(str, "reasons", "notes") or not lists(dict, "sizes", "checks", "runs"):
        return False
    return all({"size", "verdict"} <= one.keys() for one in tree.get("sizes", []))
