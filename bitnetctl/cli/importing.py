"""`bitnetctl import`: a model in a public format becomes a run."""

from pathlib import Path
from typing import Annotated

import typer

from bitnetctl.cli import options
from bitnetctl.cli.options import print_json, print_lines, print_message
from bitnetctl.errors import ExitCode
from bitnetctl.records.status import final_row


def import_(
    path: Annotated[
        Path,
        typer.Argument(
            parser=options.user_path,
            metavar="DIR|FILE",
            help="Folder of transformers, GGUF file, or file of export --to safetensors.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the run; unset: that of the folder or file.")
    ] = None,
    recipe: options.Recipe = "portable",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps it was trained for; unset: as the file says, else 1.")
    ] = None,
    overrides: options.Set = None,
    runs_dir: options.RunsDir = Path("runs"),
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> int:
    """Import a BitNet model as a run, which can be measured, generated from, judged and trained on with --extend.

    Recipe and --set say on which text it is measured and how it would be trained on; the model is that of the file.
    """
    from bitnetctl.trainer.import_model import import_model

    last = [""]

    def progress(what: str, done: int, total: int | None) -> None:
        if what != last[0]:
            last[0] = what
            print_message(f"{what} ...")

    imported = import_model(
        path,
        runs_dir,
        name=name,
        recipe=recipe,
        steps=steps,
        overrides=overrides or (),
        device=device,
        progress=progress,
        log=print_message,
    )
    paths = imported.paths
    for line in imported.notes:
        print_message(f"{paths.name}: {line}")
    if as_json:
        print_json(
            {
                "run": paths.name,
                "csv": str(paths.csv),
                "config": imported.config.model_dump(mode="json"),
                "notes": list(imported.notes),
                "final": final_row(paths.csv),
            }
        )
        return ExitCode.SUPPORTED
    print_message(f"to train it on: bitnetctl train --extend {paths.name} --steps {imported.config.steps + 1000}")
    print_lines(paths.csv)
    return ExitCode.SUPPORTED
