"""Read a config from recipes, TOML files and the command line, and write it as TOML."""

import codecs
import difflib
import json
import os
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from bitnetctl.config.schema import InterventionSpec, RunConfig
from bitnetctl.errors import ConfigError, cannot_read
from bitnetctl.files import expand_user

Model = TypeVar("Model", bound=BaseModel)


def load_recipe(name: str) -> dict[str, Any]:
    """Return the tables of a built-in recipe or of a `FILE.toml` as nested dictionaries; raises ConfigError.

    A file holds changes to the recipe that it `extends`, or to the defaults of every field.
    """
    tree, label = _read_recipe(name)
    return {"recipe": label, **_extended(tree, name, (recipe_id(name),))}


def recipe_label(name: str) -> str:
    """Return the name of a recipe that its runs have, which a `FILE.toml` may state; raises ConfigError."""
    return str(load_recipe(name)["recipe"])


def _read_recipe(name: str) -> tuple[dict[str, Any], str]:
    tree, label = read_toml(name, "recipe", "bitnetctl.config", "recipes")
    if "interventions" in tree:
        raise ConfigError(f"recipe {name}: interventions are no part of a recipe; give them with -i, such as -i muon")
    return tree, label


def _extended(tree: dict[str, Any], name: str, below: tuple[str, ...]) -> dict[str, Any]:
    """Return the tree of a recipe over that of the recipe it extends; `below` are those that led to it."""
    parent = tree.pop("extends", None)
    if parent is None:
        _require_fields_of_label(tree, name)
        return tree
    if not isinstance(parent, str):
        raise ConfigError(f"recipe {name}: extends: expected the name of a recipe or a FILE.toml, got {parent!r}")
    parent = beside(name, parent)
    if recipe_id(parent) in below:
        raise ConfigError(f"recipe {name}: extends itself by way of {parent}")
    parent_tree, _ = _read_recipe(parent)
    parent_tree.pop("recipe", None)
    return _merged(_extended(parent_tree, parent, (*below, recipe_id(parent))), tree)


def recipe_id(name: str) -> str:
    """Return what is equal for two spellings of one recipe."""
    return os.path.realpath(name) if name.endswith(".toml") else name


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with changes; a list is replaced as a whole."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _require_fields_of_label(tree: Mapping[str, Any], name: str) -> None:
    """Raise ConfigError for a file that calls itself a built-in recipe and leaves out fields that this one sets."""
    label = tree.get("recipe")
    if not name.endswith(".toml") or label not in builtin_names("bitnetctl.config", "recipes"):
        return
    stated = {path for path, _ in flatten(tree)}
    missing = [path for path, _ in flatten(_read_recipe(label)[0]) if path not in stated]
    if missing:
        raise ConfigError(
            f'recipe {name}: recipe = "{label}" is a label and sets nothing, and the file leaves out {len(missing)} '
            f'fields of that recipe, such as {missing[0]}; to start from it, write extends = "{label}" instead'
        )


def builtin_names(package: str, folder: str) -> list[str]:
    """Return the names of the TOML files in a folder of a package, without their suffix."""
    entries = (resources.files(package) / folder).iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def read_toml(name: str, kind: str, package: str, folder: str) -> tuple[dict[str, Any], str]:
    """Read a `FILE.toml` of the user, or a built-in one in a folder of a package by its name.

    Returns its tree and its name without folder and suffix. Raises ConfigError that names the `kind` of file.
    """
    text = toml_text(name, kind, package, folder)
    try:
        return tomllib.loads(text), Path(name).stem
    # ValueError also for thousands of digits, RecursionError for thousands of brackets
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{kind} {name}: not valid TOML: {error}") from error


def beside(file: str, recipe: str) -> str:
    """Return the recipe that a file names: a `FILE.toml` is relative to that file, a built-in name is as it is."""
    return str(Path(file).parent / expand_user(recipe)) if recipe.endswith(".toml") else recipe


def toml_text(name: str, kind: str, package: str, folder: str) -> str:
    """Return the text of the file that `read_toml` reads; raises ConfigError."""
    known = builtin_names(package, folder)
    if name.endswith(".toml"):
        return _read_text(Path(name), f"{kind} file {name}")
    if name in known:
        return (resources.files(package) / folder / f"{name}.toml").read_text(encoding="utf-8")
    hint = did_you_mean(name, known)
    built_in = f"{hint} Built in:" if hint else "; built in:"
    raise ConfigError(f"unknown {kind} {name!r}{built_in} {', '.join(known)}; or give a FILE.toml")


def _read_text(path: Path, source: str) -> str:
    """Return the text of a file; raises ConfigError that begins with `source`."""
    try:
        content = path.read_bytes()
        if b"\0" in content[:4] or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError(f"{source}: is UTF-16, and TOML is UTF-8; save it as UTF-8")
        # an editor's byte order mark
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(cannot_read(source, error)) from error
    except ValueError as error:
        # a name with a NUL byte
        raise ConfigError(f"{source}: {error}") from error


_OPTIONS = {"model.hidden_size": "size", "probe.eval_every_steps": "eval-every"}
"""Options whose names are not those of their fields."""


def build_config(
    recipe: str,
    *,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    eval_every_steps: int | None = None,
    overrides: Iterable[str] = (),
    interventions: tuple[InterventionSpec, ...] = (),
) -> RunConfig:
    """Build a config from a recipe and the options of the command line; raises ConfigError.

    `overrides` are texts `section.field=value`; one that contradicts another argument is refused.
    """
    tree = load_recipe(recipe)
    named = {"model.hidden_size": size, "steps": steps, "seed": seed, "probe.eval_every_steps": eval_every_steps}
    for text in overrides:
        apply_override(tree, text)
        refuse_contradiction(text, named)
    for path, value in named.items():
        if value is not None:
            _set(tree, path, value)
    tree["interventions"] = [spec.model_dump() for spec in interventions]
    return parse_config(tree, source=f"recipe {recipe}")


