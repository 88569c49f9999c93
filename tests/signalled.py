"""A program for tests: command lines that receive a signal, or lose their terminal, at a given moment.

Each is a process of its own, forked from one that has loaded everything. Reads a case a line, writes its exit code.
"""

import atexit
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from bitnetctl import checkpoint, cli
from bitnetctl.data import store
from bitnetctl.engine.pack import Pack
from bitnetctl.plugins import registry
from bitnetctl.trainer import factory, loop
from bitnetctl.trainer.evaluate import Probe

# moment: owner of a function, its name, and the call that begins with the action
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "reading": (registry, "normalize", 1),
    "encoding": (store, "_encode", 1),
    "building": (factory, "make_pack", 1),
    "step": (Pack, "step", 5),
    "evaluation": (Probe, "measure", 2),
    "saving": (checkpoint, "_write_files", 1),
    "finishing": (loop, "_finish", 1),
}


def act_at(moment: str, action: Callable[[], None]) -> None:
    """Call `action` at a moment of this process."""
    owner, name, at = MOMENTS[moment]
    original = getattr(owner, name)
    calls = 0

    def begin(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            action()
        return original(*arguments, **named)

    setattr(owner, name, begin)


def send(names: list[str]) -> None:
    """Send signals to this process."""
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))


def hold_terminal() -> int:
    """Make stderr a terminal, and return the process that holds its other end: the terminal closes with it."""
    master, slave = os.openpty()
    holder = os.fork()
    if holder == 0:
        os.close(slave)
        # until no process has it open
        with contextlib.suppress(OSError):
            while os.read(master, 4096):
                pass
        os._exit(0)
    os.close(master)
    os.dup2(slave, 2)
    os.close(slave)
    return holder


def end(pid: int) -> None:
    """Kill a child of this process."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def become(case: dict[str, Any]) -> None:
    """Run a command line in this process and exit."""
    os.environ.update(case.get("environment", {}))
    for number, path in ((1, case["out"]), (2, case["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    if case.get("nohup"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if "at" in case:
        act_at(case["at"], lambda: send(case["signals"]))
    if "at_exit" in case:
        atexit.register(os.kill, os.getpid(), getattr(signal, case["at_exit"]))
    match case.get("stderr"):
        case "pipe":
            reading, writing = os.pipe()
            os.dup2(writing, 2)
            os.close(writing)
            act_at("step", lambda: os.close(reading))
        case "terminal":
            os.environ["TERM"] = "xterm"
            holder = hold_terminal()
            act_at("step", lambda: end(holder))
        case "closed":
            os.close(2)
    sys.argv = ["bitnetctl", *case["arguments"]]
    try:
        cli.main()
    except SystemExit as left:
        if "at_exit" not in case:
            # a regular exit of Python takes a second
            sys.stderr.flush()
            os._exit(int(left.code or 0))
        raise


def warm_up(arguments: list[str]) -> None:
    """Import every module and fill every cache, for all children."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.run(arguments) == 0


def main() -> None:
    # half of a tiny run's time, and no test needs durability
    os.fsync = lambda fd: None
    warm_up(json.loads(sys.stdin.readline())["arguments"])
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become(json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
