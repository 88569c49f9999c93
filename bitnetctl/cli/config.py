"""`bitnetctl config`: the config of a run."""

import typer

from bitnetctl.cli import options
from bitnetctl.cli.options import print_json
from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.config.load import config_text
from bitnetctl.plugins import registry

app = typer.Typer(help="Show the config of a run.", no_args_is_help=True)


@app.command("show")
def show(
    recipe: options.Recipe = "origin",
    size: options.Size = None,
    steps: options.Steps = None,
    seed: options.Seed = None,
    overrides: options.Set = None,
    arms: options.Arm = None,
    as_json: options.Json = False,
) -> None:
    """Print the config of a run, after its interventions."""
    config = registry.normalize(
        build_config(
            recipe,
            size=size,
            steps=steps,
            seed=seed,
            overrides=overrides or (),
            interventions=parse_arm(options.chosen_arm(arms)),
        )
    )
    effective = registry.compose(config.interventions).configure(config)
    if as_json:
        print_json(effective.model_dump(mode="json"))
    else:
        typer.echo(config_text(effective))


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of a config."""
    print_json(RunConfig.model_json_schema())
