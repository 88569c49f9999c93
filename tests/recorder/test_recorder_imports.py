"""The recorder loads no trainer of others, and a callback without its library is one line of error."""

import os
import subprocess
import sys

import pytest

LIBRARIES = ("transformers", "accelerate", "lightning", "pytorch_lightning")


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("module", ["bitnetctl", "bitnetctl.recorder", "bitnetctl.integrations.base"])
def test_no_other_trainer_is_imported(module: str) -> None:
    done = run(f"import sys, {module}; print(*sorted(set({LIBRARIES}) & sys.modules.keys()))")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize(("name", "hidden"), [("transformers", LIBRARIES[:2]), ("lightning", LIBRARIES[2:])])
def test_a_library_that_is_missing_is_one_line(name: str, hidden: tuple[str, ...]) -> None:
    # None in sys.modules is a module that cannot be found
    done = run(f"import sys; sys.modules.update(dict.fromkeys({hidden})); import bitnetctl.integrations.{name}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: bitnetctl.integrations.{name} needs {name}")
    assert last.endswith(f"pip install 'bitnetctl[{name}]'")
