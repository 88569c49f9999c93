"""A frame of the live view: progress, the runs that matter, arms, curves, in the width and height that there are."""

import itertools
from collections.abc import Sequence

from rich.text import Text

from bitnetctl.monitor.board import Board
from bitnetctl.monitor.curves import Curves
from bitnetctl.monitor.lines import means_text
from bitnetctl.monitor.table import chosen, left_out, references_of, spark_range, table
from bitnetctl.monitor.text import bar, format_clock, shorten_arm
from bitnetctl.monitor.view import RunView, arm_means
from bitnetctl.units import format_value, gibibytes

WIDE = 120
"""Columns from which curves are drawn."""

_TABLE_WIDTH = 86
_LOWEST_PLOT, _HIGHEST_PLOT, _NARROWEST_PLOT = 10, 18, 32
_ROOM_FOR_HINT, _ROOM_FOR_BLANK = 9, 12
_HINTS = ("Ctrl-C saves and stops; the same command goes on", "Ctrl-C saves and stops")
_STOPPING = ("stopping: the runs are saved at the end of this step", "stopping: saving the runs")


def frame(board: Board, width: int, height: int, curves: Curves, is_stopping: bool = False) -> list[Text]:
    """Return the lines of a frame, each of fewer than `width` columns, fewer than `height` of them."""
    lines = _lines(board, width, height, curves, is_stopping)
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return lines


def _lines(board: Board, width: int, height: int, curves: Curves, is_stopping: bool) -> list[Text]:
    room, columns = height - 1, width - 1
    top = [_headline(board, columns), _pack_line(board, columns)][: max(1, room)]
    hint = _first_that_fits(_STOPPING if is_stopping else _HINTS, columns)
    hint.style = "dim"
    bottom = [hint] if room >= _ROOM_FOR_HINT else []
    if all(view.state == "waiting" for view in board.runs.values()):
        return [*top, *bottom]
    if room >= _ROOM_FOR_BLANK:
        top.append(Text(""))
    return [*top, *_body(board, width, room - len(top) - len(bottom), curves), *bottom]


