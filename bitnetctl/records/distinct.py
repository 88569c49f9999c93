"""Runs that are the same run, whatever was done to the file: renamed, rounded, cut or thinned. No torch here.

A copy would count as one more seed. Two files hold the same run if all values agree in the steps that both have, up to
the digits of the coarser file, and if these values are enough to tell runs apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from bitnetctl.records.naming import names_only, original_stem
from bitnetctl.records.run import Run
from bitnetctl.records.schema import NAMES
from bitnetctl.units import listed

if TYPE_CHECKING:
    from bitnetctl.records.schema import Booleans, Floats, Integers

_COMPARED = tuple(name for name in NAMES if name not in ("Step", "TokensPerSecond"))
"""The speed is measured anew where a run is repeated."""
_WHOLE = ("UniquePredictions", "UniqueTargets", "ProbePositions", "BigramUnique", "RandomPromptUnique")
"""Counts; rounding leaves them as they are."""
_SHARED = ("LR", "WD", "UnigramLoss", "BigramLoss")
"""Columns that are the same for every seed."""

_FULL = 8
"""Decimals from which a column counts as not rounded."""
_NOISE = 1e-13
"""Rounding error of a double's mantissa, with some room."""
_SINGLE = 2e-7
"""Relative rounding error of single precision, with some room."""
_SAMPLED = 8
_ENOUGH_ROWS = 3
_ENOUGH_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Double:
    """A run that is left out since it is the same run as another; `reason` is a clause that names that one's file."""

    run: Run
    same_as: Run
    reason: str


def distinct_runs(runs: Sequence[Run]) -> tuple[list[Run], list[Double]]:
    """Return the distinct runs in their order, and the others, each with the run it is the same as.

    Of several files of one run the one with most rows is kept, then with most digits, then one with a manifest, then
    one that is not called a copy, then the first. Runs of different known sizes or arms are never the same. Runs whose
    manifests name different configs, and different seeds, are the same only if they agree in every value; other runs
    may also have fewer rows, columns or digits, if what is left is enough to tell seeds apart.
    """
    if len(runs) < 2:
        return list(runs), []
    files = [_File(run, position) for position, run in enumerate(runs)]
    files.sort(key=_File.rank)
    index = _Index(files)
    kept: list[_File] = []
    doubles: list[tuple[_File, _File]] = []
    for rank, file in enumerate(files):
        same = next((files[other] for other in index.candidates(rank) if _are_same(files[other], file)), None)
        if same is None:
            index.keep(rank)
            kept.append(file)
        else:
            doubles.append((file, same))
    kept.sort(key=lambda file: file.position)
    doubles.sort(key=lambda pair: pair[0].position)
    return [file.run for file in kept], [
        Double(run=file.run, same_as=same.run, reason=_reason(file, same)) for file, same in doubles
    ]


class _File:
    """The values of a run's file: (rows, columns of _COMPARED), with NaN where a cell is unknown."""

    def __init__(self, run: Run, position: int) -> None:
        import numpy as np

        self.run = run
        self.position = position
        self.steps: Integers = run.steps
        # the whole frame at once: a column takes pandas longer than all of this
        names = list(run.records.frame)
        table = run.records.frame.to_numpy(np.float64)
        self.values: Floats = np.full((len(self.steps), len(_COMPARED)), np.nan)
        self.known: Booleans = np.zeros(self.values.shape, np.bool_)
        for column, name in enumerate(_COMPARED):
            if name in names:
                self.values[:, column] = table[:, names.index(name)]
                self.known[:, column] = ~run.records.unknown[name]
        self.content = (self.steps.tobytes(), self.values.tobytes(), self.known.tobytes())

    def rank(self) -> tuple[int, int, bool, bool, int]:
        """Return the place in the order in which files of one run are kept."""
        stem = self.run.path.stem
        return -len(self.steps), -self.digits, self.run.manifest is None, stem != original_stem(stem), self.position

    @cached_property
    def decimals(self) -> Integers:
        """Largest number of decimals in every column, of small numbers after the first digit; _FULL if not rounded."""
        return self._digits[0]

    @cached_property
    def _digits(self) -> tuple[Integers, Booleans]:
        """Return `decimals`, and for which columns they are those after the first digit."""
        import numpy as np

        values = np.where(np.isfinite(self.values), self.values, 0.0)
        decimals = _decimals(values, 0.0)
        full = (decimals == _FULL).nonzero()[0]
        # most columns are not rounded, and a few rows tell
        full = full[_decimals(_mantissas(values[np.ix_(self.sampled_rows, full)]), _NOISE) < _FULL]
        decimals[full] = _decimals(_mantissas(values[:, full]), _NOISE)
        return decimals, np.isin(np.arange(len(_COMPARED)), full)

    @cached_property
    def digits(self) -> int:
        """Sum of the decimals of all columns: a rounded file has fewer."""
        return int(self.decimals.sum())

    @cached_property
    def roundings(self) -> Floats:
        """Width of the interval of values that are rounded to each cell, (rows, columns); 0 for a column that is not.

        A column with a fixed number of significant digits has fewer decimals where its values are larger.
        """
        import numpy as np

        sizes = np.where(np.isfinite(self.values) & (self.values != 0), np.abs(self.values), np.nan)
        with np.errstate(invalid="ignore"):
            # within what a measure of training can be; powers of ten beyond could overflow
            exponents = np.clip(np.floor(np.log10(sizes)), -30.0, 30.0)
        least = np.nanmin(np.vstack([exponents, np.full(exponents.shape[1], 30.0)]), axis=0)
        decimals, after_first_digit = self._digits
        larger = np.nan_to_num(np.where(after_first_digit, exponents, np.maximum(exponents - least, 0.0)))
        is_rounded = (decimals < _FULL) & ~np.isin(_COMPARED, _WHOLE)
        return np.where(is_rounded, 10.0 ** (larger - decimals), 0.0)

    @cached_property
    def tells_apart(self) -> bool:
        """Whether its values have enough digits that another seed would hardly have the same."""
        import numpy as np

        return _tell_apart(np.where(self.known, self.values, np.nan))

    @cached_property
    def sampled_rows(self) -> Integers:
        """Indices of some rows; the last comes first, since by then the values of two seeds have parted."""
        import numpy as np

        return np.unique(np.linspace(0, len(self.steps) - 1, _SAMPLED).astype(np.int64))[::-1]


