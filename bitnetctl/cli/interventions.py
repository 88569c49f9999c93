"""`bitnetctl interventions`: list, show, write and check them."""

import inspect
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from bitnetctl.cli import options
from bitnetctl.cli.options import print_json, print_lines, stdout
from bitnetctl.config import InterventionSpec, RunConfig, parse_arm
from bitnetctl.config.schema import value_text
from bitnetctl.errors import BitnetctlError, ConfigError, ExitCode, one_line
from bitnetctl.intervention import Intervention
from bitnetctl.plugins import registry
from bitnetctl.plugins.blame import location
from bitnetctl.plugins.isolation import intrusions_of
from bitnetctl.plugins.project import intervention_classes
from bitnetctl.plugins.scaffold import write_project

app = typer.Typer(help="List, show, write and check interventions.", no_args_is_help=True)


@app.command("list")
def list_all(as_json: options.Json = False) -> None:
    """List all interventions, with the problem of those that cannot be used."""
    plugins = registry.load_all()
    if as_json:
        print_json([_describe(plugin) for plugin in plugins])
        return
    from bitnetctl.report.fitted import Column, FittedTable, Row

    rows = []
    for plugin in plugins:
        state, style = ("refused", "dim") if not plugin.allowed else ("broken", "red")
        what = plugin.intervention.summary if plugin.intervention else f"{state}: {plugin.problem}"
        cells = (plugin.name, f"{plugin.distribution} {plugin.version}", what)
        rows.append(Row(cells, style if plugin.problem else ""))
    stdout().print(FittedTable((Column("name"), Column("from", 1), Column("what it does", note=True)), rows))


@app.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(
            parser=options.user_text,
            metavar="NAME|FILE.py",
            help="An intervention, with settings too: NAME:key=value or FILE.py:key=value.",
        ),
    ],
    as_json: options.Json = False,
) -> None:
    """Show what an intervention does, its settings and where it comes from."""
    spec = _one_spec(name)
    plugin = registry.load_spec(spec)
    if spec.settings:
        # refuses those that it does not take
        registry.normalize(RunConfig(interventions=(spec,)))
    given = {"given": spec.settings} if spec.settings else {}
    if as_json:
        print_json(_describe(plugin) | given)
        return
    if plugin.intervention is None:
        raise ConfigError(plugin.error_message)
    from bitnetctl.report.fitted import Column, FittedTable, rows_of

    console = stdout()
    console.print(f"[bold]{plugin.name}[/]  {escape(_paragraphs(plugin.intervention))}", highlight=False)
    described = (
        ("source", plugin.intervention.source),
        ("from", f"{plugin.distribution} {plugin.version} ({plugin.target})".replace("  ", " ")),
        ("changes", ", ".join(plugin.hooks)),
    )
    console.print(FittedTable((Column(""), Column("", note=True)), rows_of(described), show_header=False))
    if plugin.source_sha256:
        # on one line however narrow the terminal is, so that it can be copied
        console.print(f"sha256   {plugin.source_sha256}", highlight=False, soft_wrap=True)
    fields = plugin.intervention.Settings.model_fields
    if fields:
        cells = (
            (
                setting,
                *([value_text(spec.settings[setting]) if setting in spec.settings else ""] if given else []),
                "unset" if field.default is None else str(field.default),
                field.description or "",
            )
            for setting, field in fields.items()
        )
        columns = (
            Column("setting"),
            *([Column("given")] if given else []),
            Column("default"),
            Column("meaning", note=True),
        )
        console.print(FittedTable(columns, rows_of(cells)))


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name of the intervention, such as halved-rate.")],
    path: Annotated[
        Path,
        typer.Option("--path", parser=options.user_path, metavar="FOLDER", help="Folder to write the project into."),
    ] = Path(),
) -> None:
    """Write a ready plug-in project with a passing test."""
    taken = next((each for each in registry.discover() if each.name == name), None)
    if taken is not None:
        source = f"{taken.distribution} {taken.version}"
        raise ConfigError(f"intervention name {name!r} is taken by {source}; choose another")
    folder = write_project(name, path)
    print_lines(folder, f"next: pip install -e {folder} && bitnetctl interventions show {name}")


