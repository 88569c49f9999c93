"""The preloaded library that counts write calls below a folder and lets one of them go wrong."""

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_SOURCE = Path(__file__).with_name("hook.c")
_VARIABLE = "LD_PRELOAD"


class Mode(IntEnum):
    """What happens at the chosen call."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    """After the call; in the middle of one that writes."""
    REFUSE_ONCE = 3
    REFUSE_FROM = 4
    """This call and all later ones."""
    FILL_UP = 5
    """Half of what the call writes is written, and every call that needs space is refused from then on."""


@dataclass(frozen=True)
class Fault:
    """At call `at` (from 1) below the folder, `mode` with the system's error `number`."""

    mode: Mode
    at: int = 0
    number: int = 0


NONE = Fault(Mode.COUNT)


@dataclass(frozen=True)
class Call:
    """A write call: what it was and on which path below the folder."""

    name: str
    path: str


def compiler() -> str | None:
    """Return the C compiler, None without one."""
    return shutil.which("cc")


def build(folder: Path) -> Path:
    """Compile the library into `folder`."""
    library = folder / "hook.so"
    cc = compiler()
    assert cc is not None
    flags = ["-O2", "-Wall", "-Wextra", "-U_FORTIFY_SOURCE", "-shared", "-fPIC"]
    subprocess.run([cc, *flags, "-o", library, _SOURCE, "-ldl"], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """Return the environment of a process with the library preloaded and without threads, so that it may fork."""
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **alone, _VARIABLE: str(library)}


class Hook:
    """The library preloaded into this process; raises OSError if it was not."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ.get(_VARIABLE, ""))
        self._library.faults_call.restype = ctypes.c_char_p
        self._library.faults_count.restype = ctypes.c_long
        self._library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
        self._library.faults_call.argtypes = [ctypes.c_long]

    def arm(self, folder: Path, fault: Fault) -> None:
        """Count the calls below `folder` from now on."""
        self._library.faults_arm(os.fsencode(folder), fault.at, fault.mode, fault.number)

    def disarm(self) -> list[Call]:
        """Return the calls that were counted."""
        self._library.faults_disarm()
        lines = [self._library.faults_call(number) for number in range(1, self._library.faults_count() + 1)]
        return [Call(*os.fsdecode(line).split(" ", 1)) for line in lines]
