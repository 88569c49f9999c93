"""Write a plug-in project, for `bitnetctl interventions new`."""

import keyword
import re
from pathlib import Path
from string import Template

from bitnetctl.errors import ConfigError
from bitnetctl.files import storage_errors

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_PYPROJECT = Template("""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "bitnetctl-$name"
version = "0.1.0"
description = "The intervention $name for bitnetctl"
requires-python = ">=3.11"
dependencies = ["bitnetctl"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points."bitnetctl.interventions"]
$name = "$module:$class_name"

[tool.setuptools]
py-modules = ["$module"]
""")

_MODULE = Template('''\
"""The intervention `$name`."""

from typing import Annotated

from bitnetctl.intervention import Intervention, InterventionSettings
from pydantic import Field


class $class_name(Intervention):
    """Scale the learning rate after a fraction of the run."""

    summary = "scale the learning rate after a fraction of the run"
    source = "paper and section that the idea is from"

    class Settings(InterventionSettings):
        """Set with `-i $name:factor=0.1`; every field needs a default."""

        factor: Annotated[float, Field(gt=0, description="factor on the learning rate")] = 0.5
        after: Annotated[float, Field(ge=0, le=1, description="fraction of the steps before that")] = 0.5

    settings: Settings

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        """Return the rate of `step`, a pure function. bitnetctl/intervention.py documents all hooks."""
        return base * self.settings.factor if step > self.settings.after * steps else base
''')

_TEST = Template('''\
"""Tests of the intervention `$name`."""

from bitnetctl.testing import check_contract

from $module import $class_name


def test_contract() -> None:
    check_contract($class_name, {"factor": 0.1})


def test_rate_drops_after_the_fraction() -> None:
    intervention = $class_name($class_name.Settings(factor=0.1, after=0.5))
    assert intervention.learning_rate(1.0, 50, 100) == 1.0
    assert intervention.learning_rate(1.0, 51, 100) == 0.1
''')

_README = Template("""\
# bitnetctl-$name

An intervention for [bitnetctl](https://pypi.org/project/bitnetctl/).

    pip install -e '.[test]'
    pytest
    bitnetctl interventions show $name
    bitnetctl train --recipe quick -i $name:factor=0.1
""")


def write_project(name: str, parent: Path) -> Path:
    """Write a plug-in project for intervention `name` into a new folder below `parent` and return it.

    Raises ConfigError for an unusable name or a folder that exists.
    """
    if not _NAME.fullmatch(name) or len(name) > 64:
        raise ConfigError(f"intervention name {name!r}: take lower-case letters and digits joined by '-'")
    module = "bitnetctl_" + name.replace("-", "_")
    class_name = "".join(part.capitalize() for part in name.split("-"))
    if keyword.iskeyword(class_name) or module == "bitnetctl_interventions":
        raise ConfigError(f"intervention name {name!r} is taken by Python or bitnetctl itself; choose another")
    folder = parent / f"bitnetctl-{name}"
    if folder.exists():
        raise ConfigError(f"{folder} exists already; choose another name or --path")
    words = {"name": name, "module": module, "class_name": class_name}
    with storage_errors(folder):
        (folder / "tests").mkdir(parents=True)
        files = {
            "pyproject.toml": _PYPROJECT,
            f"{module}.py": _MODULE,
            f"tests/test_{module}.py": _TEST,
            "README.md": _README,
        }
        for path, template in files.items():
            (folder / path).write_text(template.substitute(words), encoding="utf-8")
    return folder
