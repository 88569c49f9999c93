"""The gates of every export: what was written must hold our codes and scales, and give our probabilities.

Shapes: N positions, V vocabulary, O×I a matrix, G groups of inputs with a scale each.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnetctl.errors import ExportError

ARGMAX_TIE_NATS = 0.05
"""Twice the difference that flipped int8 roundings make; a collapsed model may have ties at every position."""
_CHUNK_VALUES = 1 << 22

Quantized = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Our log-probabilities against those of another program on the same tokens.

    `max_abs` is the largest difference in nats, `kl` the mean KL divergence of theirs from ours, `argmax_equal` the
    fraction of positions with the same most probable token; `argmax_near` counts those, too, where their token is to us
    at most ARGMAX_TIE_NATS less probable than ours. A value that is not finite on one side makes `kl` NaN.
    """

    max_abs: float
    kl: float
    argmax_equal: float
    argmax_near: float
    positions: int


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The limits of an agreement; None is not limited. Int8 roundings flip, so the largest difference has none."""

    kl: float
    argmax_near: float | None = None


@torch.no_grad()
def compare(ours_NV: Tensor, theirs_NV: Tensor) -> Agreement:
    """Compare logits or log-probabilities of the same positions, in float64; raises ValueError for other shapes."""
    if ours_NV.shape != theirs_NV.shape or ours_NV.dim() != 2 or not ours_NV.numel():
        raise ValueError(f"logits of shapes {tuple(ours_NV.shape)} and {tuple(theirs_NV.shape)}")
    positions, vocab_size = ours_NV.shape
    largest, kl, equal, near = 0.0, 0.0, 0, 0
    for start in range(0, positions, max(1, _CHUNK_VALUES // vocab_size)):
        part = slice(start, start + max(1, _CHUNK_VALUES // vocab_size))
        p_NV, q_NV = (x[part].double().log_softmax(-1) for x in (ours_NV, theirs_NV))
        difference_NV = p_NV - q_NV
        # torch's max passes a NaN on, Python's may not
        largest = float(torch.maximum(difference_NV.abs().amax(), torch.tensor(largest, dtype=torch.float64)))
        kl += float((p_NV.exp() * difference_NV).sum())
        theirs_N1 = q_NV.argmax(-1, keepdim=True)
        equal += int((p_NV.argmax(-1, keepdim=True) == theirs_N1).sum())
        near += int((p_NV.amax(-1, keepdim=True) - p_NV.gather(-1, theirs_N1) <= ARGMAX_TIE_NATS).sum())
    return Agreement(
        max_abs=largest,
        kl=kl / positions,
        argmax_equal=equal / positions,
        argmax_near=near / positions,
        positions=positions,
    )


def compare_rows(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> Agreement:
    """Compare logits of one row [T, V] after the other, so that those of all rows need not be in memory at once."""
    rows = [compare(ours_TV, theirs_TV) for ours_TV, theirs_TV in zip(ours, theirs, strict=True)]
    positions = sum(row.positions for row in rows)
    return Agreement(
        # Python's max drops a NaN
        max_abs=float(torch.tensor([row.max_abs for row in rows], dtype=torch.float64).amax()),
        kl=sum(row.kl * row.positions for row in rows) / positions,
        argmax_equal=sum(row.argmax_equal * row.positions for row in rows) / positions,
        argmax_near=sum(row.argmax_near * row.positions for row in rows) / positions,
        positions=positions,
    )


def require_agreement(agreement: Agreement, gate: Gate, against: str) -> tuple[str, ...]:
    """Return a line for each measure of an agreement with the program `against`; raises ExportError past a limit."""
    # a NaN passes no comparison
    measures = [("KL divergence", agreement.kl <= gate.kl, f"{agreement.kl:.1e}", f"at most {gate.kl:.2g}")]
    near, least = agreement.argmax_near, gate.argmax_near
    limit = "no gate" if least is None else f"at least {least:.1%}"
    value = f"{agreement.argmax_equal:.2%}, or one within {ARGMAX_TIE_NATS:g} nats of it: {near:.2%}"
    measures.append(("same most probable token", least is None or near >= least, value, limit))
    measures.append(("largest difference of a log-probability", True, f"{agreement.max_abs:.1e}", "no gate"))
    lines = []
    for name, passed, value, limit in measures:
        lines.append(f"{name}, {against}, {agreement.positions:,} positions: {value} ({limit})")
        if not passed:
            raise ExportError(f"self-check failed: {lines[-1]}")
    return tuple(lines)


class Mismatch(Exception):  # noqa: N818 - a result of a comparison, which is reported as an error of its own kind
    """Codes or scales that differ, and in what."""


def require_equal(
    ours: Quantized, theirs: Quantized, *, tolerance: float = 0.0, masters: Mapping[str, Tensor] | None = None
) -> str:
    """Return the line of `compare_quantized`; raises ExportError where codes or scales differ from the run's."""
    try:
        return compare_quantized(ours, theirs, tolerance=tolerance, masters=masters)
    except Mismatch as error:
        raise ExportError(f"self-check failed: {error}") from error


