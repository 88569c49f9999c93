"""A stop asked for by a signal: a flag, a way out, and the handlers of before."""

import signal
import time
from collections.abc import Callable

import pytest

from bitnetctl.signals import StopRequest

STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def send(number: signal.Signals) -> None:
    signal.raise_signal(number)
    # the interpreter runs handlers between two instructions
    time.sleep(0)


@pytest.fixture
def earlier() -> Callable[[int, object], None]:
    """A handler that was there before."""

    def handler(number: int, frame: object) -> None:
        raise AssertionError("the earlier handler must not run")

    return handler


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_only_sets_the_flag(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop()
        assert stop.signal_name is None
        send(number)
        assert stop()
        assert stop.signal_name == number.name
    assert stop()


def test_a_second_interrupt_is_one() -> None:
    with StopRequest() as stop:
        send(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_scheduler_may_repeat_itself() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            send(number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("number", STOPPING)
def test_handlers_are_restored(number: signal.Signals, earlier: Callable[[int, object], None]) -> None:
    original = signal.signal(number, earlier)
    try:
        with StopRequest():
            assert signal.getsignal(number) is not earlier
        assert signal.getsignal(number) is earlier
        with pytest.raises(RuntimeError, match="broken"), StopRequest():
            raise RuntimeError("broken")
        assert signal.getsignal(number) is earlier
    finally:
        signal.signal(number, original)
