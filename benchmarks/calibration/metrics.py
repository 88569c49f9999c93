"""Error rate and power of the test of whether a metric ranks the runs as the held-out loss does."""

import numpy as np
from scipy.stats import kendalltau

from benchmarks.calibration.draws import ALPHA, exceeds
from benchmarks.calibration.tables import Table, rate_text
from bitnetctl.analysis.agreement import tau_test
from bitnetctl.units import plural

DRAWS, QUICK_DRAWS = 400, 30
RUNS = ((1, 6), (2, 6), (4, 3), (5, 3), (6, 3), (8, 3))
"""Arms × seeds."""


def tables(*, quick: bool = False) -> list[Table]:
    """Return the table; a quick run has fewer draws."""
    return [tau_table(QUICK_DRAWS if quick else DRAWS)]


def tau_table(draws: int) -> Table:
    """Return error rate and power where arms differ, and what a test of runs as if independent would find."""
    generator = np.random.default_rng([0, 8])
    rows, faults = [], []
    for arms, seeds in RUNS:
        unit_of = [arm for arm in range(arms) for _ in range(seeds)] if arms > 1 else [*range(seeds)]
        place_of = [seed for _ in range(arms) for seed in range(seeds)] if arms > 1 else [0] * seeds
        told = np.zeros((3, draws), dtype=np.bool_)
        for draw in range(draws):
            of_arm = 3 * np.repeat(generator.standard_normal((2, arms)), seeds, axis=1)
            noise = generator.standard_normal((2, arms * seeds))
            metric, loss = of_arm + noise
            related = of_arm[0] + noise[1] if arms > 1 else metric + noise[1] / 2
            told[:, draw] = (
                _told(tau_test(metric.tolist(), loss.tolist(), unit_of, place_of)[1]),
                _told(float(kendalltau(metric, loss).pvalue)),
                _told(tau_test(metric.tolist(), related.tolist(), unit_of, place_of)[1]),
            )
        name = f"{plural(arms, 'arm')} × {seeds} seeds"
        rates = told.mean(axis=1).tolist()
        if exceeds(rates[0], draws):
            faults.append(f"{name}: {rates[0]:.4f}")
        rows.append([name, *map(rate_text, rates)])
    return Table(
        f"Kendall's τ-b at 0.05, arms 3 sd apart ({draws:,} draws)",
        "Related: a metric that ranks the arms as the loss does, but for the noise.",
        ["runs", "unrelated, arms exchanged", "unrelated, runs as if independent", "related, arms exchanged"],
        rows,
        faults,
    )


def _told(p: float | None) -> bool:
    return p is not None and p <= ALPHA