def _decimals(values: Floats, noise: float) -> Integers:
    """Return the largest number of decimals in every column, _FULL for more than are looked for."""
    import numpy as np

    # from there on every double is a whole number, and scaling could overflow
    values = np.clip(values, -(2.0**53), 2.0**53)
    decimals = np.full(values.shape[1], _FULL)
    rounded = np.arange(values.shape[1])
    for number in range(_FULL - 1, -1, -1):
        of_rounded = values[:, rounded]
        rounded = rounded[(np.abs(np.round(of_rounded, number) - of_rounded) <= noise).all(axis=0)]
        if not len(rounded):
            break
        decimals[rounded] = number
    return decimals


def _mantissas(values: Floats) -> Floats:
    """Return values as numbers from 1 to 10, and 0 as 0."""
    import numpy as np

    # denormals have no power of ten to be divided by
    sizes = np.where(np.abs(values) < np.finfo(np.float64).tiny, 0.0, np.abs(values))
    with np.errstate(divide="ignore"):
        exponents = np.where(sizes > 0, np.floor(np.log10(sizes)), 0.0)
    mantissas: Floats = np.where(sizes > 0, values, 0.0) / 10.0**exponents
    return mantissas


class _Index:
    """The rows of all files at some steps, to find the few that a file may be the same as."""

    def __init__(self, files: Sequence[_File]) -> None:
        import numpy as np

        self._files = files
        self._kept = np.zeros(len(files), np.bool_)
        if not files:
            return
        sampled = np.unique(np.concatenate([file.steps[file.sampled_rows] for file in files]))
        rows = [np.isin(file.steps, sampled).nonzero()[0] for file in files]
        steps = np.concatenate([file.steps[of_file] for file, of_file in zip(files, rows, strict=True)])
        order = np.argsort(steps, kind="stable")
        self._steps = steps[order]
        # ascending among the rows of one step
        self._ranks = np.repeat(np.arange(len(files)), [len(of_file) for of_file in rows])[order]
        self._rows = np.concatenate(rows)[order]
        self._values, self._known, self._roundings = (
            np.concatenate([part[of_file] for part, of_file in zip(parts, rows, strict=True)])[order]
            for parts in (
                [file.values for file in files],
                [file.known for file in files],
                [file.roundings for file in files],
            )
        )
        self._decimals = np.stack([file.decimals for file in files])

    def keep(self, rank: int) -> None:
        """Offer a file as a candidate from now on."""
        self._kept[rank] = True

    def candidates(self, rank: int) -> list[int]:
        """Return the kept files of lower rank that share a sampled step with a file and agree with it in all such."""
        import numpy as np

        file = self._files[rank]
        shares, differs = np.zeros((2, rank), np.bool_)
        for row in file.sampled_rows:
            step = file.steps[row]
            first, last = np.searchsorted(self._steps, step), np.searchsorted(self._steps, step, "right")
            last = first + np.searchsorted(self._ranks[first:last], rank)
            ranks = self._ranks[first:last]
            alive = (self._kept[ranks] & ~differs[ranks]).nonzero()[0]
            ranks, rows = ranks[alive], first + alive
            shares[ranks] = True
            agree = _agree(
                (file.values[row], self._values[rows]),
                file.known[row] & self._known[rows],
                _tolerance(file.decimals, file.roundings[row], self._decimals[ranks], self._roundings[rows]),
            )
            differs[ranks] = ~agree.all(axis=1)
        return (shares & ~differs).nonzero()[0].tolist()