def _body(board: Board, width: int, room: int, curves: Curves) -> list[Text]:
    """Return the table in at most `room` lines, what is said below it, and curves; nothing where two do not fit."""
    if room < 2:
        return []
    columns, is_wide = width - 1, width >= WIDE
    table_width = min(columns, _TABLE_WIDTH) if is_wide else columns
    lines, names_references = _table_lines(board, room, table_width, columns)
    below = _below(board, columns, unigram=not names_references)[: max(0, room // 3 - 1)]
    if below and len(lines) + len(below) > room:
        lines, _ = _table_lines(board, room - len(below), table_width, columns)
    lines += below
    return _with_curves(board, lines, columns, room, curves) if is_wide else lines


def _table_lines(board: Board, room: int, width: int, columns: int) -> tuple[list[Text], bool]:
    """Return table and what it leaves out in at most `room` lines, and whether it names the references."""
    views = list(board.runs.values())
    shown = chosen(views, room - 1)
    if left_out(views, shown):
        shown = chosen(views, max(1, room - 2))
    drawn = table(shown, width, spark_range(views))
    more = left_out(views, shown)
    lines = [*drawn.lines, *([_first_that_fits(more, columns)] if more else [])]
    return lines[:room], drawn.names_references


def _headline(board: Board, width: int) -> Text:
    """Return bar, fraction and clocks of all runs."""
    done, total = board.work()
    fraction = done / total if total else 0.0
    gone, left = f"{format_clock(board.seconds_gone)} gone", f"{format_clock(board.seconds_left(done, total))} left"
    percent = f"{int(100 * fraction)} %"
    name = "sweep" if board.is_sweep else "run"
    runs = [f"{len(board.runs)} runs"] if board.is_sweep else []
    for parts in ([percent, *runs, gone, left], [percent, gone, left], [percent, left], [percent]):
        text = " · ".join(parts)
        bar_width = width - len(name) - len(text) - 2
        if bar_width >= 8:
            return Text.assemble((f"{name} ", "bold"), (bar(fraction, bar_width), "green"), f" {text}")
    return _fitted(text, width)


def _pack_line(board: Board, width: int) -> Text:
    """Return the progress of the pack, or what is being prepared, and the counts of runs."""
    lefts, rights = enumerate(_pack_parts(board)), enumerate(_count_texts(board))
    # one step shorter on either side before two on one
    pairs = sorted(itertools.product(lefts, rights), key=lambda pair: (pair[0][0] + pair[1][0], pair[1][0]))
    return _first_that_fits([f"{' · '.join(left)}\t{right}" for (_, left), (_, right) in pairs], width)


def _pack_parts(board: Board) -> list[list[str]]:
    """Return what is said of the pack, in full and ever shorter."""
    number = max(1, board.packs_begun)
    pack = [f"pack {number}/{max(number, board.packs_planned)}"] if board.packs_planned else []
    preparing = f"{board.preparation} · {format_clock(board.preparation_seconds)}"
    if not board.pack:
        return [[preparing], [board.preparation or ""]]
    config = board.pack[0].config
    step = f"step {board.step:,}/{config.steps:,}"
    if board.preparation is not None:
        return [[*pack, step, preparing], [*pack, preparing], [board.preparation]]
    stage = f"stage {1 if board.step <= config.boundary_step else 2}"
    memory = [gibibytes(board.memory_bytes, 1)] if board.memory_bytes else []
    return [[*pack, step, stage, *memory], [*pack, step, stage], [*pack, step], [step]]


def _count_texts(board: Board) -> list[str]:
    """Return the counts of runs by state, in full and ever shorter."""
    if not board.is_sweep:
        return [""]
    counts = board.counts()
    done = counts["finished"]
    others = [f"{counts[state]} {state}" for state in ("diverged", "failed", "stopped", "elsewhere") if counts[state]]
    training, waiting = f"{counts['training']} training", f"{counts['waiting']} waiting"
    bad = [text for text in others if not text.endswith("elsewhere")]
    return [
        " · ".join([f"{done} done", *others, training, waiting]),
        " · ".join([f"{done} done", *others, training]),
        " · ".join([f"{done}/{len(board.runs)} done", *bad]),
        f"{done}/{len(board.runs)} done",
    ]


def _first_that_fits(texts: Sequence[str], width: int) -> Text:
    """Return the first text that fits, what follows its tab at the right; the shortest is cut."""
    for text in texts:
        left, _, right = text.partition("\t")
        space = width - len(left) - len(right)
        if space >= (2 if right else 0):
            return Text(left + " " * space + right if right else left)
    return _fitted(texts[-1].partition("\t")[0], width)


def _arms_line(board: Board, width: int) -> str | None:
    """Return mean held-out losses of the arms at the last evaluation of the pack, over all runs of its size."""
    views = [view for view in board.runs.values() if view.history]
    reference = next((view for view in board.pack if view.history), views[-1] if views else None)
    if reference is None:
        return None
    step = reference.history[-1][0]
    alike = [view for view in views if view.size == reference.size and view.config.steps == reference.config.steps]
    head = f"arms @{step:,}  "
    means = arm_means(alike, step)
    text = head + means_text(means, 8)
    variants = itertools.product(range(8, 0, -1), (None, 20, 12), (head, ""))
    while len(text) > width and (variant := next(variants, None)) is not None:
        most, arm_width, start = variant
        text = start + means_text(means, most, short=True, arm_width=arm_width)
    return text


def _references(views: Sequence[RunView], *, unigram: bool) -> str:
    """Return the references that the table does not name."""
    found = references_of(views)
    return " · ".join(f"{name} {value:.2f}" for name, value in found.items() if name == "bigram" or unigram)


def _below(board: Board, width: int, *, unigram: bool) -> list[Text]:
    """Return the lines below the table: arms and references, or what it has no column for."""
    if not board.is_sweep:
        return [_details(view, width, unigram=unigram) for view in board.runs.values()]
    arms = _arms_line(board, width)
    references = _references(list(board.runs.values()), unigram=unigram)
    if arms and references and len(arms) + len(references) + 4 <= width:
        return [Text(f"{arms}  ({references})")]
    return [_fitted(text, width) for text in (arms, references) if text]


def _details(view: RunView, width: int, *, unigram: bool) -> Text:
    """Return what the table has no column for."""
    row = view.row
    parts = [
        *filter(None, [_references([view], unigram=unigram)]),
        f"lr {format_value(row.get('LR'), '.2e')}",
        f"wd {format_value(row.get('WD'), 'g')}",
        f"{format_value(row.get('TokensPerSecond'), ',.0f')} tok/s",
        f"context {format_value(row.get('ContextInformation'), '.2f')}",
    ]
    while len(" · ".join(parts)) > width and len(parts) > 1:
        parts.pop()
    return Text(" · ".join(parts), style="dim")


def _with_curves(board: Board, body: list[Text], width: int, room: int, curves: Curves) -> list[Text]:
    """Return the body with curves below it where the height allows, else beside it where the width does."""
    free = room - len(body) - 1
    if free >= _LOWEST_PLOT:
        plot = curves.lines(board, min(width, WIDE), min(free, _HIGHEST_PLOT))
        return [*body, Text(""), *plot] if plot else body
    beside = max(line.cell_len for line in body) + 3
    height = max(len(body), min(room, _HIGHEST_PLOT))
    if width - beside < _NARROWEST_PLOT or height < _LOWEST_PLOT:
        return body
    plot = curves.lines(board, width - beside, min(height, _HIGHEST_PLOT))
    rows = max(len(body), len(plot))
    joined = []
    for index in range(rows):
        left = body[index].copy() if index < len(body) else Text("")
        if index < len(plot):
            left.pad_right(beside - left.cell_len)
            left.append_text(plot[index])
        joined.append(left)
    return joined


def _fitted(text: str, width: int) -> Text:
    """Return a line of whole words that fits."""
    if len(text) <= width:
        return Text(text)
    whole = text[: width - 1].rpartition(" ")[0].rstrip()
    return Text(f"{whole} …" if whole else shorten_arm(text, width))