def refuse_contradiction(text: str, named: Mapping[str, int | None]) -> None:
    """Raise ConfigError for an override that gives a field another value than its own option does.

    `named` has the values of such options by field, None where one is not given.
    """
    path, _, value = text.partition("=")
    chosen = named.get(path.strip())
    if chosen is not None and parse_value(value) != chosen:
        option = _OPTIONS.get(path.strip(), path.strip())
        raise ConfigError(f"--set {text!r}: no effect beside --{option} {chosen}; take one of them")


def parse_config(tree: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate a nested dictionary as a RunConfig; raises ConfigError with one line that names the field."""
    return validated(RunConfig, tree, source)


def validated(model: type[Model], tree: object, source: str) -> Model:
    """Validate a dictionary as a config class; raises ConfigError with one line: `source`, the field, the problem."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {validation_line(error, model)}") from error


def parse_value(text: str) -> Any:
    """Parse a command-line value: a TOML number, boolean, array or string, `none` for None, else the text itself."""
    stripped = text.strip()
    if stripped.lower() in ("none", "null"):
        return None
    try:
        value = tomllib.loads(f"value = {stripped}")["value"]
    except (ValueError, RecursionError):
        return stripped
    return value if isinstance(value, bool | int | float | str | list) else stripped


def validation_line(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first problem of a pydantic error as one line, with a suggestion for an unknown field."""
    errors = error.errors()
    first = errors[0]
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "bool_type" and first["loc"][-1] == "bool":
        # of a value with several types, of which this is the first
        return f"{location.removesuffix('.bool')}: expected a number, a text, true or false, got {first['input']!r}"
    if first["type"] == "missing":
        unknown = [".".join(map(str, one["loc"])) for one in errors if one["type"] == "extra_forbidden"]
        misspelt = (path for path in unknown if did_you_mean(path, [location]))
        return next((_unknown_field(path, model) for path in misspelt), f"{location}: field required")
    if first["type"] == "extra_forbidden":
        return _unknown_field(location, model)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"].startswith("value_error"):
        return message
    if first["type"] in ("tuple_type", "list_type"):
        message = f"expected a list such as {_example(_annotation(model, first['loc']))}"
    elif first["type"] in ("dict_type", "model_type"):
        message = "expected a table"
    return f"{location}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


_EXAMPLES: Mapping[type, str] = {int: "[256, 512]", float: "[0.9, 0.95]", str: '["one", "two"]'}


def _example(annotation: object) -> str:
    """Return a list as a TOML file has it, with items of the type of the field."""
    kinds = list(_types_in(annotation))
    for kind in kinds:
        if get_origin(kind) is Literal:
            return json.dumps(list(get_args(kind))[:2])
    return next((example for kind, example in _EXAMPLES.items() if kind in kinds), _EXAMPLES[str])


def _annotation(model: type[BaseModel], location: Iterable[int | str]) -> object:
    """Return the type of the field at a location, None for no field; that of a list where it leads into one."""
    annotation: object = None
    for name in location:
        field = model.model_fields.get(str(name))
        if field is None:
            break
        annotation = field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return annotation


def _types_in(annotation: Any) -> Iterator[object]:
    yield annotation
    for part in get_args(annotation):
        yield from _types_in(part)


def field_paths(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Return the dotted name of every field of a config class."""
    paths = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            paths += field_paths(nested, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def apply_override(tree: dict[str, Any], text: str, source: str = "--set") -> None:
    """Set the field of a tree that a text `section.field=value` names; raises ConfigError that begins with `source`."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals:
        raise ConfigError(f"{source} {text!r}: expected section.field=value")
    if path not in field_paths():
        raise ConfigError(f"{source} {text!r}: {_unknown_field(path, RunConfig)}")
    if path == "interventions":
        raise ConfigError(f"{source} {text!r}: interventions are given with -i, such as -i reduced-lr+no-decay")
    parsed = parse_value(value)
    if isinstance(parsed, str):
        kinds = set(_types_in(_annotation(RunConfig, path.split("."))))
        if tuple in map(get_origin, kinds):
            parsed = [item.strip() for item in parsed.split(",") if item.strip()]
        elif "," in parsed and str not in kinds:
            raise ConfigError(
                f"{source} {text!r}: expected one value; to train with each: bitnetctl sweep --grid {text}"
            )
    _set(tree, path, parsed)


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, field = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"recipe: {section} must be a table")
    tree[field] = value


def _unknown_field(path: str, model: type[BaseModel]) -> str:
    known = field_paths(model)
    by_name = {field.rpartition(".")[2]: field for field in known}
    name = path.rpartition(".")[2]
    if name in by_name:
        return f"unknown field {path!r}; did you mean {by_name[name]!r}?"
    hint = did_you_mean(path, known)
    if not hint:
        close = _closest(name, by_name)
        hint = f"; did you mean {by_name[close]!r}?" if close else f"; known: {', '.join(known)}"
    return f"unknown field {path!r}{hint}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean '…'?` for the most similar known word, an empty text if none is similar."""
    match = _closest(word, known)
    return f"; did you mean {match!r}?" if match else ""


def hint_at(word: str, known: Collection[str]) -> str:
    """Return `did_you_mean` or, where no known word is similar, `; known: …` with all of them."""
    return did_you_mean(word, known) or f"; known: {', '.join(known)}"


def _closest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def config_text(config: RunConfig) -> str:
    """Return a config as TOML, with "none" for an unset field."""
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
    """Yield the dotted name and the value of every entry of nested tables; a list is one value."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
