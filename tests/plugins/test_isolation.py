"""What the code of a plug-in changes in the process is put back and named once."""

import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitnetctl.plugins.isolation import forget_intrusions, intrusions_of, isolated

pytestmark = pytest.mark.usefixtures("forgotten")


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Forget what was named before and after."""
    forget_intrusions()
    yield
    forget_intrusions()


def replace_stdout() -> None:
    sys.stdout = sys.__stderr__


# name: what code does, how to read the state, what is named
CHANGES: dict[str, tuple[Callable[[], object], Callable[[], Any], str]] = {
    "dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        torch.get_default_dtype,
        "set torch's default dtype to torch.float64",
    ),
    "device": (
        lambda: torch.set_default_device("meta"),
        torch.get_default_device,
        "set torch's default device to meta",
    ),
    "threads": (lambda: torch.set_num_threads(3), torch.get_num_threads, "set torch's number of threads to 3"),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
        "changed torch's deterministic or cuDNN flags",
    ),
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled, "set torch's grad mode to False"),
    "matmul": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
        "set torch's matmul precision to medium",
    ),
    "torch seed": (
        lambda: torch.manual_seed(5),
        lambda: torch.get_rng_state().tolist(),
        "drew from or seeded torch's global generator",
    ),
    "torch draw": (
        lambda: torch.rand(1),
        lambda: torch.get_rng_state().tolist(),
        "drew from or seeded torch's global generator",
    ),
    "numpy draw": (
        lambda: np.random.rand(),  # noqa: NPY002
        lambda: np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
        "drew from or seeded numpy's global generator",
    ),
    "random": (random.random, random.getstate, "drew from or seeded Python's global generator"),
    "numpy errors": (lambda: np.seterr(over="raise"), np.geterr, "changed numpy's error state over"),
    "warnings": (
        lambda: warnings.simplefilter("ignore"),
        lambda: list(warnings.filters),
        "changed the warnings filters",
    ),
    "signal": (
        lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGUSR2),
        "changed the handler of SIGUSR2",
    ),
    "environment": (
        lambda: os.environ.update(MADE_UP_VARIABLE="1"),
        lambda: dict(os.environ),
        "changed the environment variable MADE_UP_VARIABLE",
    ),
    "directory": (lambda: os.chdir("/"), Path.cwd, "set the working directory to /"),
    "logging": (lambda: logging.root.setLevel(5), lambda: logging.root.level, "changed the root logger"),
    "stdout": (replace_stdout, lambda: sys.stdout, "replaced sys.stdout"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("at_import", [False, True])
def test_a_change_is_put_back_and_named_once(
    name: str, at_import: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    change, read, text = CHANGES[name]
    before = read()
    for _ in range(2):
        with isolated("half-rate", "at import", at_import=at_import):
            change()
        assert read() == before
    assert intrusions_of("half-rate") == [f"{text} at import; put back"]
    assert capsys.readouterr().err == f"warning: half-rate {text} at import; put back\n"


def test_a_change_before_an_error_is_put_back() -> None:
    def change() -> None:
        torch.set_default_dtype(torch.float64)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), isolated("p", "in __init__"):
        change()
    assert torch.get_default_dtype() is torch.float32
    assert intrusions_of("p") == ["set torch's default dtype to torch.float64 in __init__; put back"]


def test_code_that_changes_nothing_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    with isolated("p", "in configure"):
        torch.ones(3).sum()
    assert (intrusions_of("p"), capsys.readouterr().err) == ([], "")


def test_a_library_may_silence_warnings_of_its_own_at_import() -> None:
    before = list(warnings.filters)
    try:
        with isolated("p", "at import", at_import=True):
            warnings.filterwarnings("ignore", message="made up", module="made_up")
        assert len(warnings.filters) == len(before) + 1
    finally:
        warnings.filters[:] = before  # type: ignore[index]
    with isolated("p", "in training_loss"):
        warnings.filterwarnings("ignore", message="made up", module="made_up")
    assert list(warnings.filters) == before
    assert intrusions_of("p") == []


def draws(seed: str) -> tuple[float, float, float]:
    with isolated("p", "in training_loss", seed=seed):
        return torch.rand(1).item(), float(np.random.rand()), random.random()  # noqa: NPY002


def test_a_hook_draws_from_generators_of_its_own() -> None:
    random.seed(1)
    torch.manual_seed(1)
    expected = (torch.rand(1).item(), random.random())
    random.seed(1)
    torch.manual_seed(1)
    one = draws("0 1")
    assert draws("0 2") != one
    assert draws("0 1") == one
    # nothing was taken from the others
    assert (torch.rand(1).item(), random.random()) == expected
    assert intrusions_of("p") == []
    with isolated("p", "in training_loss", seed="0 1"):
        torch.manual_seed(0)
    assert intrusions_of("p") == ["seeded torch's global generator in training_loss; put back"]


def test_what_it_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with isolated("p", "at import", at_import=True):
        print("printed")  # noqa: T201
        os.system("echo from a child")
    with isolated("p", "in learning_rate"):
        print("in a hook")  # noqa: T201
    print("ours")  # noqa: T201
    sys.stdout.flush()
    out, err = capfd.readouterr()
    assert out == "ours\n"
    assert sorted(err.splitlines()) == ["from a child", "in a hook", "printed"]


class Shared:
    """A class with state."""

    calls: list[int] = []  # noqa: RUF012 - what is tested
    table: dict[str, int] = {}  # noqa: RUF012
    count = 0
    weight = torch.zeros(2)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("calls", lambda: Shared.calls.append(1)),
        ("table", lambda: Shared.table.update(a=1)),
        ("count", lambda: setattr(Shared, "count", 1000)),
        ("weight", lambda: Shared.weight.add_(1)),
    ],
)
def test_state_on_the_class_is_named(name: str, change: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shared, name, type(Shared.__dict__[name])(Shared.__dict__[name]))
    with isolated("p", "in training_loss", kind=Shared):
        pass
    assert intrusions_of("p") == []
    with isolated("p", "in training_loss", kind=Shared):
        change()
    assert intrusions_of("p") == [f"changed Shared.{name} in training_loss, which all runs share: keep state on self"]


def test_torch_is_watched_from_its_import_on(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from bitnetctl.plugins.isolation import isolated, intrusions_of\n"
        "assert 'torch' not in sys.modules\n"
        "with isolated('p', 'at import', at_import=True):\n"
        "    import torch; torch.set_default_dtype(torch.float64); torch.manual_seed(1)\n"
        "print(torch.get_default_dtype(), intrusions_of('p'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        'torch.float32 ["set torch\'s default dtype to torch.float64 at import; put back", '
        '"drew from or seeded torch\'s global generator at import; put back"]\n'
    )
