"""Arms as text: `a:x=1,y=2+b`, and interventions in files."""

import os
import re
from pathlib import Path
from typing import Any

from bitnetctl.config.load import parse_value, validated
from bitnetctl.config.schema import BASELINE, InterventionSpec, join_arm
from bitnetctl.errors import ConfigError
from bitnetctl.files import expand_user


def parse_arm(text: str) -> tuple[InterventionSpec, ...]:
    """Parse an arm such as `a:x=1,y=2+b`; `baseline` and an empty text are no intervention. Raises ConfigError."""
    return tuple(map(_parse_intervention, split_arm(text)))


def arm_beside(file: str, text: str) -> str:
    """Return an arm that a `FILE.toml` names: a FILE.py in it is relative to that file."""
    parts = split_arm(text) if file.endswith(".toml") else []
    return "+".join(_path_beside(file, part) for part in parts) or text


def _path_beside(file: str, intervention: str) -> str:
    named = _FILE.fullmatch(intervention)
    if named is None:
        return intervention
    path = str(Path(file).parent / expand_user(named["file"]))
    # only in an absolute path is a plus sign known not to join interventions
    is_clear = "+" not in path and re.match(_BEGINNING, path)
    return (path if is_clear else os.path.abspath(path)) + intervention[named.end("file") :]  # noqa: PTH100 - Path.resolve would follow links


def split_arm(text: str) -> list[str]:
    """Split `a:x=1,y=2+b` into the texts of its interventions; `baseline` or an empty text has none."""
    if text.strip() in ("", BASELINE):
        return []
    parts: list[str] = []
    # a plus sign in front of a letter or a path joins interventions; one in `1e+3` does not
    for part in re.split(rf"\+(?=\s*{_BEGINNING})", text):
        if parts and parts[-1].lstrip().startswith(("/", "~", ".")) and ".py" not in parts[-1]:
            # one in a path
            parts[-1] += f"+{part}"
        else:
            parts.append(part)
    return [part.strip() for part in parts]


def canonical_arm(text: str) -> str:
    """Return an arm given as text as labels write it: `baseline` for none, settings in the order of their names."""
    return join_arm(map(_sorted_settings, split_arm(text)))


def _sorted_settings(intervention: str) -> str:
    name, colon, rest = intervention.rpartition(":")
    pairs = [pair.strip() for pair in rest.split(",")]
    if not colon or not all("=" in pair for pair in pairs):
        return intervention
    return f"{name}:{','.join(sorted(pairs, key=lambda pair: pair.partition('=')[0]))}"


_BEGINNING = r"(?:[A-Za-z~/]|\.{1,2}/)"
"""What the name of an intervention or a path begins with."""
# FILE.py, FILE.py:Class, FILE.py:key=value and FILE.py:Class:key=value
_FILE = re.compile(r"(?P<file>.+\.py)(?::(?P<kind>[^\W\d]\w*))?(?::(?P<settings>.+))?", re.DOTALL)


def _parse_intervention(text: str) -> InterventionSpec:
    in_file = _FILE.fullmatch(text)
    if in_file is not None:
        path = os.path.abspath(expand_user(in_file["file"]))  # noqa: PTH100 - Path.resolve would follow links
        kind = in_file["kind"]
        tree: dict[str, Any] = {
            "name": kebab_case(kind or Path(path).stem) or "file",
            "file": f"{path}:{kind}" if kind else path,
        }
        rest = in_file["settings"]
    else:
        name, colon, rest = text.partition(":")
        rest = rest if colon else None
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name.strip()):
            likely = kebab_case(name)
            hint = f"did you mean {likely!r}?" if likely else "take one of `bitnetctl interventions list`, or a FILE.py"
            raise ConfigError(f"intervention {text!r}: names have lower case and hyphens; {hint}")
        tree = {"name": name.strip()}
    settings: dict[str, Any] = {}
    for pair in rest.split(",") if rest is not None else ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"intervention {text!r}: expected NAME:key=value,key=value")
        settings[key.strip()] = parse_value(value)
    return validated(InterventionSpec, {**tree, "settings": settings}, f"intervention {text!r}")


def kebab_case(text: str) -> str:
    """Return the name of an intervention for that of a class or file: `halved-rate` for `HalvedRate`; may be empty."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", text.strip())
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:64]
