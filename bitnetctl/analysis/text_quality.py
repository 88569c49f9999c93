"""Measures of the text that runs wrote, by arm and size, beside those of human text."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from bitnetctl.records.metrics import finite
from bitnetctl.records.run import Run
from bitnetctl.records.samples import Samples


class TextMeasure(NamedTuple):
    """A measure as a column: `separates_collapse` where measured ranges of collapsed and healthy runs are apart.

    See docs/text-quality.md for the measurement; no verdict uses any of them.
    """

    field: str
    header: str
    format_spec: str
    separates_collapse: bool
    meaning: str


MEASURES = (
    TextMeasure("bits_per_byte", "bits/byte", ".2f", True, "held-out loss in bits per byte of text"),
    TextMeasure(
        "bigram_nats", "bigram", ".2f", True, "cross-entropy of sampled text under the training bigram, nats per token"
    ),
    TextMeasure("repetition", "rep-4", ".2f", False, "fraction of 4-grams that repeat within a greedy text"),
    TextMeasure("distinct", "dist-2", ".2f", False, "distinct bigrams over all of sampled text"),
    TextMeasure("zipf", "Zipf", ".2f", False, "exponent of frequency against rank in sampled text"),
    TextMeasure("compression", "zlib", ".2f", False, "bytes of sampled text over bytes after zlib"),
)
INFORMATION_ONLY = (
    "For information: no verdict uses these. Where it was measured (docs/text-quality.md), bits/byte and bigram "
    "separated collapsed from healthy runs; rep-4, dist-2, Zipf and zlib did not"
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and range of a measure over runs."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ArmTexts:
    """The measures of the runs of one arm and size that wrote text; a measure that no run has is left out.

    `example` is the run whose sampled text has the (lower) median cross-entropy under the bigram.
    """

    arm: str
    size: int | None
    runs: tuple[Run, ...]
    steps: tuple[int, ...]
    measures: dict[str, Spread]
    example: Run

    @property
    def samples(self) -> Samples:
        """The text of the example."""
        assert self.example.samples is not None
        return self.example.samples

    def to_json(self) -> dict[str, Any]:
        """Return arm, size, names of runs and of the example, steps and measures."""
        measures = {name: asdict(spread) for name, spread in self.measures.items()}
        names = [run.name for run in self.runs]
        return {
            "arm": self.arm,
            "size": self.size,
            "runs": names,
            "steps": list(self.steps),
            "example": self.example.name,
            "measures": measures,
        }


def texts_of_arms(runs: Sequence[Run], arms: Sequence[str]) -> list[ArmTexts]:
    """Return the measures by arm and size, in order of appearance; `arms` are the labels of the runs."""
    grouped: dict[tuple[str, int | None], list[Run]] = {}
    for run, arm in zip(runs, arms, strict=True):
        if run.samples is not None:
            grouped.setdefault((arm, run.size), []).append(run)
    return [_of_arm(arm, size, of_arm) for (arm, size), of_arm in grouped.items()]


def human_measures(runs: Sequence[Run]) -> dict[str, Spread]:
    """Return the measures of human text: the true continuations of the prompts that the runs were given."""
    return _spreads(
        [run.samples for run in runs if run.samples is not None], lambda samples: samples.human.model_dump()
    )


def texts_json(runs: Sequence[Run], arms: Sequence[str]) -> dict[str, Any] | None:
    """Return what `--json` tells of the text that runs wrote; None where none did."""
    texts = texts_of_arms(runs, arms)
    if not texts:
        return None
    human = {name: asdict(spread) for name, spread in human_measures(runs).items()}
    return {
        "arms": [one.to_json() for one in texts],
        "human": human,
        "runs": {run.name: run.samples.model_dump(mode="json") for run in runs if run.samples is not None},
        "note": INFORMATION_ONLY,
    }


def bits_per_byte(run: Run, step: int) -> float | None:
    """Return the held-out bits per byte of a run at a step; None where they are unknown."""
    at = (run.steps == step).nonzero()[0]
    return finite(float(run.finite("HeldOutBitsPerByte")[at[0]])) if len(at) else None


def _of_arm(arm: str, size: int | None, runs: Sequence[Run]) -> ArmTexts:
    known = [(run, run.samples) for run in runs if run.samples is not None]
    measures = _spreads([samples for _, samples in known], _model_measures)
    bits = [value for run, samples in known if (value := bits_per_byte(run, samples.step)) is not None]
    if bits:
        measures["bits_per_byte"] = _spread(bits)
    ranked = sorted(known, key=lambda one: (one[1].sampled.bigram_nats or 0.0, one[0].name))
    return ArmTexts(
        arm=arm,
        size=size,
        runs=tuple(run for run, _ in known),
        steps=tuple(sorted({samples.step for _, samples in known})),
        measures=measures,
        example=ranked[(len(ranked) - 1) // 2][0],
    )


def _model_measures(samples: Samples) -> dict[str, float | None]:
    """Return the measures of the columns: repetition of greedy text, the others of sampled text."""
    return {**samples.sampled.model_dump(), "repetition": samples.greedy.repetition}


def _spreads(every: Sequence[Samples], measures_of: Callable[[Samples], dict[str, float | None]]) -> dict[str, Spread]:
    values: dict[str, list[float]] = {}
    for samples in every:
        for name, value in measures_of(samples).items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: _spread(of_name) for name, of_name in values.items()}


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=statistics.median(values), low=min(values), high=max(values))
