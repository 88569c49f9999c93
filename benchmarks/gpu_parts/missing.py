"""Packages that this machine lacks, and the lines that fetch and install them; it installs nothing.

The standard library and `packaging` only: it runs where hardly anything is installed.
"""

import importlib
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.report import Options, Report

_ROOT = Path(__file__).parents[2]
# of the extra `test`: what tests on a GPU import
_FROM_TESTS = {"pytest", "pytest-randomly", "hypothesis", "triton"}
# measured beside ours where it is there
_OPTIONAL = ("torchao==0.18.0",)


def run(report: Report, options: Options) -> None:
    """List every requirement that is not met, and the lines."""
    wheels = Path(options.wheels)
    carried = sorted(path.name for path in wheels.glob("*.whl")) if wheels.is_dir() else []
    lacking = list(dict.fromkeys(_lacking(_required())))
    for requirement, found in lacking:
        report.row("missing", {"requirement": str(requirement), "installed": found or "no"})
    optional = [requirement for requirement, _ in _lacking(map(_requirement, _OPTIONAL))]
    names = [str(requirement) for requirement, _ in lacking]
    report.values(
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        missing=len(lacking),
        optional=", ".join(map(str, optional)) or "all there",
        carried=", ".join(carried) or "none",
        project="installed" if _installed("bitnetctl") else "not installed: built-in interventions are unknown",
    )
    report.text("\n".join(["```", *lines(names, [str(each) for each in optional], wheels), "```"]))


def lines(names: list[str], optional: list[str], wheels: Path) -> list[str]:
    """Return the shell lines that fetch the wheels elsewhere, and those that install them and the project here."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    platforms = "--platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64"
    fetch = f"pip download --only-binary=:all: --python-version {python} {platforms} -d {wheels}"
    install = f"python3 -m pip install -q --no-index --find-links {wheels}"
    found = [f"{fetch} {_quoted(names)}", f"{install} {_quoted(names)}"] if names else []
    if optional:
        found += [f"{fetch} --no-deps {_quoted(optional)}", f"{install} --no-deps {_quoted(optional)}"]
    return [*found, "python3 -m pip install -q --no-index --no-deps --no-build-isolation ."]


def _quoted(names: Iterable[str]) -> str:
    return " ".join(f"'{name}'" for name in names)


def _required() -> list[Any]:
    """Return the requirements of the package, of its build and of its tests on a GPU."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tests = map(_requirement, project["project"]["optional-dependencies"]["test"])
    named = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    return [*map(_requirement, named), *(each for each in tests if each.name in _FROM_TESTS)]


def _lacking(requirements: Iterable[Any]) -> Iterator[tuple[Any, str | None]]:
    """Yield requirements that are not met, with the version found; those of installed packages, too."""
    seen: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop(0)
        if str(requirement) in seen or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(str(requirement))
        found = _installed(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            # a marker that holds here says nothing elsewhere
            requirement.marker = None
            yield requirement, found
        elif requirement.name != "torch":
            # torch's own are libraries of CUDA, which a machine may have in another way
            waiting += map(_requirement, importlib.metadata.requires(requirement.name) or [])


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirement(text: str) -> Any:
    try:
        module = importlib.import_module("packaging.requirements")
    except ImportError:
        module = importlib.import_module("pip._vendor.packaging.requirements")
    return module.Requirement(text)
