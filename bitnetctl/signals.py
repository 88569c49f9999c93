"""Stop signals: they set a flag, and training stops at its next step boundary."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Self

_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class StopRequest:
    """While active, a stop signal only sets a flag; a second SIGINT raises KeyboardInterrupt.

    The handler saves nothing, because saving inside a signal handler can hang: the training loop saves at its next
    step boundary. A SIGHUP that was ignored before, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._was_interrupted = False
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self.signal_name is not None

    def begin(self) -> Self:
        """Install the handlers that are not installed yet."""
        for number in _numbers():
            before = signal.getsignal(number)
            if number not in self._previous and (number.name != "SIGHUP" or before != signal.SIG_IGN):
                self._previous[number] = before
                signal.signal(number, self._handle)
        return self

    def end(self) -> None:
        """Restore the previous handlers; the flag stays as it is."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(self, *exception: object) -> None:
        self.end()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT":
            if self._was_interrupted:
                raise KeyboardInterrupt
            self._was_interrupted = True
        self.signal_name = name


@contextlib.contextmanager
def stops_as_interrupts() -> Iterator[None]:
    """Let a stop signal raise KeyboardInterrupt in the block, as SIGINT does, so that what was begun is removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.getsignal(number) for number in _numbers()}
    chosen = [number for number, before in previous.items() if number.name != "SIGHUP" or before != signal.SIG_IGN]
    try:
        for number in chosen:
            signal.signal(number, interrupt)
        yield
    finally:
        for number in chosen:
            signal.signal(number, previous[number])


def ignore_stops() -> None:
    """Ignore stop signals from now on, in a process that has stopped and is about to exit."""
    for number in _numbers():
        signal.signal(number, signal.SIG_IGN)


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in _STOPPING if hasattr(signal, name)]
