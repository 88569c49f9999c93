"""The table of the live view: a line a run, the worst first, in the columns that the width has room for."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.text import Text

from bitnetctl.monitor.text import shorten_arms, sparkline
from bitnetctl.monitor.view import RunView
from bitnetctl.records import finite_value
from bitnetctl.records.collapse import Health
from bitnetctl.units import format_value

_SPARK_WIDTH = 12
_NARROWEST_ARM = 6

_RANKS = ("collapsed", "diverged", "failed", "possible", "training", "elsewhere", "stopped", "finished", "waiting")


def rank(view: RunView) -> str:
    """Return the group of a run in the order of `_RANKS`."""
    if view.state in ("training", "elsewhere"):
        if view.collapse.health is Health.COLLAPSED:
            return "collapsed"
        if view.collapse.health is Health.POSSIBLE:
            return "possible"
    return view.state


def chosen(views: Sequence[RunView], most: int) -> list[RunView]:
    """Return at most `most` runs, the worst first: by group, then by skill.

    Waiting runs have nothing to show. Runs that ended badly take half of the lines at most while others train.
    """
    ordered = sorted((view for view in views if view.state != "waiting"), key=_badness)
    if len(ordered) <= most:
        return ordered
    bad = [view for view in ordered if view.state in ("diverged", "failed")]
    training = sum(view.state in ("training", "elsewhere") for view in ordered)
    left_out = {id(view) for view in bad[max(most // 2, most - training) :]}
    return [view for view in ordered if id(view) not in left_out][:most]


def _badness(view: RunView) -> tuple[int, float, float]:
    ended_collapsed = view.collapse.health is Health.COLLAPSED
    skill = view.skill
    held_out = view.history[-1][1] if view.history else 0.0
    return (_RANKS.index(rank(view)), 0.0 if ended_collapsed else 1.0, skill if skill is not None else -held_out)


def left_out(views: Sequence[RunView], shown: Sequence[RunView]) -> list[str]:
    """Return how many runs have no line, by state and in total; empty if all have one. Those that wait are apart."""
    there = {id(view) for view in shown}
    counts = Counter[str](view.state for view in views if id(view) not in there and view.state != "waiting")
    order = ("training", "elsewhere", "diverged", "failed", "stopped", "finished")
    parts = [f"{counts[state]} {state}" for state in order if counts[state]]
    if not parts:
        return []
    parts[0] = parts[0].replace(" ", " more ", 1)
    hint = " (worst shown)" if counts["training"] else ""
    return [
        " · ".join([f"… {parts[0]}{hint}", *parts[1:]]),
        " · ".join([f"… {parts[0]}", *parts[1:]]),
        f"… {counts.total()} more",
    ]


class Table(NamedTuple):
    """Lines of the table, header first, and whether the references are in its header."""

    lines: list[Text]
    names_references: bool


class _Column(NamedTuple):
    name: str
    header: str
    cells: list[str]
    is_left: bool = False
    gap: int = 1
    least: int = 0
    """Columns that it takes in any case, so that the columns do not change with every evaluation."""

    @property
    def width(self) -> int:
        return max(self.least, len(self.header), *map(len, self.cells))


# what is dropped first where the width is too small, step by step; arm, size and seed stay
_DROPPED = ("skill", "loss", "unique", "step", "history", "full state", "short state", "held-out")


def table(views: Sequence[RunView], width: int, spark_range: tuple[float, float]) -> Table:
    """Return a line a run, none wider than `width`, which is to have room for arm, size and seed."""
    references = reference_text(views)
    columns = _columns(views, references, spark_range)
    arms = [view.config.arm for view in views]
    longest = max(map(len, ("arm", *arms)))
    dropped: set[str] = set()
    for name in ("", *_DROPPED):
        dropped.add(name)
        kept = [column for column in columns if column.name not in dropped]
        # of the columns on the state, the fullest that is left
        states = [column for column in kept if column.header == "state"]
        kept = [column for column in kept if column not in states[1:]]
        others = sum(column.width + column.gap for column in kept)
        if others + min(longest, max(10, width // 4)) <= width:
            break
    arm_width = min(longest, max(_NARROWEST_ARM, width - others))
    labels = shorten_arms(arms, arm_width)
    first = _Column("arm", "arm", [labels[arm] for arm in arms], is_left=True, gap=0)
    lines = [Text(_line([first, *kept], None), style="dim")]
    lines += [Text(_line([first, *kept], index), style=view.style) for index, view in enumerate(views)]
    return Table(lines, bool(references) and "history" not in dropped)


def _columns(views: Sequence[RunView], references: str, spark_range: tuple[float, float]) -> list[_Column]:
    def column(name: str, value: Callable[[RunView], str], **options: bool | int) -> _Column:
        return _Column(name, name, [value(view) for view in views], **options)  # type: ignore[arg-type]

    def state(name: str, value: Callable[[RunView], str], least: int = 0) -> _Column:
        return _Column(name, "state", [value(view) for view in views], is_left=True, gap=2, least=least)

    history_width = max(_SPARK_WIDTH, len(references))
    last = f"{max(view.config.steps for view in views):,}"
    sparks = [sparkline([value for _, value in view.history], *spark_range, history_width) for view in views]
    return [
        column("size", lambda view: str(view.size)),
        column("seed", lambda view: str(view.config.seed)),
        column("step", lambda view: f"{view.step:,}", gap=2, least=len(last)),
        column("loss", lambda view: format_value(view.loss, ".2f")),
        column("held-out", lambda view: format_value(view.row.get("HeldOutLoss"), ".2f"), gap=2),
        _Column("history", references, sparks, is_left=True, least=history_width),
        column("skill", lambda view: format_value(view.skill, ".2f"), gap=2),
        column("unique", lambda view: format_value(finite_value(view.row, "UniquePredictions"), ",.0f")),
        state("full state", RunView.flag, least=len(f"⚠ collapsed @{last}")),
        state("short state", lambda view: view.flag(short=True)),
        state("mark", lambda view: view.flag(short=True).partition(" ")[0]),
    ]


def _line(columns: Sequence[_Column], index: int | None) -> str:
    parts = []
    for column in columns:
        text = column.header if index is None else column.cells[index]
        padded = text.ljust(column.width) if column.is_left else text.rjust(column.width)
        parts.append(" " * column.gap + padded)
    return "".join(parts).rstrip()


def references_of(views: Sequence[RunView]) -> dict[str, float]:
    """Return the held-out losses of the unigram and bigram predictor, where they are the same for all runs."""
    found = {}
    for name, column in (("unigram", "UnigramLoss"), ("bigram", "BigramLoss")):
        values = {value for view in views if (value := finite_value(view.row, column)) is not None}
        if len(values) == 1:
            found[name] = values.pop()
    return found


def reference_text(views: Sequence[RunView]) -> str:
    """Return the unigram reference in brackets; empty where it is unknown."""
    references = references_of(views)
    return f"(unigram {references['unigram']:.2f})" if "unigram" in references else ""


def spark_range(views: Sequence[RunView]) -> tuple[float, float]:
    """Return the range of held-out loss over all runs, without that of the untrained model.

    It takes the first and the last evaluation of each: there may be thousands of runs, and it is drawn often.
    """
    values: list[float] = []
    for view in views:
        trained = view.history[1:2] if view.history and view.history[0][0] == 1 else view.history[:1]
        values += [value for _, value in (*trained, *view.history[-1:])]
    return (min(values), max(values)) if values else (0.0, 0.0)
