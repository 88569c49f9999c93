"""A disk that fails: errors at every write call, and a real one that is full or read-only."""

import errno
import shutil
import subprocess
from collections.abc import Iterator

from bitnetctl.errors import StorageError

from .bench import RUN, Bench, Ended, Tally, Truth, by_file, each, resumes
from .hook import Fault, Mode

_NUMBERS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
_LATEST_KIB = 1024


def at_every_call(bench: Bench, truth: Truth, stride: int) -> Iterator[Tally]:
    """Refuse every `stride`-th write call of a training, alone or with all that follow; fill the disk up at it."""
    faults = {
        f"{errno.errorcode[number]} {when}": (mode, number)
        for number in _NUMBERS
        for when, mode in (("at one call", Mode.REFUSE_ONCE), ("from a call on", Mode.REFUSE_FROM))
    }
    faults["disk full in the middle of a call"] = (Mode.FILL_UP, errno.ENOSPC)
    for seed, (name, (mode, number)) in enumerate(faults.items()):
        tally = Tally(name)
        for at in (at for calls in by_file(truth.calls).values() for at in each(calls, stride, seed, least=1)):
            bench.clear()
            ended = bench.call(truth.command, Fault(mode, at, number))
            call = truth.calls[at - 1]
            tally.count(
                f"{at} {call.name} {call.path}", _loss(bench, truth, ended, StorageError("", number).exit_code, at)
            )
        yield tally


def real(bench: Bench, truth: Truth, step_kib: int) -> Iterator[Tally]:
    """Train on small tmpfs of many sizes, then on a read-only one; yield nothing where mounting is not allowed."""
    tally = Tally("tmpfs of a few KiB, then enlarged")
    bench.clear()
    for size_kib in range(step_kib, _LATEST_KIB, step_kib):
        if not _mount(bench, "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs"):
            return
        try:
            ended = bench.call(bench.train)
            _mount(bench, "-o", "remount,size=64m")
            tally.count(f"{size_kib} KiB", _loss(bench, truth, ended, 2))
        finally:
            _unmount(bench)
    yield tally

    tally = Tally("tmpfs made read-only, then writable")
    for at in each(range(1, len(truth.calls) + 1), step_kib):
        _mount(bench, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
        try:
            bench.call(bench.train, Fault(Mode.KILL_BEFORE, at))
            _mount(bench, "-o", "remount,ro")
            ended = bench.call(bench.train)
            _mount(bench, "-o", "remount,rw")
            tally.count(f"killed at {at}", _loss(bench, truth, ended, 2, at))
        finally:
            _unmount(bench)
    yield tally


def _loss(bench: Bench, truth: Truth, ended: Ended, code: int, at: int | None = None) -> str | None:
    """Say what a training on a failing disk lost, or reported badly."""
    if ended.code == 0:
        # files that the disk refused to delete may still be there
        return truth.finished(bench.runs, leftovers=True)
    if ended.code != code:
        return f"ended with {ended.code} instead of {code}: {ended.said[-300:]}"
    if len(ended.errors) != 1 or "Traceback" in ended.said or not ended.said.endswith(ended.errors[0] + "\n"):
        return f"not one clear line: {ended.said[-300:]}"
    return truth.intact(bench.runs, RUN, at) or resumes(bench, truth)


def _mount(bench: Bench, *arguments: str) -> bool:
    return (
        bool(shutil.which("mount"))
        and not subprocess.run(["mount", *arguments, bench.disk], capture_output=True, check=False).returncode
    )


def _unmount(bench: Bench) -> None:
    subprocess.run(["umount", bench.disk], check=True)
