"""How often the shape checks of `origin` err: false alarms on healthy counts, and what they find.

Stage 1 is collapsed in every run. Counts of a healthy stage 2 are log-normal around a level, alone or with an
autocorrelation exp(−t/τ), τ a share of stage 2; the patterns of the second table have such noise too. Judged are the
checks `recovery`, `lasting` and `steady` with the fields of `origin`, by the code that judges runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.calibration.draws import Floats
from benchmarks.calibration.tables import Table, rates_text
from bitnetctl.verdict import Outcome, load_criteria
from bitnetctl.verdict.checks.stages import split_at
from bitnetctl.verdict.checks.trajectory import LastingCheck, RecoveryCheck, SteadyCheck, TrajectoryCheck

Pattern = Callable[[Floats, np.random.Generator], Floats]
"""Times of the evaluations in stage 2, up to 1, and one generator to the values of one run."""

EVALUATIONS = (10, 20, 50, 200)
LEVELS = (60.0, 100.0, 200.0, 400.0)
LOG_SDS = (0.1, 0.2, 0.3)
CORRELATIONS = (0.0, 0.02, 0.1)
NOISE = 0.2
DEAD_SHARES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6)
DRAWS, QUICK_DRAWS = 1_000, 20
STEPS = 20_000
COLLAPSED = 2.0


def tables(*, quick: bool = False) -> list[Table]:
    """Return both tables; a shorter run has fewer draws."""
    draws = QUICK_DRAWS if quick else DRAWS
    return [false_alarm_table(draws), power_table(draws)]


def false_alarm_table(draws: int) -> Table:
    """Return the rates of false alarms on healthy counts."""
    rows = []
    for level in LEVELS:
        for log_sd in LOG_SDS:
            for correlation in CORRELATIONS:
                rates = [false_alarms(level, log_sd, correlation, count, draws) for count in EVALUATIONS]
                cells = [rates_text(*(one[name] for name in ALARMS)) for one in rates]
                rows.append([f"{level:g}", f"{log_sd:g}", f"{correlation:g}" if correlation else "none", *cells])
    return Table(
        f"False alarms on healthy log-normal counts ({draws:,} runs)",
        f"Cells: {'/'.join(ALARMS)}; columns: evaluations of stage 2.",
        ["level", "log-sd", "τ", *map(str, EVALUATIONS)],
        rows,
    )


ALARMS = ("erratic", "refuted", "not supported")


def false_alarms(level: float, log_sd: float, correlation: float, evaluations: int, draws: int) -> Mapping[str, float]:
    """Return the rates of each of ALARMS: by `steady` alone, and by all three checks."""
    generator = np.random.default_rng([int(level), int(100 * log_sd), int(1000 * correlation), evaluations])
    values = np.rint(level * np.exp(log_sd * _normal(draws, evaluations, correlation, generator)))
    outcomes = [judged(row) for row in values]
    return {
        "erratic": _rate(one["steady"] is Outcome.REFUTED for one in outcomes),
        "refuted": _rate(Outcome.REFUTED in one.values() for one in outcomes),
        "not supported": _rate(set(one.values()) != {Outcome.SUPPORTED} for one in outcomes),
    }


def power_table(draws: int) -> Table:
    """Return how often the patterns that a reader would not support are refuted, and how often they are supported."""
    rows = []
    for name, pattern in patterns().items():
        rows.append([name, *(rates_text(*found(pattern, count, draws)) for count in EVALUATIONS)])
    return Table(
        f"Patterns with noise of log-sd {NOISE:g} that end at 60 or more ({draws:,} runs)",
        "Cells: refuted/supported; columns: evaluations of stage 2.",
        ["pattern", *map(str, EVALUATIONS)],
        rows,
    )


def found(pattern: Pattern, evaluations: int, draws: int) -> tuple[float, float]:
    """Return how often the shape checks refute and support a pattern whose last evaluation is at least 60."""
    generator = np.random.default_rng(evaluations)
    times = np.arange(1, evaluations + 1) / evaluations
    outcomes = []
    for noise in _normal(draws, evaluations, 0.0, generator):
        values = np.rint(pattern(times, generator) * np.exp(NOISE * noise))
        values[-1] = max(60, values[-1])
        outcomes.append(judged(values).values())
    refuted = _rate(Outcome.REFUTED in one for one in outcomes)
    return refuted, _rate(set(one) == {Outcome.SUPPORTED} for one in outcomes)


def patterns() -> dict[str, Pattern]:
    """Return the patterns by name; swings begin at a random time."""
    swings: dict[str, Pattern] = {
        "3 ↔ 60, a tenth of stage 2 each": _swings((3, 60), 0.1),
        "3 ↔ 60, a twentieth each": _swings((3, 60), 0.05),
        "3 ↔ 60, every evaluation": lambda times, generator: np.where(np.arange(len(times)) % 2, 60.0, 3.0),
        "3 or 60, at random": lambda times, generator: generator.choice([3.0, 60.0], len(times)),
        "3 to 60 and back, log-sine, a fifth": _sine(3, 60, 0.2),
        "2→10→3→15→2, a tenth each": _swings((2, 10, 3, 15), 0.1),
        "60 ↔ 115, a tenth each": _swings((60, 115), 0.1),
    }
    temporary: dict[str, Pattern] = {
        f"100, from {start:.0%} on falling to {end:g}": _fall(100, start, end)
        for start, end in ((0.3, 12), (0.6, 12), (0.3, 30))
    }
    dead: dict[str, Pattern] = {f"80, then dead for {share:.0%}, then 80": _dead(share) for share in DEAD_SHARES}
    return swings | temporary | dead


def judged(values: Sequence[float] | Floats) -> dict[str, Outcome]:
    """Return the outcome of each shape check of `origin` for a collapsed stage 1 and these values of stage 2."""
    second = [float(value) for value in values]
    count = len(second)
    steps = [STEPS * (index + 1) // (2 * count) for index in range(2 * count)]
    stages = split_at(steps, [COLLAPSED] * count + second, STEPS // 2)
    return {check.kind: check.judge_stages(*stages).outcome for check in _CHECKS}


def _shape_checks() -> Iterator[TrajectoryCheck]:
    for check in load_criteria("origin").checks:
        if isinstance(check, RecoveryCheck | LastingCheck | SteadyCheck):
            yield check


_CHECKS = tuple(_shape_checks())


def _normal(draws: int, count: int, correlation: float, generator: np.random.Generator) -> Floats:
    """Return standard normal values with an autocorrelation exp(−t/τ), τ = `correlation`; 0 is none."""
    values = generator.standard_normal((draws, count))
    if correlation:
        weight = np.exp(-1 / (count * correlation))
        for index in range(1, count):
            values[:, index] = weight * values[:, index - 1] + np.sqrt(1 - weight**2) * values[:, index]
    return values


def _swings(values: Sequence[float], each: float) -> Pattern:
    def pattern(times: Floats, generator: np.random.Generator) -> Floats:
        places = np.floor(times / each + len(values) * generator.random())
        return np.array([values[int(place) % len(values)] for place in places], dtype=np.float64)

    return pattern


def _sine(low: float, high: float, period: float) -> Pattern:
    middle, half = np.log(low * high) / 2, np.log(high / low) / 2

    def pattern(times: Floats, generator: np.random.Generator) -> Floats:
        phase = 2 * np.pi * (times / period + generator.random())
        return np.asarray(np.exp(middle + half * np.sin(phase)))

    return pattern


def _fall(level: float, start: float, end: float) -> Pattern:
    return lambda times, generator: np.asarray(np.exp(np.interp(times, [start, 0.8], np.log([level, end]))))


def _dead(share: float) -> Pattern:
    return lambda times, generator: np.where((times > 0.3) & (times <= 0.3 + share), COLLAPSED, 80.0)


def _rate(flags: Iterator[bool] | Sequence[bool]) -> float:
    return float(np.mean(list(flags)))
