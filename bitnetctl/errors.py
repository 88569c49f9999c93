"""Exceptions a user may see, each with its exit code."""

import errno
from enum import IntEnum

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers."""


def one_line(error: object, most: int = 200) -> str:
    """Return a foreign error's text as one line of at most `most` characters, its type's name where it has none."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


class ExitCode(IntEnum):
    """What the process tells its caller; the numbers are a contract with scripts and schedulers."""

    SUPPORTED = 0
    REFUTED = 1
    USAGE = 2
    INTERNAL = 3
    INVALID = 4
    INCONCLUSIVE = 5
    STOPPED = 75
    INTERRUPTED = 130


class BitnetctlError(Exception):
    """An error that ends in one clear line on stderr and the exit code of its class."""

    exit_code: ExitCode = ExitCode.INTERNAL


class ConfigError(BitnetctlError):
    """The command line, a config, a file or the environment is not usable as given."""

    exit_code = ExitCode.USAGE


class DataError(ConfigError):
    """A text source, tokenizer or token cache cannot be used."""


class RecordError(ConfigError):
    """A CSV or manifest is not what a reader can trust; the message names file and line."""


class CheckpointError(BitnetctlError):
    """A checkpoint is missing, damaged or belongs to another run."""

    exit_code = ExitCode.USAGE


class StorageError(BitnetctlError):
    """The disk refused a write; what was saved before is intact.

    A full, read-only or forbidden place is the user's to mend (exit 2); any other refusal is a fault (exit 3).
    """

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        if number in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,
            errno.ELOOP,
            errno.ESTALE,
            *NO_LOCKS,
        ):
            self.exit_code = ExitCode.USAGE


class RunBusyError(ConfigError):
    """Another process holds the run."""


class RunEndedError(ConfigError):
    """The run has ended since it was looked at; there is nothing to train."""


class CaptureError(BitnetctlError):
    """A step could not be recorded as a CUDA graph; only a new process can use the GPU again."""


class StoppedBySignal(BitnetctlError):  # noqa: N818 - not a failure: the run can be resumed
    """Training stopped at a step boundary with a checkpoint saved."""

    exit_code = ExitCode.STOPPED
