"""What is known of the runs of a command: states, progress, time left; fed by events and by the runs folder."""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from bitnetctl.config import RunConfig
from bitnetctl.errors import BitnetctlError
from bitnetctl.monitor.lines import (
    Line,
    evaluation_line,
    finished_lines,
    health_lines,
    planned_line,
    row_line,
    started_line,
    stopped_lines,
)
from bitnetctl.monitor.view import RunView
from bitnetctl.records import RunPaths, read_manifest
from bitnetctl.records.follow import RowFollower
from bitnetctl.trainer.events import (
    Diverged,
    Evaluated,
    Event,
    Failed,
    Finished,
    Planned,
    Progress,
    RolledBack,
    Started,
    Stopped,
)


class Board:
    """The runs of a command.

    `runs` are the effective configs by name of run, `ended` the names of those that have ended before. With `runs_dir`
    the evaluations before a resume are read from the CSV, and `read_folder` reads the runs of other processes. A pack
    of more than `most_single_runs` runs is reported by lines on all of them together.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        runs: Mapping[str, RunConfig] | None = None,
        runs_dir: Path | None = None,
        ended: Collection[str] = (),
        *,
        most_single_runs: int,
    ) -> None:
        self._most_single_runs = most_single_runs
        self._clock = clock
        self._runs_dir = runs_dir
        self.runs = {name: RunView(name, config) for name, config in (runs or {}).items()}
        for name in ended:
            self.runs[name].state, self.runs[name].step = "finished", self.runs[name].config.steps
        self.pack: list[RunView] = []
        self.packs_begun = self.packs_planned = 0
        self.start_step = self.step = 0
        self.memory_bytes = 0
        self.preparation: str | None = "starting"
        self.begun_at = self._prepared_since = clock()
        self._planned: Mapping[str, float] = {}
        self._trained_since: tuple[float, float] | None = None
        self._evaluated: list[RunView] = []
        self._changed: list[RunView] = []
        self._followed = {name: _Followed(runs_dir, name) for name in self.runs} if runs_dir is not None else {}
        self._to_read: list[str] = []
        # names of the runs that this process has trained
        self._own: set[str] = set()

    @property
    def is_sweep(self) -> bool:
        """Whether there are several runs."""
        return len(self.runs) > 1

    def apply(self, event: Event) -> list[Line]:
        """Take in an event; return the lines that report it."""
        lines = [] if isinstance(event, Evaluated) else self._reported_evaluations()
        match event:
            case Planned():
                self._planned, self.packs_planned = event.seconds, event.packs
                lines.append(Line("info", planned_line(event)))
            case Started():
                self._start(event)
                lines.append(Line("info", started_line(event)))
            case Progress():
                self._progress(event)
            case Evaluated():
                lines += self._evaluate(event)
            case RolledBack():
                view = self.pack[event.run]
                view.state, view.step = "waiting", event.step
            case Diverged() | Failed() | Stopped() | Finished():
                lines += self._end(event)
        return lines

    def prepare(self, what: str) -> None:
        """Record what is being done before the first step."""
        if what.partition(":")[0] != (self.preparation or "").partition(":")[0]:
            self._prepared_since = self._clock()
        self.preparation = what

    @property
    def preparation_seconds(self) -> float:
        """Seconds since the present preparation began."""
        return self._clock() - self._prepared_since

    def _start(self, event: Started) -> None:
        self._leave_pack()
        self.packs_begun += 1
        self.start_step = self.step = event.start_step
        for name, config in zip(event.names, event.effective, strict=True):
            view = self.runs.setdefault(name, RunView(name, config))
            view.config = config
            self._own.add(name)
            rows = []
            if event.start_step and self._runs_dir is not None:
                every, _ = RowFollower(RunPaths(self._runs_dir, name).csv).new_rows()
                rows = [row for row in every if (row["Step"] or 0) <= event.start_step]
            view.restart(rows)
            view.state, view.step = "training", event.start_step
            self.pack.append(view)
        self.prepare("first step")
        if self._trained_since is None:
            self._trained_since = self._clock(), self.work()[0]

    def _progress(self, event: Progress) -> None:
        self.preparation = None
        self.step, self.memory_bytes = event.step, event.memory_bytes
        for view, loss in zip(self.pack, event.losses, strict=True):
            if view.state == "training":
                view.step, view.loss = event.step, loss

    def _evaluate(self, event: Evaluated) -> list[Line]:
        self.preparation = None
        view = self.pack[event.run]
        if view.update(event.row) is not None:
            self._changed.append(view)
        self._evaluated.append(view)
        self.step = max(self.step, view.step)
        last = next(other for other in reversed(self.pack) if other.state == "training")
        return self._reported_evaluations() if view is last or not self._together else []

    @property
    def _together(self) -> bool:
        return len(self.pack) > self._most_single_runs

    def _reported_evaluations(self) -> list[Line]:
        """Return the lines on the evaluations since the last call."""
        if not self._evaluated:
            return []
        if self._together:
            lines = [evaluation_line(self.pack, self._evaluated)]
        else:
            lines = [Line("evaluation", f"{view.name}  {row_line(view)}") for view in self._evaluated]
        lines += health_lines(self.pack, self._changed, together=self._together)
        self._evaluated, self._changed = [], []
        return lines

    def _end(self, event: Diverged | Failed | Stopped | Finished) -> list[Line]:
        match event:
            case Diverged():
                view = self.pack[event.run]
                view.diverge(event.step)
                return [Line("failure", f"{view.name}: diverged at step {event.step:,}; it is not trained any further")]
            case Failed():
                if event.name in self.runs:
                    self.runs[event.name].state = "failed"
                    self._own.add(event.name)
                lines = [Line("failure", f"{event.name}: failed: {event.message}")]
            case Stopped() | Finished():
                ended = [view for view in self.pack if view.state == "training"]
                for view in ended:
                    view.state, view.step = "stopped" if isinstance(event, Stopped) else "finished", event.step
                if isinstance(event, Stopped):
                    lines = stopped_lines(self.pack, ended, event.step, together=self._together)
                else:
                    lines = finished_lines(self.pack, ended, together=self._together)
        self._leave_pack()
        self.prepare("next pack" if isinstance(event, Finished) else "stopping")
        return lines

    def _leave_pack(self) -> None:
        """Forget the pack; its runs that have not ended are `waiting` again."""
        for view in self.pack:
            if view.state == "training":
                view.state = "waiting"
        self.pack = []

    def counts(self) -> Counter[str]:
        """Count runs by state."""
        return Counter(view.state for view in self.runs.values())

    def work(self) -> tuple[float, float]:
        """Return the work done and that of all runs, in estimated seconds where the sweep was planned."""
        measure = {name: view.config.steps * view.size**2 for name, view in self.runs.items()}
        known = sum(measure[name] for name in self._planned if name in measure)
        factor = sum(self._planned.values()) / known if known else 1.0
        total = done = 0.0
        for name, view in self.runs.items():
            part = self._planned.get(name) or factor * measure[name]
            total += part
            done += part * view.done_fraction
        return done, total

    @property
    def seconds_gone(self) -> float:
        """Seconds since the command began."""
        return self._clock() - self.begun_at

    def seconds_left(self) -> float | None:
        """Return the estimated seconds to the end of all runs; None is unknown."""
        done, total = self.work()
        if self._trained_since is not None:
            since, done_before = self._trained_since
            gone = done - done_before
            if gone > 0:
                return (self._clock() - since) / gone * (total - done)
        return total - done if self._planned else None

    def read_folder(self, seconds: float) -> None:
        """Read what other processes have written, for about `seconds`; the next call continues with what is left."""
        end = self._clock() + seconds
        if not self._to_read:
            self._to_read = [name for name, view in self.runs.items() if self._is_foreign(view)]
        while self._to_read and self._clock() < end:
            name = self._to_read.pop()
            if self._is_foreign(self.runs[name]):
                self._followed[name].read(self.runs[name])

    def _is_foreign(self, view: RunView) -> bool:
        """Whether another process may have changed its files since they were read."""
        if view.name not in self._followed or view.state == "training":
            return False
        if view.state in ("waiting", "elsewhere"):
            return True
        return view.name not in self._own and (view.state in ("stopped", "failed") or not view.row)


class _Followed:
    """The files of a run that another process trains."""

    def __init__(self, runs_dir: Path, name: str) -> None:
        paths = RunPaths(runs_dir, name)
        self._folder, self._manifest = paths.folder, paths.manifest
        self._rows = RowFollower(paths.csv)
        self._manifest_state: tuple[int, int] | None = None

    def read(self, view: RunView) -> None:
        """Update the view from what has changed since the last call."""
        rows, replaced = self._rows.new_rows()
        if replaced:
            view.restart()
        for row in rows:
            view.update(row)
        manifest = None
        with contextlib.suppress(OSError, BitnetctlError):
            found = self._manifest.stat()
            state = (found.st_ino, found.st_mtime_ns)
            if state != self._manifest_state:
                manifest = read_manifest(self._folder)
                self._manifest_state = state
        if manifest is None:
            return
        view.step = max(view.step, manifest.steps_done)
        if manifest.status == "diverged":
            view.diverge(manifest.diverged_at or view.step)
        else:
            view.state = "elsewhere" if manifest.status == "running" else manifest.status
