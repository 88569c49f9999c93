"""List and show the files that are built in, and start new ones: recipes, plans, searches, criteria and claims."""

import itertools
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bitnetctl.cli import options
from bitnetctl.cli.claiming import ClaimTest
from bitnetctl.cli.options import print_json, print_lines, stdout
from bitnetctl.config import build_config, builtin_names, read_toml
from bitnetctl.config.load import toml_text
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.files import write_atomic
from bitnetctl.sweeps.plan import plan_configs
from bitnetctl.sweeps.search import load_search

_NAME = typer.Argument(parser=options.user_text, metavar="NAME|FILE", help="Built in, or FILE.toml.")


@dataclass(frozen=True)
class Library:
    """The TOML files of one kind that are built into a folder of a package.

    `check` raises ConfigError for a file that cannot be used; `start` makes the text of a new file from the name of a
    built-in one and its text; `command` uses a file.
    """

    kind: str
    package: str
    folder: str
    check: Callable[[str], object]
    start: Callable[[str, str], str]
    command: str

    def names(self) -> list[str]:
        """Return the names of the built-in files."""
        return builtin_names(self.package, self.folder)

    def text(self, name: str) -> str:
        """Return the text of a file; raises ConfigError."""
        return toml_text(name, self.kind, self.package, self.folder)

    def summary(self, name: str) -> str:
        """Return what a built-in file says of itself: its description, its title or the comment at its head."""
        tree, _ = read_toml(name, self.kind, self.package, self.folder)
        comment = itertools.takewhile(lambda line: line.startswith("#"), self.text(name).splitlines())
        return str(tree.get("description") or tree.get("title") or " ".join(line[1:].strip() for line in comment))


def make_app(library: Library, help_text: str) -> typer.Typer:
    """Return the commands `list`, `show` and `new` of a library."""
    app = typer.Typer(help=help_text, no_args_is_help=True)
    kind = library.kind

    @app.command("list", help="List what is built in.")
    def list_all(as_json: options.Json = False) -> None:
        rows = [(name, library.summary(name)) for name in library.names()]
        if as_json:
            print_json([{"name": name, "summary": summary} for name, summary in rows])
            return
        from bitnetctl.report.fitted import Column, FittedTable, rows_of

        stdout().print(FittedTable([Column("name"), Column("what it is", note=True)], rows_of(rows)))

    @app.command("show", help="Show one as its TOML file.")
    def show(name: Annotated[str, _NAME], as_json: options.Json = False) -> None:
        library.check(name)
        if as_json:
            print_json(read_toml(name, kind, library.package, library.folder)[0])
        else:
            typer.echo(library.text(name).rstrip("\n"))

    @app.command("new", help="Write a file that starts as one that is built in.")
    def new(
        file: Annotated[
            Path,
            typer.Argument(parser=options.user_path, metavar="FILE.toml", help="The file to write; it must not exist."),
        ],
        source: Annotated[str, typer.Option("--from", metavar="NAME", help="The one to start from.")],
    ) -> int:
        if file.suffix != ".toml":
            raise ConfigError(f"{file}: the name of a {kind} file ends in .toml")
        if os.path.lexists(file):
            raise ConfigError(f"{file} exists already; choose another name, or remove it")
        # what a file names is beside it
        origin = os.path.relpath(source, file.parent) if source.endswith(".toml") else source
        write_atomic(file, library.start(origin, library.text(source)).encode())
        try:
            library.check(str(file))
        except ConfigError:
            # such as one that starts from another file and names those beside that
            file.unlink()
            raise
        print_lines(file, f"next: {library.command.format(file=shlex.quote(str(file)))}")
        return ExitCode.SUPPORTED

    return app


def _check_criteria(name: str) -> None:
    from bitnetctl.verdict import load_criteria

    load_criteria(name)


recipes = make_app(
    Library(
        kind="recipe",
        package="bitnetctl.config",
        folder="recipes",
        check=build_config,
        start=lambda name, text: f'extends = "{name}"\n\n# only what differs from it, such as\n# steps = 500\n',
        command="bitnetctl train --recipe {file}",
    ),
    "List, show and start recipes: the fields of a config.",
)
plans = make_app(
    Library(
        kind="plan",
        package="bitnetctl.sweeps",
        folder="plans",
        check=lambda name: plan_configs(name, {}),
        start=lambda name, text: text,
        command="bitnetctl sweep --plan {file} --dry-run",
    ),
    "List, show and start plans: the arms, sizes, seeds and steps of a sweep.",
)
searches = make_app(
    Library(
        kind="search",
        package="bitnetctl.sweeps",
        folder="searches",
        check=lambda name: load_search(name, {}).all_trials(),
        start=lambda name, text: text,
        command="bitnetctl sweep --search {file} --dry-run",
    ),
    "List, show and start searches: settings among which successive halving chooses.",
)
criteria = make_app(
    Library(
        kind="criteria",
        package="bitnetctl.verdict",
        folder="builtin",
        check=_check_criteria,
        start=lambda name, text: text,
        command="bitnetctl verify --criteria {file}",
    ),
    "List, show and start criteria: what verify judges runs by.",
)
claims = make_app(
    Library(
        kind="claim",
        package="bitnetctl.claims",
        folder="builtin",
        check=lambda name: ClaimTest(name_or_file=name).configs,
        start=lambda name, text: text,
        command="bitnetctl verify --claim {file} --dry-run",
    ),
    "List, show and start claims: a plan, criteria, and what each outcome means.",
)