def compare_quantized(
    ours: Quantized, theirs: Quantized, *, tolerance: float = 0.0, masters: Mapping[str, Tensor] | None = None
) -> str:
    """Return a line that says codes [O, I] and scales [O, G] are the same; raises Mismatch for the first that differ.

    `tolerance` is the largest relative difference of a scale. With `masters`, from which the other program makes its
    codes, one may differ where a weight is as near to the threshold as its scale is uncertain.
    """
    if ours.keys() != theirs.keys():
        name = min(ours.keys() ^ theirs.keys())
        raise Mismatch(f"{name}: codes {'missing' if name in ours else 'that there should not be'}")
    worst, allowed = 0.0, 0
    for name, (codes_OI, scale_OG) in ours.items():
        worst = max(worst, _scale_difference(name, scale_OG, theirs[name][1], tolerance))
        undecided_OI = None if masters is None else _undecided(masters[name], scale_OG, tolerance)
        allowed += _other_codes(name, codes_OI, theirs[name][0], undecided_OI)
    equal = "identical" if worst == 0.0 else f"within {worst:.1e}"
    gate = f" (at most {tolerance:.2g})" if tolerance else ""
    codes = f"identical but for {allowed} at the threshold" if allowed else "identical"
    return f"codes of {len(ours)} matrices {codes}, scales {equal}{gate}"


def _scale_difference(name: str, scale_OG: Tensor, other: Tensor, tolerance: float) -> float:
    """Return the largest relative difference of a scale; raises Mismatch past the tolerance."""
    ours_OG, theirs_OG = torch.broadcast_tensors(scale_OG.double(), other.double())
    relative_OG = ((theirs_OG - ours_OG) / ours_OG).abs()
    at = int(relative_OG.nan_to_num(torch.inf).argmax())
    difference = float(relative_OG.flatten()[at])
    # a NaN passes no comparison
    if not difference <= tolerance:
        values = f"{float(theirs_OG.flatten()[at]):.6g}, not {float(ours_OG.flatten()[at]):.6g}"
        raise Mismatch(f"{name}: scale {values}")
    return difference


def _undecided(master_OI: Tensor, scale_OG: Tensor, tolerance: float) -> Tensor:
    """Return where a weight [O, I] is as near to half the scale [O, 1] of its row as the tolerance: it may round up."""
    return ((master_OI / scale_OG).abs() - 0.5).abs() <= tolerance


def _other_codes(name: str, codes_OI: Tensor, other_OI: Tensor, undecided_OI: Tensor | None) -> int:
    """Return how many codes differ that may; raises Mismatch for one that may not."""
    if other_OI.shape != codes_OI.shape:
        raise Mismatch(f"{name}: shape {tuple(other_OI.shape)}, not {tuple(codes_OI.shape)}")
    differs_OI = other_OI.double() != codes_OI.double()
    wrong_OI = differs_OI if undecided_OI is None else differs_OI & ~undecided_OI
    if wrong_OI.any():
        wrong = int(wrong_OI.sum())
        raise Mismatch(f"{name}: {wrong:,} of {wrong_OI.numel():,} codes differ")
    return int(differs_OI.sum())
