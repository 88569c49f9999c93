"""`bitnetctl verify`: train what is missing, then judge."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bitnetctl.cli.options import (
    ArmOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    RecipeOption,
    RunsDirOption,
    SeedOption,
    SetOption,
    SizesOption,
    StepsOption,
    print_json,
    stdout,
)
from bitnetctl.errors import ExitCode


def verify(
    sizes: SizesOption = None,
    steps: StepsOption = None,
    recipe: RecipeOption = "origin",
    arm: ArmOption = "",
    seed: SeedOption = None,
    overrides: SetOption = None,
    runs_dir: RunsDirOption = Path("runs"),
    device: DeviceOption = "auto",
    no_train: Annotated[bool, typer.Option("--no-train", help="Judge what is there; train nothing.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> int:
    """Train what is missing and judge the final number of unique predictions by the founding document's thresholds."""
    from bitnetctl import report, verdict
    from bitnetctl.cli.sweep import show_plan, train_missing
    from bitnetctl.grid import make_plan, parse_numbers
    from bitnetctl.records import RunPaths, read

    tree: dict[str, Any] = {"recipe": recipe, "steps": steps, "overrides": overrides or (), "arms": (arm,)}
    tree["baseline"] = False
    if sizes is not None:
        tree["sizes"] = parse_numbers(sizes, "--sizes", "whole numbers such as 256,512")
    if seed is not None:
        tree["seeds"] = (seed,)
    configs = make_plan(tree, "verify").configs()
    if dry_run:
        return show_plan(configs, runs_dir, device, None, as_json)
    if not no_train and train_missing(configs, runs_dir=runs_dir, device=device):
        return ExitCode.STOPPED

    thresholds = verdict.Thresholds()
    rows = []
    for config in configs:
        paths = RunPaths(runs_dir, config.run_name)
        if paths.csv.exists():
            judged = verdict.judge(read(paths.csv), config.steps, thresholds)
        else:
            judged = verdict.Verdict(outcome=verdict.Outcome.INCONCLUSIVE, reason="no run; train it first")
        rows.append((config, judged))
    outcome = verdict.overall([judged.outcome for _, judged in rows])
    if as_json:
        print_json(
            {
                "verdict": outcome.value,
                "runs": [
                    {
                        "run": config.run_name,
                        "size": config.model.hidden_size,
                        "verdict": judged.outcome.value,
                        "reason": judged.reason,
                        "final_step": judged.final_step,
                        "final_unique": judged.final_unique,
                        "ceiling": judged.ceiling,
                    }
                    for config, judged in rows
                ],
            }
        )
    else:
        stdout().print(report.verdict_table(rows))
        stdout().print(f"verdict: {outcome.value}", highlight=False)
    return outcome.exit_code
