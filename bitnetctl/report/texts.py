"""Text that runs wrote: measures by arm beside human text, and a continuation of one run of each arm."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from bitnetctl.analysis.text_quality import (
    INFORMATION_ONLY,
    MEASURES,
    ArmTexts,
    Spread,
    TextMeasure,
    human_measures,
    texts_of_arms,
)
from bitnetctl.escape import visible
from bitnetctl.records import Run
from bitnetctl.records.samples import Continuation, Samples
from bitnetctl.report.fitted import Column, FittedTable, Row, Span
from bitnetctl.units import UNKNOWN, format_value, listed, plural

MOST_ARMS = 12
"""Most arms and sizes whose text is shown."""
MOST_CHARACTERS = 240
"""Most characters of a continuation that are shown."""
HUMAN = "human text"
LINE_END = "↵"


@dataclass(frozen=True, kw_only=True)
class TextReport:
    """What reports show of the text that runs wrote."""

    arms: Sequence[ArmTexts]
    human: dict[str, Spread]

    @classmethod
    def of(cls, runs: Sequence[Run], arms: Sequence[str]) -> "TextReport | None":
        """Return the report on runs and the labels of their arms; None where none wrote text."""
        texts = texts_of_arms(runs, arms)
        return cls(arms=texts, human=human_measures(runs)) if texts else None

    @property
    def shown(self) -> Sequence[ArmTexts]:
        """The arms whose text is shown."""
        return self.arms[:MOST_ARMS]

    @property
    def more(self) -> str:
        """How many arms are not among them; empty for none."""
        hidden = len(self.arms) - len(self.shown)
        return f"… text of {plural(hidden, 'more arm')}: bitnetctl analyze --json" if hidden > 0 else ""

    @property
    def settings(self) -> str:
        """How the text was made, by the first run."""
        return settings_line(self.arms[0].samples)

    def rows(self, *, ranges_for_information: bool = True) -> Iterator[tuple[str, str, str, list[str]]]:
        """Yield arm, size, number of runs and cells of measures, with their range; human text last."""

        def cells(measures: dict[str, Spread]) -> list[str]:
            return [_cell(measures.get(one.field), one, ranges_for_information) for one in MEASURES]

        for of_arm in self.arms:
            yield of_arm.arm, format_value(of_arm.size), str(len(of_arm.runs)), cells(of_arm.measures)
        yield HUMAN, "", "", cells(self.human)


def settings_line(samples: Samples) -> str:
    """Return how the text of a run was made."""
    kept = [
        f"top-k {samples.top_k}" if samples.top_k else "",
        f"top-p {samples.top_p:g}" if samples.top_p < 1 else "",
        f"min-p {samples.min_p:g}" if samples.min_p > 0 else "",
    ]
    drawn = ", ".join([f"temperature {samples.temperature:g}", *filter(None, kept), f"seed {samples.seed}"])
    return (
        f"{plural(len(samples.texts), 'prompt')} of {samples.prompt_tokens} held-out tokens, continued by "
        f"{samples.new_tokens}: the most probable ones (greedy: rep-4), and sampled with {drawn} (bigram, dist-2, "
        "Zipf, zlib)"
    )


def meanings() -> list[str]:
    """Return what each measure means."""
    return [f"{one.header}: {one.meaning}" for one in MEASURES]


def title_of(one: ArmTexts) -> str:
    """Return which run of an arm wrote the text that is shown."""
    run, samples = one.example, one.samples
    step = f"step {samples.step:,}"
    parts = [f"size {one.size}" if one.size is not None else "", "" if run.seed is None else f"seed {run.seed}", step]
    return ", ".join(filter(None, parts))


def continuations_of(text: Continuation, line_end: str = LINE_END) -> list[tuple[str, str]]:
    """Return (name, text) of a prompt and its continuations, shortened, without control characters."""
    parts = (("prompt", text.prompt), ("greedy", text.greedy), ("sampled", text.sampled), ("human", text.human))
    return [(name, visible(_shortened(part), line_end)) for name, part in parts]


def text_table(report: TextReport) -> FittedTable:
    """Return the measures of every arm and size, and of human text, for a terminal."""
    columns = [Column("text of"), Column("size", number=True), Column("runs", number=True)]
    columns += [Column(one.header, len(MEASURES) - index, number=True) for index, one in enumerate(MEASURES)]
    rows = report.rows(ranges_for_information=False)
    lines: list[Row | Span] = [Row((arm, size, runs, *cells)) for arm, size, runs, cells in rows]
    return FittedTable(columns, lines, header_style="dim", elsewhere="wider terminal or --json")


def text_lines(run: Run, arm: str) -> Iterator[Text]:
    """Yield the first continuation of a run for a terminal."""
    if run.samples is None or not run.samples.texts:
        return
    seed = "" if run.seed is None else f", seed {run.seed}"
    yield Text(visible(f"{arm}{seed}, step {run.samples.step:,}"), "bold")
    for name, text in continuations_of(run.samples.texts[0]):
        yield Text.assemble((f"  {name:<8}", "dim"), text)


def notes_of(report: TextReport) -> list[str]:
    """Return what stands below the table of a terminal."""
    steps = sorted({step for one in report.arms for step in one.steps})
    at = f"at step {listed([f'{step:,}' for step in steps], 3)}; " if len(steps) > 1 else ""
    return [f"{at}{report.settings}", INFORMATION_ONLY]


def _cell(spread: Spread | None, measure: TextMeasure, ranges_for_information: bool) -> str:
    if spread is None:
        return UNKNOWN
    low, high, middle = (format(value, measure.format_spec) for value in (spread.low, spread.high, spread.median))
    has_range = low != high and (measure.separates_collapse or ranges_for_information)
    return f"{middle} ({low}–{high})" if has_range else middle


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
