"""From recipes, TOML files and the command line to a config, and back to text."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bitnetctl.config.schema import InterventionSpec, RunConfig
from bitnetctl.errors import ConfigError


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    folder = resources.files("bitnetctl.config") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> dict[str, Any]:
    """Return the tree of a built-in recipe or of a `FILE.toml`; raises ConfigError."""
    if name.endswith(".toml"):
        path = Path(name)
        text = read_text(path, f"recipe file {name}")
        label = path.stem
    elif name in recipe_names():
        text = (resources.files("bitnetctl.config") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        label = name
    else:
        raise ConfigError(
            f"unknown recipe {name!r}{near_miss(name, recipe_names())}; "
            f"built in: {', '.join(recipe_names())}; or give a FILE.toml"
        )
    return {"recipe": label, **parse_toml(text, f"recipe {name}")}


def read_text(path: Path, source: str) -> str:
    """Return the text of a file that the user names; raises ConfigError that begins with `source`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}") from error
    except ValueError as error:
        # a name with a NUL byte
        raise ConfigError(f"{source}: {error}") from error


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Parse TOML; raises ConfigError that begins with `source`."""
    try:
        return tomllib.loads(text)
    # ValueError also for thousands of digits, RecursionError for thousands of brackets
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error


def build_config(
    recipe: str,
    *,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    eval_every_steps: int | None = None,
    overrides: Iterable[str] = (),
    interventions: tuple[InterventionSpec, ...] | None = None,
) -> RunConfig:
    """Build a config from a recipe and what the command line adds to it; raises ConfigError.

    `overrides` are `section.field=value` texts; the named arguments win over them.
    """
    tree = load_recipe(recipe)
    for text in overrides:
        _apply_override(tree, text)
    if size is not None:
        _section(tree, "model")["hidden_size"] = size
    if eval_every_steps is not None:
        _section(tree, "probe")["eval_every_steps"] = eval_every_steps
    if steps is not None:
        tree["steps"] = steps
    if seed is not None:
        tree["seed"] = seed
    if interventions is not None:
        tree["interventions"] = [spec.model_dump() for spec in interventions]
    return parse_config(tree, source=f"recipe {recipe}")


def parse_config(tree: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate a plain tree into a RunConfig; raises ConfigError with one line that names the field."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {validation_line(error, RunConfig)}") from error


def parse_arm(text: str) -> tuple[InterventionSpec, ...]:
    """Parse `a:x=1,y=2+b` into specs; `baseline` or an empty text is no intervention. Raises ConfigError."""
    return tuple(map(_parse_intervention, split_arm(text)))


def split_arm(text: str) -> list[str]:
    """Split `a:x=1,y=2+b` into the texts of its interventions; `baseline` or an empty text has none."""
    if text.strip() in ("", "baseline"):
        return []
    # a plus sign in front of a letter joins interventions; one in `1e+3` does not
    return [part.strip() for part in re.split(r"\+(?=\s*[A-Za-z])", text)]


def _parse_intervention(text: str) -> InterventionSpec:
    name, colon, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for pair in rest.split(",") if colon else ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"intervention {text!r}: expected NAME:key=value,key=value")
        settings[key.strip()] = parse_value(value)
    try:
        return InterventionSpec(name=name.strip(), settings=settings)
    except ValidationError as error:
        raise ConfigError(f"intervention {text!r}: {validation_line(error, InterventionSpec)}") from error


def parse_value(text: str) -> Any:
    """Read a command-line value: TOML number, boolean, array or string; `none` is None; else the text itself."""
    stripped = text.strip()
    if stripped.lower() in ("none", "null"):
        return None
    try:
        value = tomllib.loads(f"value = {stripped}")["value"]
    except (ValueError, RecursionError):
        return stripped
    return value if isinstance(value, bool | int | float | str | list) else stripped


def validation_line(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first problem of a pydantic error in one line, with a near-miss suggestion for unknown fields."""
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown_field(location, model)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"].startswith("value_error"):
        return message
    return f"{location}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def field_paths(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Dotted names of every field of a config tree."""
    paths = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            paths += field_paths(nested, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def _apply_override(tree: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals:
        raise ConfigError(f"--set {text!r}: expected section.field=value")
    if path not in field_paths():
        raise ConfigError(f"--set {text!r}: {_unknown_field(path, RunConfig)}")
    parsed = parse_value(value)
    if path in ("optimizer.exempt", "optimizer.betas") and isinstance(parsed, str):
        parsed = [item.strip() for item in parsed.split(",") if item.strip()]
    *sections, field = path.split(".")
    for section in sections:
        tree = _section(tree, section)
    tree[field] = parsed


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.setdefault(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"recipe: {name} must be a table")
    return section


def _unknown_field(path: str, model: type[BaseModel]) -> str:
    known = field_paths(model)
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    same_leaf = by_leaf.get(path.rpartition(".")[2])
    hint = f"; did you mean {same_leaf!r}?" if same_leaf else near_miss(path, known)
    if not hint:
        leaf = difflib.get_close_matches(path.rpartition(".")[2], by_leaf, n=1, cutoff=0.6)
        hint = f"; did you mean {by_leaf[leaf[0]]!r}?" if leaf else f"; known: {', '.join(known)}"
    return f"unknown field {path!r}{hint}"


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean '...'?` for the closest known word, an empty text if none is close."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


def config_text(config: "RunConfig") -> str:
    """Return a config as TOML; what is unset reads "none"."""
    tree = config.model_dump(mode="json", exclude={"interventions"})
    lines = [*_plain_lines(tree), f"# arm: {config.arm}"]
    for section, fields in tree.items():
        if isinstance(fields, dict):
            lines += ["", f"[{section}]", *_plain_lines(fields)]
    return "\n".join(lines)


def _plain_lines(fields: dict[str, Any]) -> list[str]:
    return [
        f"{key} = {json.dumps('none' if value is None else value, ensure_ascii=False)}"
        for key, value in fields.items()
        if not isinstance(value, dict)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of the leaves; lists are leaves."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
