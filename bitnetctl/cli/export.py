"""`bitnetctl export`: write a run in a public format, and check what was written."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

import typer

from bitnetctl.cli import options
from bitnetctl.cli.options import print_json, print_lines, print_message
from bitnetctl.config import did_you_mean
from bitnetctl.errors import ConfigError
from bitnetctl.signals import stops_as_interrupts

if TYPE_CHECKING:
    from bitnetctl.formats.exported import Exported
    from bitnetctl.inference.trained import TrainedRun

Target: TypeAlias = Literal["hf", "gguf", "safetensors"]
# the options that only one target has
_OWN = {"form": "hf", "masters": "hf", "outtype": "gguf"}


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name in --runs-dir, folder or CSV of a run.")],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", parser=options.user_path, help="Folder (hf) or file to write.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="|".join(get_args(Target)),
            help="hf: a folder for transformers; gguf: a file for llama.cpp; safetensors: a file of weights, codes and "
            "scales for any program.",
        ),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--form",
            metavar="offline|bitlinear|online",
            help="Of --to hf: packed with scales (offline), with their inverses (bitlinear), or fp32 weights that are "
            "quantized at every forward pass (online); unset: offline.",
        ),
    ] = None,
    masters: Annotated[
        bool, typer.Option("--masters", help="Of --to hf: keep the fp32 weights beside the packed ones.")
    ] = False,
    outtype: Annotated[
        str | None,
        typer.Option(
            "--outtype",
            metavar="TQ2_0|TQ1_0|F16|F32",
            help="Of --to gguf: type of the matrices, 2.06, 1.69, 16 or 32 bits per weight; unset: TQ2_0.",
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="Step of the checkpoint; unset: the newest.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Load what was written with its library, and compare.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier export wrote there.")] = False,
    runs_dir: options.RunsDir = Path("runs"),
    as_json: options.Json = False,
) -> None:
    """Write a trained run in a public format.

    What the format cannot hold is refused before anything is written. What was written is loaded with the library that
    reads it: codes and scales must be identical and the probabilities alike, or nothing is kept (exit code 4).
    """
    write = _writer(to, {"form": form, "masters": masters or None, "outtype": outtype})
    from bitnetctl.inference.trained import open_run

    opened = open_run(run, runs_dir, step=step)
    with stops_as_interrupts():
        exported = write(opened, target, check=check, replace=force, log=print_message)
    document = _document(opened, exported, to)
    if as_json:
        print_json(document)
    else:
        _show(document)


def _writer(to: str, given: dict[str, Any]) -> "Callable[..., Exported]":
    """Return what writes a target, with its own options; raises ConfigError."""
    if to not in get_args(Target):
        raise ConfigError(f"--to {to!r} is unknown{did_you_mean(to, get_args(Target))}; take {_targets()}")
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if _OWN[name] != to:
            raise ConfigError(f"--{name}: is an option of --to {_OWN[name]}")
    match to:
        case "hf":
            return _hf_writer(chosen)
        case "gguf":
            from bitnetctl.formats.gguf import export_gguf

            return partial(export_gguf, **chosen)
    from bitnetctl.formats.bitnetctl_safetensors import export_safetensors

    return export_safetensors


def _hf_writer(chosen: dict[str, Any]) -> "Callable[..., Exported]":
    from bitnetctl.formats.hf import export_hf
    from bitnetctl.formats.hf_layout import FORMS

    if chosen.get("form", FORMS[0]) not in FORMS:
        raise ConfigError(f"--form {chosen['form']!r} is unknown; take {', '.join(FORMS)}")
    return partial(export_hf, **chosen)


def _targets() -> str:
    return ", ".join(get_args(Target))


def _document(run: "TrainedRun", exported: "Exported", to: str) -> dict[str, Any]:
    path, is_folder = exported.path, exported.path.is_dir()
    below = sorted(one for one in path.rglob("*") if one.is_file()) if is_folder else [path]
    base, weights = (path, path / "model.safetensors") if is_folder else (path.parent, path)
    files = [{"name": one.relative_to(base).as_posix(), "bytes": one.stat().st_size} for one in below]
    return {
        "run": run.name,
        "step": run.step,
        "to": to,
        "form": exported.form,
        **({"gguf_type": exported.form} if to == "gguf" else {}),
        "path": str(path),
        "files": files,
        "parameters": run.model.num_parameters,
        "bits_per_parameter": 8 * weights.stat().st_size / run.model.num_parameters,
        "checked": exported.is_checked,
        "read_back": exported.read_back,
        "checks": list(exported.checks),
    }


def _show(document: dict[str, Any]) -> None:
    print_lines(
        f"{document['path']}: {document['run']} at step {document['step']:,}, {document['to']}, {document['form']}",
        *(f"  {file['name']}: {file['bytes']:,} bytes" for file in document["files"]),
        f"{document['bits_per_parameter']:.2f} bits for each of {document['parameters']:,} parameters",
        *([] if document["read_back"] is None else [f"read back: {document['read_back']}"]),
        *(f"checked: {line}" for line in document["checks"]),
    )
    if not document["checked"]:
        print_lines("not checked")
