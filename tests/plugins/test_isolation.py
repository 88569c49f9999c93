"""What the code of a plug-in changes in the process is put back and named once."""

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitnetctl.errors import PluginError
from bitnetctl.plugins import aspects, torch_aspects
from bitnetctl.plugins.blame import errors_blamed
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
        "changed torch's deterministic, cuDNN or oneDNN flags",
    ),
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled, "set torch's grad mode to False"),
    "matmul": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
        "changed torch's precision of float32 matmuls",
    ),
    "matmul of oneDNN": (
        lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),  # type: ignore[attr-defined]
        torch_aspects._precisions,
        "changed torch's precision of float32 matmuls",
    ),
    "all precisions": (
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        torch_aspects._precisions,
        "changed torch's precision of float32 matmuls",
    ),
    "precision of cuDNN": (
        lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
        torch_aspects._precisions,
        "changed torch's precision of float32 matmuls",
    ),
    "oneDNN": (
        lambda: torch._C._set_mkldnn_enabled(False),
        torch._C._get_mkldnn_enabled,
        "changed torch's deterministic, cuDNN or oneDNN flags",
    ),
    "autocast": (
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: torch.is_autocast_enabled("cpu"),
        "changed torch's autocast",
    ),
    "denormals": (
        lambda: torch.set_flush_denormal(torch_aspects._keeps_denormals()),
        torch_aspects._keeps_denormals,
        "changed how torch treats denormal numbers",
    ),
    "recursion": (
        lambda: sys.setrecursionlimit(1234),
        sys.getrecursionlimit,
        "set Python's recursion limit to 1234",
    ),
    "umask": (lambda: os.umask(0o7), aspects._umask, "changed the umask"),
    "timer": (
        lambda: signal.setitimer(signal.ITIMER_REAL, 1000),
        lambda: signal.getitimer(signal.ITIMER_REAL),
        "changed the timer of SIGALRM",
    ),
    "collection": (gc.disable, gc.isenabled, "changed garbage collection"),
    "search path": (sys.path.clear, lambda: list(sys.path), "changed sys.path"),
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
    named = [
        f"printed to stdout {where}, where results go; shown on stderr" for where in ("at import", "in learning_rate")
    ]
    assert intrusions_of("p") == named
    said = [f"warning: p {text}" for text in named]
    assert sorted(err.splitlines()) == sorted(["from a child", "in a hook", "printed", *said])


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


def test_a_folder_added_to_the_search_path_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in may import a module beside it later, in a hook."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    with isolated("p", "at import", at_import=True):
        sys.path.insert(0, "/beside/the/plug-in")
    assert sys.path[0] == "/beside/the/plug-in"
    assert intrusions_of("p") == []


def test_what_a_hook_writes_past_sys_stdout_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """The file descriptor, a child process."""
    with isolated("p", "in training_loss"):
        os.write(1, b"descriptor\n")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "descriptor\nchild\n")


def test_code_cannot_end_the_process() -> None:
    """Not even without a trace, as 0 or 1, which are verdicts."""
    with (
        pytest.raises(PluginError, match=r"p: learning_rate raised SystemExit\(1\); no hook may end the process"),
        isolated("p", "in learning_rate"),
        errors_blamed("p", "learning_rate"),
    ):
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_go_on_with_the_training() -> None:
    """It would write every row of the run a second time."""
    program = """
import os
from bitnetctl.plugins.isolation import isolated
with isolated("p", "in training_loss"):
    child = os.fork()
if child:
    os.waitpid(child, 0)
os.write(1, b"goes on\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "goes on\n"


def test_an_error_beside_exceptions_is_one_of_the_plug_in() -> None:
    """Some libraries derive theirs from BaseException; Python would end with 1, a verdict."""

    class Other(BaseException):
        pass

    with pytest.raises(PluginError, match="p: learning_rate raised Other"), errors_blamed("p", "learning_rate"):
        raise Other
