"""`bitnetctl recipes`, `plans` and `criteria`: list and show what is built in, and write a file to change."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bitnetctl.cli import options
from bitnetctl.cli.options import print_json, print_lines, stdout
from bitnetctl.config.load import builtin_names, load_recipe, read_toml, toml_text
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.files import write_new

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
        """Return what a built-in file says of itself: its description, its title or its first comment."""
        tree, _ = read_toml(name, self.kind, self.package, self.folder)
        first = self.text(name).partition("\n")[0]
        return str(tree.get("description") or tree.get("title") or first.removeprefix("#").strip())


def make_app(library: Library, help_text: str) -> typer.Typer:
    """Return the commands `list`, `show` and `new` of a library."""
    app = typer.Typer(help=help_text, no_args_is_help=True)
    kind = library.kind

    @app.command("list", help=f"List what is built in.")
    def list_all(as_json: options.Json = False) -> None:
        rows = [(name, library.summary(name)) for name in library.names()]
        if as_json:
            print_json([{"name": name, "summary": summary} for name, summary in rows])
            return
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("name", no_wrap=True)
        table.add_column("what it is")
        for name, summary in rows:
            table.add_row(name, escape(summary))
        stdout().print(table)

    @app.command("show", help=f"Show one as its TOML file.")
    def show(name: Annotated[str, _NAME], as_json: options.Json = False) -> None:
        library.check(name)
        if as_json:
            print_json(read_toml(name, kind, library.package, library.folder)[0])
        else:
            typer.echo(library.text(name).rstrip("\n"))

    @app.command("new", help=f"Write a file that starts as one that is built in.")
    def new(
        file: Annotated[
            Path, typer.Argument(parser=options.user_path, metavar="FILE.toml", help="The file to write; it must not exist.")
        ],
        source: Annotated[str, typer.Option("--from", metavar="NAME", help="The one to start from.")],
    ) -> int:
        if file.suffix != ".toml":
            raise ConfigError(f"{file}: the name of a {kind} file ends in .toml")
        write_new(file, library.start(source, library.text(source)).encode())
        library.check(str(file))
        print_lines(file, f"next: {library.command.format(file=file)}")
        return ExitCode.SUPPORTED

    return app