def _tolerance(decimals: Integers, roundings: Floats, other_decimals: Integers, other_roundings: Floats) -> Floats:
    """Return by how much cells may differ: the rounding of the coarser column; nothing for equal decimals."""
    import numpy as np

    return np.where(decimals == other_decimals, 0.0, np.maximum(roundings, other_roundings))


def _agree(values: tuple[Floats, Floats], both_known: Booleans, tolerance: Floats) -> Booleans:
    """Return which cells agree; an unknown one agrees with any."""
    import numpy as np

    ours, theirs = values
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(ours - theirs) <= tolerance * (1 + 1e-9) + _SINGLE * np.abs(ours)
    agree: Booleans = ~both_known | (close & np.isfinite(ours)) | (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    return agree


def _are_same(kept: _File, file: _File) -> bool:
    """Whether two files hold the same run; the first has at least as many rows."""
    import numpy as np

    if not _may_be_same(kept.run, file.run):
        return False
    if kept.content == file.content:
        return True
    manifests = kept.run.manifest, file.run.manifest
    if manifests[0] and manifests[1] and manifests[0].config_hash != manifests[1].config_hash:
        return False
    have_one_identity = _have_one_identity(kept.run, file.run)
    if not have_one_identity and not (kept.tells_apart and file.tells_apart):
        return False
    common, ours, theirs = np.intersect1d(kept.steps, file.steps, assume_unique=True, return_indices=True)
    both = kept.known[ours] & file.known[theirs]
    values = kept.values[ours], file.values[theirs]
    exact = bool(_agree_exactly(*values)[both].all())
    is_cut = exact and len(common) == len(file.steps) < len(kept.steps)
    if len(common) < _ENOUGH_ROWS and not is_cut:
        return False
    tolerance = _tolerance(kept.decimals, kept.roundings[ours], file.decimals, file.roundings[theirs])
    if not exact and not _agree(values, both, tolerance).all():
        return False
    coarse = np.where(kept.decimals < file.decimals, *values)
    return have_one_identity or _tell_apart(np.where(both, coarse, np.nan))


def _agree_exactly(ours: Floats, theirs: Floats) -> Booleans:
    import numpy as np

    equal: Booleans = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    return equal


def _may_be_same(run: Run, other: Run) -> bool:
    """Whether what is known of size and arm allows two runs to be the same; equal values of two arms do not."""
    if run.size is not None and other.size is not None and run.size != other.size:
        return False
    if run.arm is None or other.arm is None or run.arm == other.arm:
        return True
    # without a manifest the settings of the interventions are unknown
    both_known = run.config is not None and other.config is not None
    return not both_known and names_only(run.arm) == names_only(other.arm)


def _have_one_identity(run: Run, other: Run) -> bool:
    """Whether arm, size, seed and length are known and equal."""
    identities = [(one.size, one.seed, one.planned_steps, one.arm and names_only(one.arm)) for one in (run, other)]
    return identities[0] == identities[1] and None not in identities[0]


def _tell_apart(values: Floats) -> bool:
    """Whether the measured values have enough digits that two seeds would hardly agree in all of them."""
    for column, name in enumerate(_COMPARED):
        if name not in _WHOLE and name not in _SHARED:
            digits = 0
            cells = values[:, column].tolist()
            different = dict.fromkeys(filter(math.isfinite, cells))
            # a constant, such as the loss of a model that does not learn, may be that of every seed
            for value in different if len(different) > 1 or len(cells) == 1 else ():
                # the first digit is the same for most seeds
                digits += min(_significant(value), _ENOUGH_DIGITS + 1) - 1
                if digits >= _ENOUGH_DIGITS:
                    return True
    return False


def _significant(value: float) -> int:
    """Return the number of significant digits of a finite number."""
    # without the noise of sums such as 4.7 + 0.001
    mantissa = f"{abs(value):.12e}".partition("e")[0].replace(".", "")
    return max(1, len(mantissa.rstrip("0")))


def _reason(file: _File, same: _File) -> str:
    """Return what was done to the file of a run."""
    columns = same.known.any(axis=0) & file.known.any(axis=0)
    fewer = {
        "rows": len(file.steps) < len(same.steps),
        "columns": bool((same.known.any(axis=0) & ~file.known.any(axis=0)).any()),
        "digits": bool((file.decimals < same.decimals)[columns].any()) or not _have_equal_values(file, same),
    }
    done = [f"fewer {what}" for what, is_so in fewer.items() if is_so]
    if not done:
        return f"the same values as {same.run.source}"
    return f"the same run as {same.run.source}, with {listed(done)}"


def _have_equal_values(file: _File, same: _File) -> bool:
    import numpy as np

    _, ours, theirs = np.intersect1d(file.steps, same.steps, assume_unique=True, return_indices=True)
    equal = _agree_exactly(file.values[ours], same.values[theirs])
    return bool(equal[file.known[ours] & same.known[theirs]].all())
