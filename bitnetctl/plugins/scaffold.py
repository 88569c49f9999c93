"""Write a plug-in project, for `bitnetctl interventions new`."""

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

from bitnetctl.errors import ConfigError
from bitnetctl.files import storage_errors

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

# path in the new project: its template
_FILES = {
    "pyproject.toml": "pyproject.toml.in",
    "$module.py": "module.py.in",
    "tests/test_$module.py": "test_module.py.in",
    "README.md": "README.md.in",
}


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
    substitutions = {"name": name, "module": module, "class_name": class_name}
    with storage_errors(folder):
        (folder / "tests").mkdir(parents=True)
        for path, template in _FILES.items():
            text = (resources.files("bitnetctl.plugins") / "template" / template).read_text(encoding="utf-8")
            target = folder / Template(path).substitute(substitutions)
            target.write_text(Template(text).substitute(substitutions), encoding="utf-8")
    return folder
