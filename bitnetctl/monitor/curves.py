"""Curves of held-out loss by arm for a wide terminal."""

from collections.abc import Sequence

from rich.text import Text

from bitnetctl.config import BASELINE
from bitnetctl.monitor.board import Board
from bitnetctl.monitor.table import references_of
from bitnetctl.monitor.text import shorten_arms
from bitnetctl.monitor.view import RunView

_MOST_POINTS = 200


class Curves:
    """Draws the curves, anew only where there are new evaluations: drawing takes longer than a frame."""

    def __init__(self, *, color: bool) -> None:
        self._color = color
        self._key: object = None
        self._lines: list[Text] = []

    def lines(self, board: Board, width: int, height: int) -> list[Text]:
        """Return title, plot and legend in `height` lines; empty without two evaluations."""
        views = [view for view in board.runs.values() if len(view.history) > 1]
        key = (width, height, len(views), sum(len(view.history) for view in views))
        if key != self._key:
            self._key, self._lines = key, self._draw(views, width, height)
        return self._lines

    def _draw(self, views: Sequence[RunView], width: int, height: int) -> list[Text]:
        from bitnetctl.report.plots import MOST_CURVES, line_plot

        curves = _curves(views, width - 6)
        if not any(len(curve) > 1 for curve in curves.values()):
            return []
        references = references_of(views)
        legend = min(len(curves), MOST_CURVES) + (len(curves) > MOST_CURVES) + bool(references)
        drawn = line_plot(
            "held-out loss (nats)",
            curves,
            width,
            max(5, height - legend - 1),
            references=references,
            color=self._color,
        )
        return list(drawn.split("\n"))[:height]


def _curves(views: Sequence[RunView], width: int) -> dict[str, dict[int, float]]:
    """Return mean held-out losses by arm (and size, if there are several) and step, without the untrained model."""
    sizes = {view.size for view in views}
    arms = list(dict.fromkeys(view.config.arm for view in views))
    arms.sort(key=lambda arm: arm != BASELINE)
    labels = shorten_arms(arms, max(12, width - 6))
    points: dict[tuple[str, int], dict[int, list[float]]] = {}
    for view in views:
        of_arm = points.setdefault((view.config.arm, view.size), {})
        for step, value in view.history[:: 1 + len(view.history) // _MOST_POINTS]:
            if step > 1:
                of_arm.setdefault(step, []).append(value)
    ordered = sorted(points.items(), key=lambda item: (arms.index(item[0][0]), item[0][1]))
    return {
        labels[arm] + (f" h{size}" if len(sizes) > 1 else ""): {
            step: sum(values) / len(values) for step, values in sorted(of_arm.items())
        }
        for (arm, size), of_arm in ordered
        if of_arm
    }
