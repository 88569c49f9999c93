"""What the commands that train share."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitnetctl.cli.options import duration, gibibytes, print_json, stderr, stdout
from bitnetctl.errors import ConfigError, ExitCode, RecordError, StoppedBySignal
from bitnetctl.signals import StopRequest

if TYPE_CHECKING:
    from bitnetctl.config import RunConfig
    from bitnetctl.data import Progress
    from bitnetctl.monitor.console import Reporter
    from bitnetctl.trainer.events import Event
    from bitnetctl.trainer.loop import OnDivergence


def parse_pack(text: str) -> int | None:
    """Read `auto` as None and N as N; raises ConfigError."""
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--pack {text!r}: expected auto or a whole number from 1")
    return int(text)


def train_missing(
    configs: "Sequence[RunConfig]",
    stop: StopRequest,
    *,
    runs_dir: Path,
    device: str,
    engine: str = "auto",
    precision: str = "auto",
    pack_size: int | None = None,
    workers: int = 1,
    checkpoint_every: int | None = None,
    on_divergence: "OnDivergence" = "stop",
    keep_weights: bool = False,
) -> bool:
    """Train the runs that have not ended, as one of so many workers; True if a signal stopped it before they had."""
    from bitnetctl.records.status import refuse_case_twins

    refuse_case_twins([config.run_name for config in configs], runs_dir)
    missing = [config for config in configs if not _has_ended(config, runs_dir)]
    if not missing:
        stderr().print(f"all {len(configs)} runs are there already, nothing to train", highlight=False)
        return False
    from bitnetctl.monitor.console import make_reporter
    from bitnetctl.sweeps.executor import sweep_runs
    from bitnetctl.sweeps.executors.local import split_devices, work_on_devices
    from bitnetctl.trainer.session import Options

    devices = split_devices(device)
    with make_reporter(stderr(), configs, runs_dir) as reporter:
        if len(devices) > 1:
            arguments = ["--runs-dir", str(runs_dir), "--pack", str(pack_size or "auto")]
            arguments += ["--engine", engine, "--precision", precision]
            arguments += ["--on-divergence", on_divergence]
            arguments += ["--keep-weights" if keep_weights else "--no-keep-weights"]
            arguments += ["--checkpoint-every", str(checkpoint_every)] if checkpoint_every else []
            work_on_devices(devices, missing, arguments, stop, reporter.log)
        else:
            options = Options(
                runs_dir=runs_dir,
                device=devices[0],
                engine=engine,
                precision=precision,
                checkpoint_every=checkpoint_every,
                on_divergence=on_divergence,
                keep_weights=keep_weights,
                should_stop=stop,
                progress=stopping(reporter.work, stop),
                log=reporter.log,
            )
            if follow(sweep_runs(missing, options, pack=pack_size, workers=workers), reporter):
                return True
        # between two runs, or in a worker; in the last step of all there is nothing left to go on with
        if stop() and not all(_has_ended(config, runs_dir) for config in missing):
            reporter.log(f"stopped by {stop.signal_name}; the same command goes on from there")
            return True
        return False


def _has_ended(config: "RunConfig", runs_dir: Path) -> bool:
    """Whether a run has ended; one with damaged files has not, and the sweep tells it among the others."""
    from bitnetctl.records.status import ended

    try:
        return ended(config, runs_dir) is not None
    except RecordError:
        return False


def show_plan(
    configs: "Sequence[RunConfig]", runs_dir: Path, device_name: str, pack_size: int | None, as_json: bool
) -> int:
    """Show runs, packs, estimated memory and time."""
    from bitnetctl.hardware import memory_available, resolve_device
    from bitnetctl.records.status import ended
    from bitnetctl.report import packs_table
    from bitnetctl.sweeps.executors.local import split_devices
    from bitnetctl.sweeps.packing import plan_costs

    devices = split_devices(device_name)
    device = resolve_device(devices[0])
    missing = [config for config in configs if ended(config, runs_dir) is None]
    done = len(configs) - len(missing)
    rows = plan_costs(missing, device, pack_size, workers=len(devices))
    total_seconds = sum(row["seconds"] for row in rows) / len(devices)
    if as_json:
        print_json({"shapes": rows, "done": done, "seconds": round(total_seconds, 1)})
        return ExitCode.SUPPORTED
    console = stdout()
    console.print(packs_table(rows))
    console.print(
        f"{len(configs)} runs, {done} there already; about {duration(total_seconds)} on {', '.join(devices)}, "
        f"{gibibytes(memory_available(device))} free",
        highlight=False,
    )
    return ExitCode.SUPPORTED


def follow(events: "Iterator[Event]", reporter: "Reporter") -> bool:
    """Train under the eyes of a reporter; True if a signal stopped it."""
    from bitnetctl.trainer.events import Stopped

    try:
        for event in events:
            reporter.event(event)
            if isinstance(event, Stopped):
                reporter.log("the same command goes on from there")
                return True
    except StoppedBySignal as error:
        reporter.log(str(error))
        return True
    return False


def stopping(progress: "Progress", stop: StopRequest) -> "Progress":
    """Return `progress` that raises StoppedBySignal once a stop was asked for: there is nothing to save yet."""

    def report(what: str, done: int, total: int | None) -> None:
        if stop():
            raise StoppedBySignal(
                f"stopped by {stop.signal_name} while preparing: {what}; the same command goes on from what is saved"
            )
        progress(what, done, total)

    return report
