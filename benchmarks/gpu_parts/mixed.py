"""A sweep of 16 runs with four arms, one of which needs the host: the engine that each gets, and why."""

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

_ARMS = ("label-smoothing", "fp-first", "adaptive-clipping")
_SEEDS = 4


def run(report: Report, options: Options) -> None:
    """Run the sweep and read the manifests."""
    folder = new_folder(options, "mixed")
    steps = "24" if options.quick else "400"
    command = [*BITNETCTL, "sweep", "--recipe", "quick", "--steps", steps, "--seeds", str(_SEEDS)]
    command += [text for arm in _ARMS for text in ("-i", arm)]
    command += [*(["--size", "32"] if options.quick else []), "--device", options.device]
    # the recipe has a text and a tokenizer of its own, as small as the runs
    done = run_command([*command, "--runs-dir", folder, *(data_options(options) if options.quick else [])])
    report.values(seconds=done.seconds, exit_code=done.code)
    failed_command(report, "sweep", done)
    for each in runs_in(folder):
        manifest = each.manifest
        arms = [spec["name"] for spec in manifest["config"]["interventions"]]
        report.row(
            "runs",
            {
                "arm": "+".join(arms) or "baseline",
                "seed": manifest["config"]["seed"],
                "engine": manifest.get("engine"),
                "precision": manifest.get("precision"),
                "status": manifest["status"],
                "runs in its pack": len(manifest.get("pack", [])),
                "ms a step": each.step_ms,
                "own kernels": ", ".join(manifest.get("kernels") or []),
            },
        )
    report.text(told(done))
    missing = (1 + len(_ARMS)) * _SEEDS - len(runs_in(folder))
    if missing:
        report.failed(f"{missing} runs are missing")
    remove(folder)
