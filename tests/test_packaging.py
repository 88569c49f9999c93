"""What is installed: every file of the packages that is not Python, besides what tests run from the checkout."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"bitnetctl": ROOT / "bitnetctl", "bitnetctl_interventions": ROOT / "interventions/bitnetctl_interventions"}


@pytest.mark.parametrize("package", PACKAGES)
def test_files_that_are_not_python_are_installed(package: str) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = pyproject["tool"]["setuptools"]["package-data"][package]
    folder = PACKAGES[package]
    present = {
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert present
    assert present <= {path for pattern in patterns for path in folder.glob(pattern)}
    # no pattern is left of files that have gone
    assert all(list(folder.glob(pattern)) for pattern in patterns)
