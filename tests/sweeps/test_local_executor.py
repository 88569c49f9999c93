"""The parent of workers on several devices, with small programs in place of the workers."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from training import resolved

from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError, WorkersError
from bitnetctl.sweeps.executors import local
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import resolve_all


class Cast:
    """Start small programs in place of workers, one for each device."""

    def __init__(self, *programs: str) -> None:
        self.programs = list(programs)
        self.started: list[subprocess.Popen[bytes]] = []
        self.work: list[dict[str, Any]] = []

    def start(self, runs: Path, device: str, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        self.work.append(json.loads(runs.read_text(encoding="utf-8")))
        program = self.programs[len(self.started)]
        with log.open("wb") as file:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, "-S", "-c", program],
                    stdout=file,
                    stderr=file,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        return self.started[-1]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cast]]:
    """Run programs in place of workers; none outlives the test."""
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.01)
    casts: list[Cast] = []

    def start(*programs: str) -> Cast:
        casts.append(Cast(*programs))
        monkeypatch.setattr(local, "_start", casts[-1].start)
        return casts[-1]

    yield start
    for cast in casts:
        for process in cast.started:
            process.kill()
            process.wait()


def work(
    cast: Cast, tiny_config: Callable[..., RunConfig], should_stop: Callable[[], bool] = lambda: False
) -> tuple[bool, list[str]]:
    messages: list[str] = []
    devices = [f"cpu:{index}" for index in range(len(cast.programs))]
    options = TrainOptions(should_stop=should_stop, log=messages.append)
    stopped = local.run_workers(devices, resolved([tiny_config()], Path("runs")), options)
    return stopped, messages


WAITS = """
import pathlib, signal, sys, time
count = 0
def stop(number, frame):
    global count
    count += 1
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready-{index}").touch()
while not count:
    time.sleep(0.005)
