"""Options and output that commands share."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Literal, cast

import typer
from rich.console import Console

from bitnetctl.config.numbers import parse_numbers, parse_seeds
from bitnetctl.errors import ConfigError, DataError, cannot_read
from bitnetctl.files import expand_user
from bitnetctl.streams import redirect_to_null

STDIN = "-"
"""Stands for stdin as a file to read."""
# tokens take fifty times as much memory, so a device without an end must not be read to it
_MOST_TEXT_BYTES = 2**27


def user_path(text: str | Path) -> Path:
    """Parse a path of the command line or of an environment variable, with `~` expanded; the `parser` of its option."""
    return Path(expand_user(os.fspath(text)))


def runs_folder(text: str | Path) -> Path:
    """Parse the folder of the runs, which need not be there yet; raises ConfigError for a file."""
    path = user_path(text)
    if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for a long name
        raise ConfigError(f"--runs-dir {path}: is a file, not a folder")
    return path


def user_text(text: str) -> str:
    """Parse a text that may be a path or a pattern, with `~` expanded; the `parser` of its option."""
    return expand_user(text)


def _one(what: str) -> Callable[[str | int], int]:
    """Return a parser of one whole number, for an option of a command that trains one run."""

    def parse(text: str | int) -> int:
        if isinstance(text, str) and not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
            several = f"; several train with bitnetctl sweep --{what}s {text}" if "," in text else ""
            raise typer.BadParameter(f"{text!r} is not a whole number{several}")
        return int(text)

    return parse


Recipe = Annotated[
    str, typer.Option("--recipe", "-r", parser=user_text, metavar="NAME|FILE", help="Built-in recipe or FILE.toml.")
]
OptionalRecipe = Annotated[
    str | None,
    typer.Option("--recipe", "-r", parser=user_text, metavar="NAME|FILE", help="Built-in recipe or FILE.toml."),
]
Size = Annotated[
    int | None,
    typer.Option("--size", "--sizes", metavar="N", parser=_one("size"), help="hidden_size; unset: the recipe's."),
]
Sizes = Annotated[
    str | None,
    typer.Option("--sizes", "--size", metavar="LIST", help="Hidden sizes, such as 256,512; unset: the recipe's."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", parser=_one("seed"), help="Initialisation and shuffled order.")
]
Seeds = Annotated[
    str | None, typer.Option("--seeds", metavar="N|LIST", help="Number of seeds, or seeds such as 0,3,7.")
]
EachSeed = Annotated[
    list[int] | None, typer.Option("--seed", metavar="N", help="One seed instead of --seeds; may be repeated.")
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Training steps; unset: the recipe's.")]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="COLUMN=NAME", help="Names in logs of other programs, such as Step=step,Loss=train/loss."
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a field of the config.")
]
Arm = Annotated[
    list[str] | None,
    typer.Option("--intervention", "-i", metavar="ARM", help="Interventions, such as reduced-lr:peak=5e-4+no-decay."),
]
Arms = Annotated[
    list[str] | None,
    typer.Option("--intervention", "-i", metavar="ARM", help="An arm, such as reduced-lr:peak=5e-4; may be repeated."),
]
RunsDir = Annotated[
    Path,
    typer.Option(
        "--runs-dir", parser=runs_folder, metavar="FOLDER", envvar="BITNETCTL_RUNS_DIR", help="Folder of the runs."
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="auto, eager, graph (a step as one CUDA graph), compile (fused by torch) or fused (own kernels).",
    ),
]
Precision = Annotated[str, typer.Option("--precision", help="Of matmuls: auto, fp32, bf16 or int8 (on a GPU).")]
OnDivergence = Annotated[
    str,
    typer.Option(
        "--on-divergence",
        metavar="stop|rollback",
        help="rollback: resume from the last checkpoint at half the learning rate, at most three times.",
    ),
]
EvalEvery = Annotated[
    int | None, typer.Option("--eval-every", min=1, help="Steps between evaluations; unset: a twentieth.")
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        "--checkpoint-every",
        min=1,
        help="Steps between checkpoints; unset: at evaluations, if saving takes at most 0.5 % of the time "
        "since the last checkpoint, or after 15 minutes.",
    ),
]
Pack = Annotated[
    str, typer.Option("--pack", metavar="auto|N", help="Runs trained as one program; auto: as many as fit in memory.")
]
KeepWeights = Annotated[
    bool, typer.Option("--keep-weights/--no-keep-weights", help="Keep the final weights of every run.")
]
Samples = Annotated[
    bool | None,
    typer.Option(
        "--samples/--no-samples",
        help="Keep text that every run writes at its end, and its measures; unset: where it takes less than 1 % of the "
        "run's time.",
    ),
]
Requeue = Annotated[
    bool, typer.Option("--requeue", help="In a Slurm job: requeue it when a signal has stopped the training.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings, failures and the result only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else there.")]
Decimal = Annotated[
    str, typer.Option("--decimal", metavar=".|,", help="What decimals have in CSVs that a spreadsheet saved.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and start nothing.")]


def given_options(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Return the options that the command line gives among those of some parameters."""
    sources = {name: context.get_parameter_source(name) for name in names}
    option_of = {param.name: param.opts[0] for param in context.command.params}
    return [option_of[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def chosen_sizes(sizes: str | None) -> tuple[int, ...] | None:
    """Return the sizes of `--sizes`, None without it; raises ConfigError."""
    return None if sizes is None else parse_numbers(sizes, "--sizes", "whole numbers such as 256,512")


def chosen_arm(given: Sequence[str] | None) -> str:
    """Return the arm of `-i`, empty without it; raises ConfigError where it is given more than once."""
    if given and len(given) > 1:
        raise ConfigError(
            f"-i is given {len(given)} times; for one run with all of them: -i {'+'.join(given)}; "
            "for an arm of each: bitnetctl sweep"
        )
    return given[0] if given else ""


def chosen_seeds(seeds: str | None, each: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the seeds of `--seeds` or of `--seed`, None without either; raises ConfigError."""
    if not each:
        return None if seeds is None else parse_seeds(seeds)
    if seeds is not None:
        raise ConfigError("take --seeds, a number of seeds or a list of them, or --seed, one seed; not both")
    return tuple(each)


def read_text(file: str, option: str) -> str:
    """Return the UTF-8 text in the file of an option, or on stdin, without a byte-order mark.

    Raises ConfigError where it cannot be read, DataError where it is too large or no text.
    """
    name = "stdin" if file == STDIN else f"{option} {file}"
    try:
        if file == STDIN:
            content = sys.stdin.buffer.read(_MOST_TEXT_BYTES + 1)
        else:
            with Path(file).open("rb") as stream:
                content = stream.read(_MOST_TEXT_BYTES + 1)
    except OSError as error:
        raise ConfigError(cannot_read(name, error)) from error
    if len(content) > _MOST_TEXT_BYTES:
        raise DataError(f"{name}: larger than {_MOST_TEXT_BYTES // 2**20} MiB; take a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 at byte {error.start:,}; convert it first") from error


def parse_on_divergence(text: str) -> Literal["stop", "rollback"]:
    """Return the choice; raises ConfigError for another."""
    match text:
        case "stop" | "rollback":
            return text
    raise ConfigError(f"--on-divergence {text!r} is unknown; take stop or rollback")


def parse_pack(text: str) -> int | None:
    """Read `auto` as None and N as N; raises ConfigError."""
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--pack {text!r}: expected auto or a whole number from 1")
    return int(text)


def stdout() -> Console:
    """Return the console for results."""
    return Console(emoji=False)


def stderr() -> Console:
    """Return the console for messages and progress."""
    return Console(file=cast(IO[str], _Stderr()), stderr=True, emoji=False)


class _Stderr(io.TextIOBase):
    """Standard error that ignores failed writes, so that a lost connection does not end a training."""

    def __init__(self) -> None:
        # during a live view sys.stderr is rich's proxy: write to the stream behind it
        self._stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8" if self._stream is not None else "utf-8"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                redirect_to_null(self._stream)
                self._stream = None
        return len(text)


def print_message(text: object) -> None:
    """Print one line to stderr as it is: no markup, no wrapping."""
    stderr().print(str(text), markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value to stdout; NaN is refused."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_lines(*lines: object) -> None:
    """Print lines to stdout as they are: no markup, no wrapping."""
    for line in lines:
        stdout().print(str(line), markup=False, highlight=False, soft_wrap=True)
