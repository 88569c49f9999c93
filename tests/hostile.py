"""Helpers of the tests with hostile files, names and links."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from calling import Done

from bitnetctl.config import RunConfig, build_config
from bitnetctl.errors import ExitCode


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A known environment; fails where a file from outside was run (see `bombs`)."""
    for name in ("BITNETCTL_TRACEBACK", "BITNETCTL_RUNS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    yield
    assert not Path("exploded").exists()


def refused(done: Done) -> str:
    """Check that a command ended in one line of its own and return it."""
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1), done.err
    assert done.err.startswith("error: ")
    return done.err


def everything(folder: Path) -> dict[Path, bytes | None]:
    """Return every file below a folder with its content; links are not followed."""
    return {path: path.read_bytes() if path.is_file() and not path.is_symlink() else None for path in folder.rglob("*")}


def settings(config: RunConfig) -> list[str]:
    """Return the options that make a tiny config."""
    tree = config.model_dump(mode="json")
    base = build_config("quick").model_dump(mode="json")
    changed = [
        f"--set={section}.{name}={value}"
        for section in ("model", "data", "schedule", "probe")
        for name, value in tree[section].items()
        if value != base[section][name]
    ]
    return ["--recipe", "quick", "--steps", str(config.steps), *changed, "--device", "cpu"]
