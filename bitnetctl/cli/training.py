"""What the commands that train share."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bitnetctl.cli.options import print_json, print_message, stderr, stdout
from bitnetctl.errors import ExitCode, RecordError, StoppedBySignal, one_line
from bitnetctl.files import cache_folder, is_cache_temporary
from bitnetctl.signals import StopRequest
from bitnetctl.sweeps.executors.slurm import requeue_job, slurm_job
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import ResolvedRun, long_warm_ups, other_code
from bitnetctl.units import duration, gibibytes, listed, plural

if TYPE_CHECKING:
    from bitnetctl.monitor.console import Reporter


@contextlib.contextmanager
def reporting(
    stop: StopRequest,
    runs: Sequence[ResolvedRun] = (),
    ended: Collection[str] = (),
    *,
    quiet: bool = False,
    **options: Any,
) -> "Iterator[tuple[TrainOptions, Reporter]]":
    """Yield TrainOptions that report to the terminal, and the reporter.

    `runs` are those that its view lists, `ended` names those of them that have ended before. With `quiet` it reports
    warnings, failures and the end only.
    """
    from bitnetctl.monitor.console import make_reporter

    effective = {run.name: run.effective for run in runs}
    with make_reporter(
        stderr(), effective, options["runs_dir"], ended=ended, should_stop=stop, quiet=quiet
    ) as reporter:

        def progress(what: str, done: int, total: int | None) -> None:
            if stop():
                # during preparation no trainer exists that could save
                raise StoppedBySignal(
                    f"stopped by {stop.signal_name} while preparing: {what}; "
                    "the same command resumes from what is saved"
                )
            reporter.preparation(what, done, total)

        if is_cache_temporary():
            reporter.log(
                f"no home folder is known: the cache is {cache_folder()}; set XDG_CACHE_HOME to keep it elsewhere"
            )
        # takes seconds
        progress("loading torch", 0, None)
        import torch  # noqa: F401

        yield TrainOptions(**options, should_stop=stop, progress=progress, log=reporter.log), reporter


def train_missing(
    runs: Sequence[ResolvedRun],
    stop: StopRequest,
    *,
    pack: int | None,
    workers: int = 1,
    requeue: bool,
    quiet: bool = False,
    **options: Any,
) -> bool:
    """Train the runs that have not ended, as one of `workers` processes; True if a signal stopped it.

    With `requeue` a Slurm job that was stopped is put back into the queue. `options` are fields of TrainOptions.
    """
    job = slurm_job() if requeue else None
    note_other_runs(runs)
    missing = [run for run in runs if not run.has_ended()]
    if not missing:
        print_message(f"all {len(runs)} runs are there already, nothing to train")
        return False
    ended = {run.name for run in runs} - {run.name for run in missing}
    with reporting(stop, runs, ended, quiet=quiet, **options) as (train_options, reporter):
        from bitnetctl.sweeps.executor import sweep_missing

        try:
            stopped = sweep_missing(missing, train_options, pack=pack, workers=workers, on_event=reporter.event)
            if stopped:
                reporter.log(f"stopped by {stop.signal_name}; the same command resumes from there")
        except StoppedBySignal as error:
            reporter.log(str(error))
            stopped = True
    if stopped and job is not None:
        print_message(requeue_job(job))
    return stopped


def note_other_runs(runs: Sequence[ResolvedRun]) -> None:
    """Say of each arm which runs start anew beside some with other settings, and which ended with other code."""
    anew: dict[str, list[ResolvedRun]] = {}
    ended: dict[tuple[str, tuple[str, ...]], list[ResolvedRun]] = {}
    for run in runs:
        if run.other_settings is not None:
            anew.setdefault(run.config.arm, []).append(run)
        elif names := other_code(run):
            ended.setdefault((run.config.arm, tuple(names)), []).append(run)
    for arm, of_arm in anew.items():
        other, differing = of_arm[0].other_settings or ("", "")
        runs_anew = f"{plural(len(of_arm), 'run')} {'starts' if len(of_arm) == 1 else 'start'} anew"
        print_message(f"{arm}: {runs_anew}: {differing} in {other}, which is another arm now")
    for (arm, plugins), of_arm in ended.items():
        ended_runs = f"{plural(len(of_arm), 'run')} ended with other code of {listed(plugins)}"
        which = f"of {of_arm[0].name}{' and the others' if len(of_arm) > 1 else ''}"
        print_message(f"{arm}: {ended_runs}; to train anew, remove CSV and folder {which}")


def note_long_warm_ups(runs: Sequence[ResolvedRun]) -> None:
    """Say of runs to be trained which warm up for more than half of their steps."""
    for note in long_warm_ups(runs):
        print_message(note)


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """What it takes to train the runs that have not ended: packs, memory and time, estimated.

    `shapes` are rows of the table of packs, `seconds` is the time of all of them, `free` the bytes on the `devices`.
    """

    shapes: list[dict[str, Any]]
    runs: int
    done: int
    seconds: float
    devices: str
    free: int
    memory_limits_packs: bool

    def to_json(self) -> dict[str, Any]:
        """Return what `--dry-run --json` prints of runs."""
        return {"shapes": self.shapes, "done": self.done, "seconds": round(self.seconds, 1)}

    def show(self) -> None:
        """Print it."""
        from bitnetctl.report import packs_table

        console = stdout()
        console.print(packs_table(self.shapes))
        there = f"{self.runs} runs, {self.done} there already"
        about = f"about {duration(self.seconds)} on {self.devices}, {gibibytes(self.free)} free"
        console.print(f"{there}; {about}", highlight=False)
        if self.memory_limits_packs:
            console.print("free memory is enough for one run at a time only", highlight=False)


def plan_cost(runs: Sequence[ResolvedRun], device_names: str, pack: int | None) -> PlanCost:
    """Estimate what training the runs takes; raises ConfigError for a device that is not there."""
    from bitnetctl.hardware import memory_available, resolve_device
    from bitnetctl.sweeps.executors.local import split_devices
    from bitnetctl.sweeps.packing import plan_costs

    devices = split_devices(device_names)
    device = resolve_device(devices[0])
    missing, damaged = [], 0
    for run in runs:
        try:
            if run.ended() is None:
                missing.append(run)
        except RecordError as error:
            damaged += 1
            print_message(f"{run.name}: left out: {one_line(error, None)}")
    shapes = [asdict(cost) for cost in plan_costs(missing, device, pack, workers=len(devices))]
    return PlanCost(
        shapes=shapes,
        runs=len(runs),
        done=len(runs) - len(missing) - damaged,
        seconds=sum(row["seconds"] for row in shapes) / len(devices),
        devices=", ".join([str(device), *devices[1:]]),
        free=memory_available(device),
        memory_limits_packs=pack is None
        and any(row["runs_in_a_pack"] == 1 < row["runs"] / len(devices) for row in shapes),
    )


def show_plan(runs: Sequence[ResolvedRun], device_names: str, pack: int | None, as_json: bool) -> int:
    """Print runs, packs, estimated memory and time."""
    cost = plan_cost(runs, device_names, pack)
    if as_json:
        print_json(cost.to_json())
    else:
        cost.show()
    return ExitCode.SUPPORTED
