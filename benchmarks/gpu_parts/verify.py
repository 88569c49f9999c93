"""The whole command `bitnetctl verify` on two sizes, at 4,000 or 20,000 steps, and what 20,000 would take."""

from pathlib import Path

from benchmarks.gpu_parts.commands import (
    BITNETCTL,
    data_options,
    failed_command,
    new_folder,
    remove,
    run_command,
    runs_in,
    told,
)
from benchmarks.gpu_parts.report import Options, Report

_STEPS, _WHOLE_STEPS, _TINY_STEPS = 4000, 20_000, 40
# of the command at its whole length
_TARGET_SECONDS = 60


def run(report: Report, options: Options) -> None:
    """Run the command on an empty folder; its time, and that of each run's steps."""
    steps = _WHOLE_STEPS if report.name.endswith("20000") else _STEPS
    steps, sizes = (_TINY_STEPS, "32,64") if options.quick else (steps, "256,512")
    folder = new_folder(options, "verify")
    command: list[str | Path] = [*BITNETCTL, "verify", "--sizes", sizes, "--steps", str(steps), "--seeds", "1"]
    command += [
        "--device",
        options.device,
        "--runs-dir",
        folder,
        "--report",
        report.folder / f"{report.name}-report.md",
    ]
    done = run_command([*command, *data_options(options)])
    report.values(command=" ".join(map(str, command[2:])), seconds=done.seconds, exit_code=done.code)
    if failed_command(report, "verify", done):
        return
    report.text(told(done))
    report.text(f"```\n{done.out.strip()[-3000:]}\n```")
    spent, whole = 0.0, 0.0
    for each in runs_in(folder):
        step_ms = each.step_ms
        row = {"run": each.name, "engine": each.manifest.get("engine"), "precision": each.manifest.get("precision")}
        row |= {"own kernels": ", ".join(each.manifest.get("kernels") or []), "status": each.manifest["status"]}
        report.row("runs", {**row, "ms a step": step_ms})
        if step_ms is not None:
            spent += steps * step_ms / 1000
            whole += _WHOLE_STEPS * step_ms / 1000
    report.values(
        seconds_of_steps=spent,
        seconds_besides=done.seconds - spent,
        seconds_at_20000_steps=done.seconds - spent + whole,
        target_seconds_at_20000_steps=_TARGET_SECONDS,
    )
    remove(folder)
