"""`bitnetctl analyze`: what a set of runs shows."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnetctl.cli import options
from bitnetctl.cli.inputs import given_runs, print_unread, refuse_overwriting
from bitnetctl.cli.options import print_json, print_message, stdout
from bitnetctl.errors import ConfigError, ExitCode, cannot_read

if TYPE_CHECKING:
    from bitnetctl.verdict import Summary

# stands for stdout as the file to write to
_STDOUT = Path("-")


def analyze(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS",
            parser=options.user_text,
            help="CSVs of runs, logs of other programs, folders, patterns, or a bundle.",
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="ARM", help="Arm to compare with; unset: the one in all others.")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown", metavar="FILE", parser=options.user_path, help="Write the report as Markdown; - is stdout."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            parser=options.user_path,
            help="Write a page with curves to explore; - is stdout.",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv", metavar="FILE", parser=options.user_path, help="Write a summary of every run as CSV; - is stdout."
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure",
            metavar="FILE",
            parser=options.user_path,
            help="Draw the curves of the arms as FILE.svg, .png or .pdf; - is stdout, as SVG.",
        ),
    ] = None,
    show: Annotated[
        str | None,
        typer.Option("--show", metavar="COLUMNS", help="What --figure draws, such as HeldOutLoss,UniquePredictions."),
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
    decimal: options.Decimal = ".",
    columns: options.Map = None,
    text: Annotated[
        bool, typer.Option("--text", help="Let runs that keep their weights write text, and show what they write.")
    ] = False,
    details: Annotated[
        bool, typer.Option("--details", help="Show every run, effects, factors, metrics, curves and notes.")
    ] = False,
    as_json: options.Json = False,
) -> int:
    """Show when runs collapsed and recovered, how arms differ, which factors go with it, which metrics agree."""
    written = {"--markdown": markdown, "--html": html, "--csv": csv, "--figure": figure}
    to_stdout = [option for option, file in written.items() if file == _STDOUT] + ["--json"] * as_json
    if len(to_stdout) > 1:
        raise ConfigError(f"{' and '.join(to_stdout)} would share stdout; give all but one of them a file")
    if show is not None and figure is None:
        raise ConfigError("--show chooses what --figure draws; give --figure FILE, too")
    trees = [_read_json(file) for file in verdicts or ()]
    judged = [verdict for file, tree in zip(verdicts or (), trees, strict=True) for verdict in _verdicts(file, tree)]
    from bitnetctl import api, report
    from bitnetctl.records.logs.columns import parse_map

    form = None if figure is None else report.figure_format(figure, _STDOUT)
    shown = report.parse_columns(show)
    outputs = [file for file in written.values() if file is not None and file != _STDOUT]
    with given_runs(paths, columns=parse_map(columns or ()), decimal=decimal) as given:
        refuse_overwriting(outputs, given.files)
        loaded = given.loaded
        runs = api.with_texts(loaded.runs, log=print_message) if text else loaded.runs
    if not runs:
        print_unread(loaded.unread)
        raise ConfigError(f"no evaluation in any of {len(given.files)} runs yet")
    study = api.analyze(runs, baseline=baseline, notes=loaded.notes)
    contents: list[tuple[Path | None, Callable[[], str | bytes]]] = [
        (markdown, lambda: report.markdown_report(study)),
        (html, lambda: report.html_page(study, judged, _summaries(trees))),
        (csv, lambda: report.summaries_csv(study)),
        (figure, lambda: report.draw_figure(report.figure_data(study, shown), form or "svg")),
    ]
    # all before the first is written: one that cannot be made leaves no others behind
    for file, content in [(file, content()) for file, content in contents if file is not None]:
        _write(file, content.encode() if isinstance(content, str) else content)
    if as_json:
        print_json(study.to_json())
    elif not to_stdout:
        report.print_study(study, stdout(), details=details)
    for file in outputs:
        print_message(f"written: {file}")
    print_unread(loaded.unread)
    return ExitCode.USAGE if loaded.unread else ExitCode.SUPPORTED


def _write(file: Path, content: bytes) -> None:
    """Write a file, or to stdout for `-`."""
    if file != _STDOUT:
        from bitnetctl.files import write_atomic

        write_atomic(file, content)
    elif (binary := getattr(sys.stdout, "buffer", None)) is not None:
        # not in the encoding of the terminal, nor with its line ends
        binary.write(content)
        binary.flush()
    else:
        sys.stdout.write(content.decode())


def _read_json(file: Path) -> Any:
    """Return what a file of `verify --json` holds; raises ConfigError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(cannot_read(f"--verdict {file}", error)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--verdict {file}: not JSON: {error}") from error


def _summaries(trees: Iterable[Any]) -> "list[Summary]":
    """Return the summaries in files of `verify --json`; those of an earlier version have none."""
    from pydantic import ValidationError

    from bitnetctl.verdict import Summary

    found = []
    for tree in trees:
        with contextlib.suppress(ValidationError):
            found.append(Summary.model_validate(tree.get("summary") if isinstance(tree, dict) else None))
    return found


def _verdicts(file: Path, tree: Any) -> list[dict[str, Any]]:
    """Return the verdicts in a file that `verify --json` wrote; raises ConfigError."""
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
