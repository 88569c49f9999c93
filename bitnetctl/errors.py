"""Exceptions a user may see, each with its exit code."""

import errno
from enum import IntEnum

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Error numbers of a file system that has no locks."""

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")


def one_line(error: object, limit: int | None = 200) -> str:
    """Return the text of an error on one line of at most `limit` characters, or its type if it has no text."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]


def cannot_read(what: object, error: OSError) -> str:
    """Return the message for a file that cannot be read, which begins with `what` it is."""
    return f"{what}: cannot read: {error.strerror or error}"


class ExitCode(IntEnum):
    """Exit codes of the process; scripts and schedulers rely on the numbers."""

    SUPPORTED = 0
    REFUTED = 1
    USAGE = 2
    INTERNAL = 3
    INVALID = 4
    INCONCLUSIVE = 5
    STOPPED = 75
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch is a lack of memory, of the machine or of a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch has no class of its own for the CPU
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def is_incomplete(error: BaseException) -> bool:
    """Whether a library that this package needs is missing or cannot be loaded."""
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("bitnetctl")
    # ctypes, by which torch loads its libraries, raises a bare OSError
    return isinstance(error, OSError) and error.errno is None and "shared object" in str(error)


class BitnetctlError(Exception):
    """An error that the command line reports as one line on stderr, with the exit code of its class."""

    exit_code: ExitCode = ExitCode.INTERNAL


class ConfigError(BitnetctlError):
    """The command line, a config, a file or the environment cannot be used as it is."""

    exit_code = ExitCode.USAGE


class DataError(ConfigError):
    """A text source, tokenizer or token cache cannot be used."""


class RecordError(ConfigError):
    """A CSV or manifest is damaged or malformed; the message names the file, and the line of a CSV."""


class CheckpointError(BitnetctlError):
    """A checkpoint is missing, damaged or belongs to another run."""

    exit_code = ExitCode.USAGE


class ExportError(BitnetctlError):
    """An exported file is not the model of the run: its self-check failed, and it was not kept."""

    exit_code = ExitCode.INVALID


class StorageError(BitnetctlError):
    """A write or a file lock failed; what was saved before is intact.

    The exit code is 2 where the user can fix it (the disk is full or read-only, permission is missing), else 3.
    """

    def __init__(self, message: str, error_number: int | None = None) -> None:
        super().__init__(message)
        if error_number in (
            errno.ENOENT,
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
            errno.EMFILE,
            errno.ENFILE,
            errno.ENAMETOOLONG,
            errno.EFBIG,
            *NO_LOCKS,
        ):
            self.exit_code = ExitCode.USAGE


class RunBusyError(ConfigError):
    """Another process holds the lock of the run."""


class RunRefusedError(ConfigError):
    """Files of the run belong to another user and cannot be written."""


class WorkersError(ConfigError):
    """Every worker process of a sweep ended with an error, after one had taken a run."""


class RunEndedError(ConfigError):
    """The run ended in another process after its status was read; there is nothing left to train."""


class PluginError(ConfigError):
    """The code of a plug-in failed or broke its contract; the message names plug-in, hook, file and line."""


class CaptureError(BitnetctlError):
    """A step could not be captured as a CUDA graph; only a new process can use the GPU again."""


class StoppedBySignal(BitnetctlError):  # noqa: N818 - not a failure: the run can be resumed
    """Training stopped at a step boundary with a checkpoint saved."""

    exit_code = ExitCode.STOPPED
