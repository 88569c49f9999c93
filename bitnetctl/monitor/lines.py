"""The lines of text that report a training: in a log one below the other, in a terminal above the live view."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from bitnetctl.monitor.text import format_difference, shorten_arms
from bitnetctl.monitor.view import ArmMean, RunView, arm_means
from bitnetctl.records import finite_value
from bitnetctl.records.collapse import Health
from bitnetctl.trainer.events import Planned, Started
from bitnetctl.units import duration, format_value, plural, shortened

_MOST_ARMS = 4
_MOST_SEEDS = 3

Kind: TypeAlias = Literal["info", "evaluation", "collapse", "failure", "finished", "stopped"]


class Line(NamedTuple):
    """A line of text; the kind says which reporters show it."""

    kind: Kind
    text: str


def planned_line(event: Planned) -> str:
    """Return the line for a sweep that begins."""
    runs = plural(len(event.seconds), "run")
    return f"{runs} to train on {event.device}, about {duration(sum(event.seconds.values()))}"


def started_line(event: Started) -> str:
    """Return the line for a run or pack that starts."""
    where = f"{event.num_parameters:,} parameters on {event.device}"
    resumed = f", resumed after step {event.start_step:,}" if event.start_step else ""
    if len(event.names) == 1:
        return f"{event.names[0]}: {event.configs[0].steps:,} steps, {where}{resumed}"
    return f"pack of {len(event.names)}: {event.configs[0].steps:,} steps, {where} each{resumed}"


def evaluation_line(pack: Sequence[RunView], evaluated: Sequence[RunView]) -> Line:
    """Return one line on an evaluation of a pack: means of the arms, how many are collapsed, the worst run."""
    steps = pack[0].config.steps
    step = max(view.step for view in evaluated)
    parts = [
        f"{_pack_name(pack)}  step {step:>{len(str(steps))}}/{steps}",
        f"held-out {means_text(arm_means(evaluated, step))}",
    ]
    bad = Counter(view.collapse.health for view in evaluated)
    parts += [f"{bad[health]} {health}" for health in (Health.COLLAPSED, Health.POSSIBLE) if bad[health]]
    known = [view for view in evaluated if view.held_out_at(step) is not None]
    if known:
        worst = max(known, key=lambda view: view.held_out_at(step) or 0.0)
        value = format_value(worst.held_out_at(step), ".4f")
        unigram = format_value(finite_value(worst.row, "UnigramLoss"), ".4f")
        parts.append(f"worst {worst.name} {value} (unigram {unigram})")
    return Line("evaluation", "  ".join(parts))


def health_lines(pack: Sequence[RunView], changed: Sequence[RunView], *, together: bool) -> list[Line]:
    """Return lines on the runs that have collapsed or recovered with their last evaluation."""
    groups: dict[tuple[Health, int | None], list[RunView]] = {}
    for view in changed:
        if view.collapse.health in (Health.COLLAPSED, Health.RECOVERED):
            groups.setdefault((view.collapse.health, view.collapse.since), []).append(view)
    lines = []
    for (health, since), views in groups.items():
        kind: Kind = "collapse" if health is Health.COLLAPSED else "info"
        what = f"{health} since step {since:,}"
        if together and len(views) > 1:
            lines.append(Line(kind, f"{_pack_name(pack)}: {what}: {_by_arm(views, pack)}"))
            continue
        for view in views:
            reason = f": {view.collapse.reason}" if kind == "collapse" and view.collapse.reason else ""
            lines.append(Line(kind, f"{view.name}: {what}{reason}"))
    return lines


def finished_lines(pack: Sequence[RunView], ended: Sequence[RunView], *, together: bool) -> list[Line]:
    """Return how the runs of a pack finished."""
    if not together:
        return [Line("finished", f"{view.name}: {_outcome(view)}") for view in ended]
    collapsed = [view for view in ended if view.collapse.health is Health.COLLAPSED]
    counts = Counter[str](view.state for view in pack)
    parts = [", ".join(f"{count} {state}" for state, count in counts.items())]
    if collapsed:
        parts.append(f"collapsed: {_by_arm(collapsed, pack)}")
    step = max((view.step for view in ended), default=0)
    if means := arm_means(ended, step):
        parts.append(f"held-out loss {means_text(means)}")
    return [Line("finished", f"{_pack_name(pack)}: {'; '.join(parts)}")]


def stopped_lines(pack: Sequence[RunView], ended: Sequence[RunView], step: int, *, together: bool) -> list[Line]:
    """Return which runs of a pack stopped."""
    if not together:
        return [Line("stopped", f"{view.name}: stopped at step {step:,}, checkpoint saved") for view in ended]
    return [Line("stopped", f"{_pack_name(pack)}: stopped at step {step:,}, {len(ended)} checkpoints saved")]


def row_line(view: RunView) -> str:
    """Return the last evaluation of a run as one line of text."""
    row, steps = view.row, view.config.steps
    parts = [
        f"step {int(row['Step'] or 0):>{len(str(steps))}}/{steps}",
        f"loss {format_value(row.get('Loss'), '.4f')}",
        f"held-out {format_value(row.get('HeldOutLoss'), '.4f')}",
        f"unique {format_value(row.get('UniquePredictions'), '.0f')}/{format_value(row.get('ProbePositions'), '.0f')}",
        f"lr {format_value(row.get('LR'), '.3e')}",
        f"wd {format_value(row.get('WD'), 'g')}",
        f"{format_value(row.get('TokensPerSecond'), '.0f')} tok/s",
    ]
    if view.collapse.health in (Health.POSSIBLE, Health.COLLAPSED):
        parts.append(view.flag())
    return "  ".join(parts)


def means_text(
    means: Sequence[ArmMean], most: int = _MOST_ARMS, *, short: bool = False, arm_width: int | None = None
) -> str:
    """Return mean held-out losses of arms, with differences from the baseline; those that differ most.

    If `short`, an arm that has a difference has it alone; `arm_width` shortens the names of arms.
    """
    more = ""
    if len(means) > most:
        rest = sorted(means[1:], key=lambda mean: -abs(mean.difference or 0.0))
        more = f"  … {len(means) - most} more"
        means = [means[0], *rest[: most - 1]]
    arms = [mean.arm for mean in means]
    labels = shorten_arms(arms, arm_width or max(map(len, arms), default=0))
    return "  ".join(_mean_text(labels[mean.arm], mean, short=short) for mean in means) + more or "–"


def _mean_text(label: str, mean: ArmMean, *, short: bool) -> str:
    if mean.difference is None:
        return f"{label} {mean.mean:.2f}"
    difference = format_difference(mean.difference)
    return f"{label} {difference}" if short else f"{label} {mean.mean:.2f} ({difference})"


def _pack_name(pack: Sequence[RunView]) -> str:
    return f"pack of {len(pack)} (h{pack[0].size})"


def _by_arm(views: Sequence[RunView], pack: Sequence[RunView]) -> str:
    """Return how many runs of each arm of a pack are among the views, with their seeds where others are not."""
    parts = []
    totals = Counter(view.config.arm for view in pack)
    for arm, total in totals.items():
        seeds = [f"s{view.config.seed}" for view in views if view.config.arm == arm]
        if seeds:
            named = f" ({shortened(seeds, _MOST_SEEDS)})" if len(seeds) < total else ""
            parts.append(f"{arm} {len(seeds)} of {total}{named}")
    return ", ".join(parts)


def _outcome(view: RunView) -> str:
    row = view.row
    if not row:
        # no evaluation since the run was resumed: nothing was left to train
        return "finished"
    collapse = view.collapse
    collapsed = f", collapsed since step {collapse.since:,}" if collapse.health is Health.COLLAPSED else ""
    unigram = row.get("UnigramLoss")
    reference = "" if unigram is None else f" (unigram {format_value(unigram, '.3f')})"
    return (
        f"finished, held-out loss {format_value(row.get('HeldOutLoss'), '.3f')}{reference}, "
        f"{format_value(row.get('UniquePredictions'), '.0f')} unique predictions{collapsed}"
    )
