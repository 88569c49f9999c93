"""The parts of the state of a process that code can change by accident; torch's are in `torch_aspects`."""

import contextlib
import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGCHLD")
    if hasattr(signal, name)
)


def void(value: object) -> None:
    """Drop the value of an expression."""


@dataclass(frozen=True)
class Aspect:
    """A part of the state of the process.

    `shows` says whether its value is short enough for a message. A generator that is `seeded` belongs to a hook while
    that runs, see `isolated`.
    """

    what: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    shows: bool = False
    is_generator: bool = False


# torch sets these by itself
_OF_TORCH = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def _environment() -> dict[Any, Any]:
    # decoding every variable would take most of the time of a hook
    variables = dict(getattr(os.environ, "_data", os.environ))
    for name in _OF_TORCH:
        variables.pop(name if os.name == "nt" else name.encode(), None)
    return variables


def _set_environment(value: dict[Any, Any]) -> None:
    now = _environment()
    for key in now.keys() | value.keys():
        if now.get(key) != value.get(key):
            name = os.fsdecode(key)
            if key in value:
                os.environ[name] = os.fsdecode(value[key])
            else:
                del os.environ[name]


def _directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - for every hook
    except OSError:
        return None


def _set_directory(value: str | None) -> None:
    if value is not None:
        with contextlib.suppress(OSError):
            os.chdir(value)


def _set_filters(value: list[Any]) -> None:
    # tells the interpreter, too, that its cache of shown warnings is stale
    warnings.resetwarnings()
    warnings.filters[:] = value  # type: ignore[index]


# without the conversion to enumerated values, which would take most of the time
_get_handler: Callable[[signal.Signals], Any] = getattr(signal.getsignal, "__wrapped__", signal.getsignal)


def _handlers() -> dict[signal.Signals, Any]:
    return {number: _get_handler(number) for number in _SIGNALS}


def _set_handlers(value: dict[signal.Signals, Any]) -> None:
    # only the main thread may change them, a plug-in as well
    if threading.current_thread() is threading.main_thread():
        for number, handler in value.items():
            if handler is not None and _get_handler(number) != handler:
                signal.signal(number, handler)


def _set_logging(value: tuple[int, int, list[logging.Handler]]) -> None:
    logging.root.setLevel(value[0])
    logging.disable(value[1])
    logging.root.handlers[:] = value[2]


def _search_path() -> list[str]:
    return list(sys.path)


def _set_search_path(value: list[str]) -> None:
    sys.path[:] = value


def _umask() -> int:
    value = os.umask(0o077)
    os.umask(value)
    return value


def _timer() -> tuple[bool, float]:
    # the time that is left runs by itself
    left, interval = signal.getitimer(signal.ITIMER_REAL) if hasattr(signal, "getitimer") else (0.0, 0.0)
    return left > 0, interval


def _set_timer(value: tuple[bool, float]) -> None:
    if value == (False, 0.0):
        signal.setitimer(signal.ITIMER_REAL, 0)


def _set_collection(value: bool) -> None:
    (gc.enable if value else gc.disable)()


FILTERS = "the warnings filters"
SEARCH_PATH = "sys.path"
GENERAL = (
    Aspect("Python's recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, shows=True),
    Aspect(SEARCH_PATH, _search_path, _set_search_path),
    Aspect("the umask", _umask, lambda value: void(os.umask(value))),
    Aspect("the timer of SIGALRM", _timer, _set_timer),
    Aspect("garbage collection", gc.isenabled, _set_collection),
    Aspect("the working directory", _directory, _set_directory, shows=True),
    Aspect("the environment variable", _environment, _set_environment),
    Aspect(FILTERS, lambda: list(warnings.filters), _set_filters),
    Aspect("the handler of", _handlers, _set_handlers),
    Aspect(
        "the root logger",
        lambda: (logging.root.level, logging.root.manager.disable, list(logging.root.handlers)),
        _set_logging,
    ),
    Aspect("Python's global generator", random.getstate, random.setstate, is_generator=True),
)


@cache
def of_numpy() -> tuple[Aspect, ...]:
    import numpy as np

    def state() -> tuple[Any, ...]:
        state: Any = np.random.get_state()  # noqa: NPY002 - the one that a plug-in may use
        name, keys, *rest = state
        return name, keys.tobytes(), *rest

    def set_state(value: tuple[Any, ...]) -> None:
        name, keys, *rest = value
        np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))  # noqa: NPY002

    return (
        Aspect("numpy's error state", np.geterr, lambda value: void(np.seterr(**value))),
        Aspect("numpy's global generator", state, set_state, is_generator=True),
    )
