"""`bitnetctl config`: what decides a run."""

import json
from typing import TYPE_CHECKING, Any

import typer

from bitnetctl.cli.options import (
    ArmOption,
    JsonOption,
    RecipeOption,
    SeedOption,
    SetOption,
    SizeOption,
    StepsOption,
    print_json,
)

if TYPE_CHECKING:
    from bitnetctl.config import RunConfig

app = typer.Typer(help="Show what decides a run.", no_args_is_help=True)


@app.command("show")
def show(
    recipe: RecipeOption = "origin",
    size: SizeOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    arm: ArmOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print a config as it would run."""
    from bitnetctl import plugins
    from bitnetctl.config import build_config, parse_arm

    config = plugins.normalize(
        build_config(
            recipe, size=size, steps=steps, seed=seed, overrides=overrides or (), interventions=parse_arm(arm) or None
        )
    )
    effective = plugins.compose(config.interventions).configure(config)
    if as_json:
        print_json(effective.model_dump(mode="json"))
    else:
        typer.echo(config_text(effective))


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of a config."""
    from bitnetctl.config import RunConfig

    print_json(RunConfig.model_json_schema())


def config_text(config: "RunConfig") -> str:
    """Return a config as TOML; what is unset reads "none"."""
    tree = config.model_dump(mode="json", exclude={"interventions"})
    lines = [*_plain_lines(tree), f"# arm: {config.arm}"]
    for section, fields in tree.items():
        if isinstance(fields, dict):
            lines += ["", f"[{section}]", *_plain_lines(fields)]
    return "\n".join(lines)


def _plain_lines(fields: dict[str, Any]) -> list[str]:
    return [
        f"{key} = {json.dumps('none' if value is None else value, ensure_ascii=False)}"
        for key, value in fields.items()
        if not isinstance(value, dict)
    ]