time.sleep(0.2)
sys.exit(75 if count == 1 else 9)
"""


@pytest.mark.parametrize("code", [0, 75])
def test_workers_that_end_normally_are_not_reported(
    play: Callable[..., Cast], tiny_config: Callable[..., RunConfig], code: int
) -> None:
    stopped, messages = work(play("print('done')", f"import sys; print('done'); sys.exit({code})"), tiny_config)
    assert (stopped, messages) == (False, ["2 workers on cpu:0, cpu:1"])


def test_workers_get_the_runs_and_the_number_of_workers(
    play: Callable[..., Cast], tiny_config: Callable[..., RunConfig]
) -> None:
    cast = play("pass", "pass", "pass")
    work(cast, tiny_config)
    part = {"planned": {"seeds": [0], "arms": ["baseline"]}, "configs": [tiny_config().model_dump(mode="json")]}
    assert cast.work == [{"workers": 3, "parts": [part]}] * 3


def test_workers_get_what_the_command_plans(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    configs = [tiny_config(seed=seed) for seed in range(3)]
    configs += [tiny_config(arm="no-decay", seed=seed) for seed in range(4)]
    planned = resolve_all(configs, Path("runs"))
    # the first has ended
    work = local._work(planned[1:], 2)
    assert [len(part["configs"]) for part in work["parts"]] == [2, 4]
    file = tmp_path / "work.json"
    file.write_text(json.dumps(work), encoding="utf-8")
    runs, workers = local.read_work(file, Path("runs"))
    assert (runs, workers) == (planned[1:], 2)
    assert [len(run.planned.seeds) for run in runs] == [3, 3, 4, 4, 4, 4]
    assert {tuple(run.planned.arms) for run in runs} == {("baseline", "no-decay")}


def test_a_worker_that_fails_is_reported(play: Callable[..., Cast], tiny_config: Callable[..., RunConfig]) -> None:
    cast = play(
        "pass",
        "import sys; print('loading'); print('error: no GPU'); sys.exit(2)",
        "import os; os.kill(os.getpid(), 9)",
    )
    stopped, messages = work(cast, tiny_config)
    assert not stopped
    assert messages[1:] == [
        "worker on cpu:1 ended with exit code 2: error: no GPU",
        "worker on cpu:2 ended with exit code -9 (killed, perhaps out of memory): ",
    ]


def test_no_worker_that_could_start_is_an_error(
    play: Callable[..., Cast], tiny_config: Callable[..., RunConfig]
) -> None:
    cast = play(*["import sys; print('error: no GPU'); sys.exit(2)"] * 2)
    with pytest.raises(ConfigError, match="no worker could start a run; see the lines above"):
        work(cast, tiny_config)


def test_workers_that_took_a_run_did_start(play: Callable[..., Cast], tiny_config: Callable[..., RunConfig]) -> None:
    # in place of the manifest: one that cannot be read
    manifest = f"runs/{tiny_config().run_name}/run.json"
    takes = f"import pathlib; path = pathlib.Path({manifest!r}); path.parent.mkdir(parents=True); path.touch()"
    cast = play(f"{takes}; raise SystemExit(2)", "raise SystemExit(2)")
    with pytest.raises(WorkersError, match="every worker ended with an error; see the lines above"):
        work(cast, tiny_config)


def test_a_stop_is_passed_on_once(
    play: Callable[..., Cast], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    cast = play(WAITS.format(index=0), WAITS.format(index=1))
    stopped, messages = work(
        cast, tiny_config, lambda: all((tmp_path / f"ready-{index}").exists() for index in range(2))
    )
    assert (stopped, messages[1:]) == (True, [])
    assert [process.returncode for process in cast.started] == [75, 75]


def test_a_worker_that_is_stopped_while_it_starts_is_not_reported(
    play: Callable[..., Cast], tiny_config: Callable[..., RunConfig]
) -> None:
    cast = play("import time; time.sleep(600)", "import sys; sys.exit(75)")
    stopped, messages = work(cast, tiny_config, lambda: True)
    assert (stopped, messages[1:]) == (True, [])
    assert cast.started[0].returncode == -signal.SIGTERM


def test_an_impatient_interrupt_leaves_no_worker_behind(
    play: Callable[..., Cast], tiny_config: Callable[..., RunConfig]
) -> None:
    cast = play(*["import time; time.sleep(600)"] * 2)

    def interrupt() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(cast, tiny_config, interrupt)
    for process in cast.started:
        process.wait(10)


def test_a_real_worker_gets_runs_device_and_arguments(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def popen(command: list[str], **named: object) -> None:
        commands.append(command)

    monkeypatch.setattr(subprocess, "Popen", popen)
    local._start(tmp_path / "runs.json", "cuda:1", ["--pack", "3"], tmp_path / "log")
    runs = ["--configs", str(tmp_path / "runs.json")]
    assert commands == [[sys.executable, "-m", "bitnetctl", "sweep", *runs, "--device", "cuda:1", "--pack", "3"]]


@pytest.mark.parametrize(
    ("text", "devices"),
    [("cpu", ["cpu"]), ("cpu,cpu", ["cpu", "cpu"]), (" cpu , cpu ", ["cpu", "cpu"]), ("cpu,cpu,cpu", ["cpu"] * 3)],
)
def test_devices_of_a_list(text: str, devices: list[str]) -> None:
    assert local.split_devices(text) == devices


@pytest.mark.parametrize("text", ["", "cpu,", ",", "cpu,tpu", "cpu;cpu", "cpu cpu"])
def test_unknown_devices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is unknown"):
        local.split_devices(text)


@pytest.mark.parametrize("text", ["auto", "cuda"])
@pytest.mark.parametrize(("gpus", "expected"), [(0, None), (1, None), (3, ["cuda:0", "cuda:1", "cuda:2"])])
def test_auto_is_every_gpu(monkeypatch: pytest.MonkeyPatch, text: str, gpus: int, expected: list[str] | None) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert local.split_devices(text) == (expected or [text])
