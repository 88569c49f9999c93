"""`bitnetctl analyze`: what a set of runs shows."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bitnetctl.cli import options
from bitnetctl.cli.options import print_json, print_message, stdout
from bitnetctl.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from bitnetctl.analysis.study import Study

# above it a terminal shows a row for each arm and size, not for each run
_MOST_RUNS_SHOWN = 24
_PLOT_WIDTHS = (40, 120)


def analyze(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATHS", parser=options.user_text, help="CSVs of runs, folders of them, or patterns."),
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="ARM", help="Arm to compare with; unset: the one in all others.")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", parser=options.user_path, help="Write the report as Markdown."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", parser=options.user_path, help="Write one page with curves to explore."),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", parser=options.user_path, help="Write a summary of every run as CSV."),
    ] = None,
    verdicts: Annotated[
        list[Path] | None,
        typer.Option(
            "--verdict",
            metavar="FILE",
            parser=options.user_path,
            help="Show a verdict on the page: the output of verify --json.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Show when runs collapsed and recovered, how arms differ, which factors go with it, which metrics agree."""
    judged = [verdict for file in verdicts or () for verdict in _read_verdicts(file)]
    from bitnetctl import api, report
    from bitnetctl.files import write_atomic
    from bitnetctl.records import load_begun_runs
    from bitnetctl.records.find import find_csvs

    for path in paths:
        if path.lower().endswith(".zip"):
            raise ConfigError(f"{path}: analyze reads CSVs and folders; unzip the bundle and give its folder `runs`")
    files = find_csvs(paths)
    outputs = [file for file in (markdown, html, csv) if file is not None]
    inputs = {os.path.realpath(file) for file in files}
    for file in outputs:
        if os.path.realpath(file) in inputs:
            raise ConfigError(f"{file}: is one of the files to analyse; write to another")
    runs, notes = load_begun_runs(files)
    if not runs:
        raise ConfigError(f"no evaluation in any of {len(files)} runs yet")
    study = api.analyze(runs, baseline=baseline, notes=notes)
    if markdown is not None:
        write_atomic(markdown, report.markdown_report(study).encode())
    if html is not None:
        write_atomic(html, report.html_page(study, judged).encode())
    if csv is not None:
        write_atomic(csv, report.summaries_csv(study).encode())
    if as_json:
        print_json(study.to_json())
    else:
        _show(study, stdout())
    for file in outputs:
        print_message(f"written: {file}")
    return ExitCode.SUPPORTED


def _show(study: "Study", console: Console) -> None:
    """Print tables, sentences, plots and notes."""
    from bitnetctl import report
    from bitnetctl.analysis import wording
    from bitnetctl.report.columns import COLLAPSE, END, arm_rows, run_rows
    from bitnetctl.report.escape import printable

    grouped = len(study.summaries) > _MOST_RUNS_SHOWN
    rows = arm_rows(study.summaries, study.arms) if grouped else run_rows(study.summaries)

    def line(text: str, style: str = "") -> None:
        console.print(printable(text), style=style, markup=False, highlight=False)

    if grouped:
        line(f"{len(study.summaries)} runs; means by arm and size, every run with --json or --html", "dim")
    console.print(report.collapse_table(rows))
    line("; ".join(f"{column.header}: {column.meaning}" for column in COLLAPSE), "dim")
    console.print()
    console.print(report.end_table(rows))
    line("; ".join(f"{column.header}: {column.meaning}" for column in END), "dim")
    if study.effects:
        console.print()
        console.print(report.effects_table(study.effects))
        line(wording.effects_line(study.effects[0].tests), "dim")
    if study.outcomes:
        console.print()
        console.print(report.factors_table(study.outcomes))
        for sentence in dict.fromkeys(outcome.sentence for outcome in study.outcomes):
            line(f"• {sentence}")
    if any(agreement.tau is not None for agreement in study.agreements):
        console.print()
        console.print(report.agreement_table(study.agreements))
        for agreement in study.agreements:
            if agreement.metric == "RandomPromptUnique" and agreement.tau is not None:
                line(f"• {agreement.sentence}")
    low, high = _PLOT_WIDTHS
    color = console.color_system is not None
    for plot in report.plots(study, width=max(low, min(high, console.width - 2)), color=color):
        console.print()
        console.print(plot, no_wrap=True, overflow="crop")
    if study.notes:
        console.print()
        for note in study.notes:
            line(f"note: {note}", "dim")


def _read_verdicts(file: Path) -> list[dict[str, Any]]:
    """Return the verdicts in a file that `verify --json` wrote; raises ConfigError."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--verdict {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--verdict {file}: not JSON: {error}") from error
    verdicts = tree.get("verdicts", [tree]) if isinstance(tree, dict) else tree
    if not isinstance(verdicts, list) or not all(map(_is_verdict, verdicts)):
        raise ConfigError(f"--verdict {file}: not what `bitnetctl verify --json` writes")
    return verdicts


def _is_verdict(tree: Any) -> bool:
    """Whether a JSON value has the fields of a verdict that the page shows."""

    def lists(kind: type, *names: str) -> bool:
        parts = [tree.get(name, []) for name in names]
        return all(isinstance(part, list) and all(isinstance(one, kind) for one in part) for part in parts)

    if not isinstance(tree, dict) or not isinstance(tree.get("verdict"), str):
        return False
    if not lists(str, "reasons", "notes") or not lists(dict, "sizes", "checks", "runs"):
        return False
    return all({"size", "verdict"} <= one.keys() for one in tree.get("sizes", []))