@app.command("check")
def check(
    path: Annotated[
        str,
        typer.Argument(
            parser=options.user_text,
            metavar="NAME|PATH",
            help="An intervention, a plug-in project, or a FILE.py; with settings NAME:key=value or FILE.py:key=value.",
        ),
    ],
    settings: Annotated[str | None, typer.Option("--settings", help="Settings as JSON.")] = None,
) -> int:
    """Test interventions against the contract: settings, pure schedules, two training steps beside a baseline."""
    from bitnetctl.testing import check_contract

    interventions, name, given = _interventions(path)
    if given and settings is not None:
        raise ConfigError(f"settings are given in {path} and by --settings; take one of them")
    values = given if settings is None else _parse_settings(settings)
    broken = 0
    for intervention in interventions:
        try:
            check_contract(intervention, values)
            at_import = intrusions_of(name)
            assert not at_import, "it " + "; it ".join(at_import)
        # the author's code may raise anything; the other interventions are checked all the same
        except Exception as error:
            broken += 1
            where = None if isinstance(error, BitnetctlError | AssertionError) else location(error)
            # its name is in front of the line already
            problem = one_line(error, 2000).removeprefix(f"{intervention.__name__}: ") + (
                f" ({where})" if where else ""
            )
            print_lines(f"{intervention.__name__}: broken: {problem}")
        else:
            print_lines(f"{intervention.__name__}: keeps the contract")
    return ExitCode.USAGE if broken else ExitCode.SUPPORTED


def _parse_settings(settings: str) -> dict[str, Any]:
    """Return the settings of a JSON object; raises ConfigError."""
    try:
        values = json.loads(settings)
    except ValueError as error:
        raise ConfigError(f"--settings {settings!r}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--settings {settings!r}: expected a JSON object")
    return values


def _interventions(target: str) -> tuple[list[type[Intervention]], str, dict[str, Any]]:
    """Return the interventions of a file or project, or the one of a name, and the settings in the target.

    The second value is the name for what their import changes. Raises ConfigError.
    """
    # a name is never a path, unless something of that name lies in this folder
    is_there = os.path.exists(target)  # noqa: PTH110 - Path raises
    if is_there or not re.fullmatch(r"[a-z0-9][a-z0-9-]*(:.*)?|.+\.py(:.+)?", target, re.DOTALL):
        path = Path(target)
        return intervention_classes(path), path.stem, {}
    spec = _one_spec(target)
    file = None if spec.file is None else Path(spec.file)
    if file is not None and file.suffix == ".py":
        # all classes in it
        return intervention_classes(file), file.stem, dict(spec.settings)
    plugin = registry.load_spec(spec)
    if plugin.intervention is None:
        raise ConfigError(plugin.error_message)
    return [plugin.intervention], plugin.name if file is None else file.stem, dict(spec.settings)


def _one_spec(text: str) -> InterventionSpec:
    """Return the one intervention that a text names as `-i` does; raises ConfigError."""
    specs = parse_arm(text)
    if len(specs) != 1:
        raise ConfigError(f"{text!r} is not one intervention: take NAME or FILE.py, with settings NAME:key=value")
    return specs[0]


def _paragraphs(intervention: type[Intervention]) -> str:
    """Return the docstring with every paragraph on one line, for the terminal to wrap."""
    doc = inspect.getdoc(intervention) or ""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n"))


def _describe(plugin: registry.Plugin) -> dict[str, Any]:
    intervention = plugin.intervention
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "target": plugin.target,
        "problem": plugin.problem,
        "summary": intervention.summary if intervention else None,
        "source": intervention.source if intervention else None,
        "hooks": plugin.hooks,
        "settings": intervention.Settings.model_json_schema()["properties"]
        if intervention and intervention.Settings.model_fields
        else {},
    }
