"""`bitnetctl interventions`: what there is, how to write one."""

import importlib.util
import inspect
import json
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bitnetctl.cli.options import JsonOption, print_json, stdout
from bitnetctl.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from bitnetctl.intervention import Intervention
    from bitnetctl.plugins import Plugin

app = typer.Typer(help="List, show, write and check interventions.", no_args_is_help=True)


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List every intervention, the broken ones with what is wrong."""
    from bitnetctl import plugins

    found = plugins.load_all()
    if as_json:
        print_json([_describe(plugin) for plugin in found])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("what it does")
    for plugin in found:
        what = plugin.intervention.summary if plugin.intervention else f"broken: {plugin.problem}"
        style = "red" if plugin.problem else ""
        table.add_row(plugin.name, f"{plugin.distribution} {plugin.version}", escape(what), style=style)
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
    console.print(f"from     {plugin.distribution} {plugin.version} ({plugin.target})", highlight=False)
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
    stdout().print(f"{folder}\nnext: pip install -e {folder} && bitnetctl interventions show {name}", highlight=False)


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
            stdout().print(f"{intervention.__name__}: broken: {problem}", highlight=False, markup=False, soft_wrap=True)
        else:
            stdout().print(f"{intervention.__name__}: keeps the contract", highlight=False)
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
    """Import the Python files that `path` names and return the interventions they define; raises ConfigError."""
    from bitnetctl.intervention import Intervention

    classes: list[type[Intervention]] = []
    for file in _files_of(path):
        name = file.stem
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{file}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
        classes += [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Intervention) and value.__module__ == name
        ]
    if not classes:
        raise ConfigError(f"{path}: no subclass of bitnetctl.intervention.Intervention in it")
    return classes


def _files_of(path: Path) -> list[Path]:
    """Return a Python file itself, or the files behind the entry points of a project."""
    if path.is_file():
        return [path]
    project = path / "pyproject.toml"
    try:
        tree = tomllib.loads(project.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: neither a Python file nor a project with a pyproject.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{project}: not valid TOML: {error}") from error
    points = tree.get("project", {}).get("entry-points", {}).get("bitnetctl.interventions", {})
    files = []
    for target in points.values():
        relative = Path(*str(target).partition(":")[0].split(".")).with_suffix(".py")
        found = [folder / relative for folder in (path, path / "src") if (folder / relative).is_file()]
        if not found:
            raise ConfigError(f"{project}: entry point {target!r}: {relative} is not there")
        files.append(found[0])
    if not files:
        raise ConfigError(f"{project}: no entry points of the group bitnetctl.interventions")
    return files
