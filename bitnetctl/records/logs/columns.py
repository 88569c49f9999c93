"""Which column of the schema a name in another program's log stands for."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bitnetctl.config import hint_at
from bitnetctl.errors import ConfigError
from bitnetctl.records.schema import NAMES

# by normalised name, the preferred one first: a value of one step before a mean
_KNOWN: Mapping[str, Sequence[str]] = {
    "Step": (
        "trainer global step",
        "train global step",
        "global step",
        "num updates",
        "valid num updates",
        "step",
        "train step",
        "iteration",
        "iter",
    ),
    "Loss": (
        "train loss step",
        "loss",
        "train loss",
        "training loss",
        "loss train",
        "train lm loss",
        "lm loss",
        "train ce loss",
        "train cross entropy",
        "train cross entropy loss",
        "train crossentropyloss",
        "train nll loss",
        "loss train total",
        "metrics train languagecrossentropy",
        "loss metrics global avg loss",
        "train loss epoch",
    ),
    "HeldOutLoss": (
        "val loss",
        "eval loss",
        "valid loss",
        "validation loss",
        "dev loss",
        "loss val",
        "loss eval",
        "loss valid",
        "loss validation",
        "val loss epoch",
        "val lm loss",
        "eval lm loss",
        "val ce loss",
        "eval ce loss",
        "val cross entropy",
        "eval cross entropy",
        "metrics eval languagecrossentropy",
        "validation metrics loss",
    ),
    "LR": ("lr", "learning rate", "train lr", "train learning rate", "optim learning rate"),
    "WD": ("wd", "weight decay", "train wd", "train weight decay"),
    "GradNorm": ("grad norm", "gradient norm", "gnorm", "train grad norm", "train gradient norm"),
}
_CAUTIONS = {"train loss epoch": "a mean over an epoch"}
_OWN = frozenset(NAMES) - {"Step", "Loss", "LR", "WD"}
"""Columns of the schema that no other program names so."""
_MEASURED = _OWN - {"Objective", "GradNorm"}

_LOSSES = ("Loss", "HeldOutLoss", "UnigramLoss", "BigramLoss", "Objective")
_NO_LOSS = re.compile(r"(?:^|[^a-z])(?:ppl|perplexity|acc|accuracy|top ?[15]|bpb|bpc|bpt|bits)(?:$|[^a-z])")
_NO_STEP = re.compile(r"(?:^| )(?:epochs?|time|seconds|hours|tokens|samples|examples)(?:$| )")
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)
_MISSING = ("", "na", "n/a", "<na>", "null", "none", "-")
"""What programs write for a value that is not there; NaN is not among them."""
_MAX_STEP = 2**63 - 1
_PERPLEXITY = ("ppl", "perplexity", "train ppl", "train perplexity")


class BadValueError(ValueError):
    """A value of a log that is no number, or a step that is none; the caller adds file and line."""


def parse_number(name: str, value: Any) -> float | None:
    """Return a number of a log, also one given as text; None where it is missing, BadValueError where it is none."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadValueError(f"{name!r} is {_quote(value)}, not a number")
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise BadValueError(f"{name!r} is {_quote(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # an overflow is not the known value "infinite"
    if math.isinf(number) and not (isinstance(value, float) or (isinstance(value, str) and "n" in value.lower())):
        raise BadValueError(f"{name!r} is {_quote(value)}, too large for a double")
    return number


def parse_step(name: str, value: Any) -> int:
    """Return a step; BadValueError where it is missing or no whole number from 0."""
    number = parse_number(name, value)
    if number is None:
        raise BadValueError(f"the step {name!r} is empty")
    if not math.isfinite(number) or number != int(number) or not 0 <= number <= _MAX_STEP:
        raise BadValueError(f"the step {name!r} is {_quote(value)}, not a whole number from 0")
    return int(number) if isinstance(value, float) or not str(value).strip().isdecimal() else int(value)


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


Mapped = tuple[str, int]
"""Column of the schema, and rank among the names of this column: the lowest is taken."""


def normalized(name: str) -> str:
    """Return a name in lower case with one space for every run of other characters."""
    return re.sub(r"[^a-z0-9.]+", " ", name.lower()).strip()


def parse_map(options: Sequence[str]) -> dict[str, str]:
    """Return the names in the file by column of the schema, from `Step=step,Loss=train/loss`; raises ConfigError."""
    given: dict[str, str] = {}
    for option in options:
        # a name may hold commas
        for part in re.split(r",(?=\s*\w+\s*=)", option):
            column, equals, name = (text.strip() for text in part.partition("="))
            if not equals or not column or not name:
                raise ConfigError(f"--map {part.strip()!r}: expected COLUMN=NAME, such as Loss=train/loss")
            if given.get(column, name) != name:
                raise ConfigError(f"--map: {column} is both {given[column]!r} and {name!r}; give it once")
            given[column] = name
    return check_map(given)


def check_map(given: Mapping[str, str]) -> dict[str, str]:
    """Return names in a file by column of the schema; raises ConfigError where they cannot be meant so."""
    for column, name in given.items():
        if column not in NAMES:
            raise ConfigError(f"--map {column}={name}: {column!r} is no column of a run{hint_at(column, NAMES)}")
        if name in _MEASURED and name != column:
            raise ConfigError(f"--map {column}={name}: {name!r} is a column of its own; leave it out")
        if column == "Step" and _NO_STEP.search(normalized(name)):
            raise ConfigError(f"--map Step={name}: {name!r} does not count optimizer steps")
        if column in _LOSSES and _NO_LOSS.search(normalized(name)):
            raise ConfigError(f"--map {column}={name}: {name!r} is not a loss in nats per token")
    names = list(given.values())
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        columns = [column for column, name in given.items() if name == repeated]
        raise ConfigError(f"--map: {repeated!r} cannot be both {' and '.join(columns)}")
    return dict(given)


class Columns:
    """The names in a log and the columns that they stand for; `given` are those of `--map`, which go first."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self.given = dict(given or {})
        self._by_given_name = {name: column for column, name in self.given.items()}
        self._cache: dict[str, Mapped | None] = {}
        self._wanted: dict[str, bool] = {}

    def of(self, name: str) -> Mapped | None:
        """Return the column that a name stands for; None where it stands for none, or that is not certain."""
        if name not in self._cache:
            self._cache[name] = self._find(name)
        return self._cache[name]

    def wants(self, name: str) -> bool:
        """Whether the values of a name are needed: for a column, or to tell the unit of the loss."""
        if name not in self._wanted:
            self._wanted[name] = self.of(name) is not None or is_perplexity(name)
        return self._wanted[name]

    def number(self, name: str, value: Any) -> float | None:
        """Return a value that is needed as a number; None for others and where it is missing, else BadValueError."""
        return parse_number(name, value) if self.wants(name) else None

    def _find(self, name: str) -> Mapped | None:
        if name in self._by_given_name:
            return self._by_given_name[name], -1
        if name in _OWN:
            return (name, 0) if name not in self.given else None
        text = normalized(name)
        for column, known in _KNOWN.items():
            if column not in self.given and text in known:
                # W&B's own "_step" counts calls of log
                return column, known.index(text) + len(known) * name.startswith("_")
        # of PyTorch Lightning's LearningRateMonitor
        if "LR" not in self.given and re.fullmatch(r"lr-\w+(?:/pg1)?", name):
            return "LR", len(_KNOWN["LR"])
        return None


def caution(name: str) -> str | None:
    """Return what is to be known of the values of a name."""
    return _CAUTIONS.get(normalized(name))


def is_perplexity(name: str) -> bool:
    """Whether a name is that of the perplexity of the training loss, which tells the unit of the loss."""
    return normalized(name) in _PERPLEXITY
