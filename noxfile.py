"""Jobs that anyone can start, such as `nox -s tests-oldest` or `nox -s lint`; see CONTRIBUTING.md."""

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests-oldest", "tests-newest", "tests-transformers-4", "lint"]
_DEPENDENCIES = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
_TORCH = next(text for text in _DEPENDENCIES if re.match(r"torch\b", text))


@nox.session(name="tests-oldest")
def tests_oldest(session: nox.Session) -> None:
    """Run the tests with the oldest torch allowed."""
    oldest = re.search(r">=([\d.]+)", _TORCH)
    assert oldest is not None
    _test(session, f"torch=={oldest[1]}.*" if oldest[1].count(".") < 2 else f"torch=={oldest[1]}")


@nox.session(name="tests-newest")
def tests_newest(session: nox.Session) -> None:
    """Run the tests with the newest torch allowed."""
    _test(session, "--upgrade", _TORCH)


@nox.session(name="tests-transformers-4")
def tests_transformers_4(session: nox.Session) -> None:
    """Run what uses transformers with its last version 4, the oldest allowed."""
    tests = session.posargs or ("tests/formats", "tests/integrations/test_transformers.py")
    _install(session, _TORCH, others=["transformers==4.57.*"])
    session.run("python", "-m", "pytest", "-q", *tests)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format and types."""
    session.install("-e", ".[test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


def _test(session: nox.Session, *torch: str) -> None:
    _install(session, *torch)
    session.run("python", "-c", "import torch; print('torch', torch.__version__)")
    session.run("python", "-m", "pytest", "-q", *session.posargs)


def _install(session: nox.Session, *torch: str, others: Sequence[str] = ()) -> None:
    # first: torch decides which versions of the others fit; NOX_TORCH_INDEX names an index of builds without CUDA
    index = os.environ.get("NOX_TORCH_INDEX")
    session.install(*torch, *(("--index-url", index) if index else ()))
    session.install("-e", ".[test]", *others)
