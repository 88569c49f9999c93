"""`bitnetctl interventions`: what there is, how to write one."""

import importlib.util
import inspect
import json
import os
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bitnetctl.cli.options import JsonOption, print_json, print_lines, stdout
from bitnetctl.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from bitnetctl.intervention import Intervention
    from bitnetctl.plugins import Plugin

app = typer.Typer(help="List, show, write and check interventions.", no_args_is_help=True)


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List every intervention, the broken ones with what is wrong."""
    from bitnetctl import plugins
    from bitnetctl.report.columns import printable

    found = plugins.load_all()
    if as_json:
        print_json([_describe(plugin) for plugin in found])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("what it does")
    for plugin in found:
        state, style = ("refused", "dim") if plugin.refused else ("broken", "red")
        what = plugin.intervention.summary if plugin.intervention else f"{state}: {plugin.problem}"
        cells = (plugin.name, f"{plugin.distribution} {plugin.version}", what)
        # a name that nobody has checked may hold anything
        table.add_row(*(escape(printable(cell)) for cell in cells), style=style if plugin.problem else "")
    stdout().print(table)


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name of an intervention.")], as_json: JsonOption = False) -> int:
    """Show what an intervention does, its settings and where it comes from."""
    from bitnetctl import plugins

    plugin = plugins.load(name)
    if as_json:
        print_json(_describe(plugin))
        return ExitCode.SUPPORTED
    if plugin.intervention is None:
        raise ConfigError(plugin.refusal)
    console = stdout()
    console.print(f"[bold]{name}[/]  {escape(inspect.getdoc(plugin.intervention) or '')}", highlight=False)
    console.print(f"source   {escape(plugin.intervention.source)}", highlight=False)
    console.print(f"from     {escape(f'{plugin.distribution} {plugin.version} ({plugin.target})')}", highlight=False)
    if plugin.source_sha256:
        console.print(f"sha256   {plugin.source_sha256}", highlight=False, soft_wrap=True)
    console.print(f"changes  {', '.join(plugin.seams)}", highlight=False)
    fields = plugin.intervention.Settings.model_fields
    if fields:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("setting", "default", "meaning"):
            table.add_column(column)
        for setting, field in fields.items():
            default = "unset" if field.default is None else str(field.default)
            table.add_row(setting, escape(default), escape(field.description or ""))
        console.print(table)
    return ExitCode.SUPPORTED


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name of the intervention, such as halved-rate.")],
    path: Annotated[Path, typer.Option("--path", help="Folder to write the project into.")] = Path(),
) -> None:
    """Write a ready plug-in project with a passing test."""
    from bitnetctl.scaffold import write_project

    folder = write_project(name, path)
    print_lines(folder, f"next: pip install -e {folder} && bitnetctl interventions show {name}")


@app.command("check")
def check(
    path: Annotated[Path, typer.Argument(help="A plug-in project, or a Python file with interventions.")],
    settings: Annotated[str, typer.Option("--settings", help="Settings as JSON.")] = "{}",
) -> int:
    """Test interventions against the contract: settings, pure schedules, two training steps beside a baseline."""
    from bitnetctl.testing import check_contract

    try:
        values = json.loads(settings)
    except ValueError as error:
        raise ConfigError(f"--settings {settings!r}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--settings {settings!r}: expected a JSON object")
    broken = 0
    for intervention in _classes_in(path):
        try:
            check_contract(intervention, values)
        # whatever the author's code raises is a finding to print, not an end of the check
        except Exception as error:
            broken += 1
            problem = " ".join(str(error).split()) or type(error).__name__
            print_lines(f"{intervention.__name__}: broken: {problem}")
        else:
            print_lines(f"{intervention.__name__}: keeps the contract")
    return ExitCode.USAGE if broken else ExitCode.SUPPORTED


def _describe(plugin: "Plugin") -> dict[str, Any]:
    intervention = plugin.intervention
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "target": plugin.target,
        "problem": plugin.problem,
        "summary": intervention.summary if intervention else None,
        "source": intervention.source if intervention else None,
        "seams": plugin.seams,
        "settings": intervention.Settings.model_json_schema()["properties"]
        if intervention and intervention.Settings.model_fields
        else {},
    }


def _classes_in(path: Path) -> "list[type[Intervention]]":
    """Import a Python file, or what the entry points of a project name; raises ConfigError."""
    from bitnetctl.intervention import Intervention

    # Path.is_file raises for a long name
    if not os.path.isfile(path):  # noqa: PTH113
        return [_entry_point(path, target) for target in _targets(path)]
    # a name of its own, so that no file takes the place of a module that others import
    module = _import(f"bitnetctl_checked_{path.stem}", path)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Intervention) and value.__module__ == module.__name__
    ]
    if not classes:
        raise ConfigError(f"{path}: no subclass of bitnetctl.intervention.Intervention in it")
    return classes


def _import(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _targets(path: Path) -> list[str]:
    """Return the entry points of a project, such as `module:Class`."""
    project = path / "pyproject.toml"
    try:
        tree = tomllib.loads(project.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: neither a Python file nor a project with a pyproject.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{project}: not valid TOML: {error}") from error
    points = tree.get("project", {}).get("entry-points", {}).get("bitnetctl.interventions", {})
    if not points:
        raise ConfigError(f"{project}: no entry points of the group bitnetctl.interventions")
    return [str(target) for target in points.values()]


def _entry_point(path: Path, target: str) -> "type[Intervention]":
    """Import one entry point from the files of a project, its own packages included."""
    name, _, attribute = target.partition(":")
    stem = Path(*name.strip().split("."))
    roots = [path.resolve(), path.resolve() / "src"]
    files = [(root, root / file) for root in roots for file in (stem.with_suffix(".py"), stem / "__init__.py")]
    for root, file in files:
        if file.is_file():
            sys.path.insert(0, str(root))
            module = _import(name.strip(), file)
            break
    else:
        raise ConfigError(f"{path}: entry point {target!r}: {stem.with_suffix('.py')} is not there")
    value = getattr(module, attribute.strip(), None)
    if not isinstance(value, type):
        raise ConfigError(f"{path}: entry point {target!r}: no such class")
    return value
