"""The gates of every export: what was written must hold our codes and scales, and give our probabilities.

Shapes: N positions, V vocabulary, O×I a matrix, G groups of inputs with a scale each.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnetctl.errors import ExportError

_CHUNK_VALUES = 1 << 22

Quantized = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Our log-probabilities against those of another program on the same tokens.

    `max_abs` is the largest difference in nats, `kl` the mean KL divergence of theirs from ours, `argmax_equal` the
    fraction of positions with the same most probable token. A value that is not finite on one side makes `kl` NaN.
    """

    max_abs: float
    kl: float
    argmax_equal: float
    positions: int


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The limits of an agreement; None is not limited. Int8 roundings flip, so a maximum is a coarse limit."""

    kl: float
    argmax_equal: float | None = None
    max_abs: float | None = None


@torch.no_grad()
def compare(ours_NV: Tensor, theirs_NV: Tensor) -> Agreement:
    """Compare logits or log-probabilities of the same positions, in float64; raises ValueError for other shapes."""
    if ours_NV.shape != theirs_NV.shape or ours_NV.dim() != 2 or not ours_NV.numel():
        raise ValueError(f"logits of shapes {tuple(ours_NV.shape)} and {tuple(theirs_NV.shape)}")
    positions, vocab_size = ours_NV.shape
    largest, kl, equal = 0.0, 0.0, 0
    for start in range(0, positions, max(1, _CHUNK_VALUES // vocab_size)):
        part = slice(start, start + max(1, _CHUNK_VALUES // vocab_size))
        p_NV, q_NV = (x[part].double().log_softmax(-1) for x in (ours_NV, theirs_NV))
        difference_NV = p_NV - q_NV
        # torch's max passes a NaN on, Python's may not
        largest = float(torch.maximum(difference_NV.abs().amax(), torch.tensor(largest, dtype=torch.float64)))
        kl += float((p_NV.exp() * difference_NV).sum())
        equal += int((p_NV.argmax(-1) == q_NV.argmax(-1)).sum())
    return Agreement(max_abs=largest, kl=kl / positions, argmax_equal=equal / positions, positions=positions)


def require_agreement(agreement: Agreement, gate: Gate, against: str) -> tuple[str, ...]:
    """Return a line for each measure of an agreement with the program `against`; raises ExportError past a limit."""
    # a NaN passes no comparison
    measures = [("KL divergence", agreement.kl <= gate.kl, f"{agreement.kl:.1e}", f"at most {gate.kl:g}")]
    equal, least = agreement.argmax_equal, gate.argmax_equal
    limit = "no gate" if least is None else f"at least {least:.1%}"
    measures.append(("same most probable token", least is None or equal >= least, f"{equal:.2%}", limit))
    largest, most = agreement.max_abs, gate.max_abs
    limit = "no gate" if most is None else f"at most {most:g}"
    name = "largest difference of a log-probability"
    measures.append((name, most is None or largest <= most, f"{largest:.1e}", limit))
    lines = []
    for name, passed, value, limit in measures:
        lines.append(f"{name}, {against}, {agreement.positions:,} positions: {value} ({limit})")
        if not passed:
            raise ExportError(f"self-check failed: {lines[-1]}")
    return tuple(lines)


def require_equal(ours: Quantized, theirs: Quantized, *, tolerance: float = 0.0) -> str:
    """Return a line that says codes [O, I] and scales [O, G] are those of the run; raises ExportError if not.

    `tolerance` is the largest relative difference of a scale.
    """
    if ours.keys() != theirs.keys():
        name = min(ours.keys() ^ theirs.keys())
        raise ExportError(f"self-check failed: {name}: {'missing in' if name in ours else 'only in'} the file")
    worst = 0.0
    for name, (codes_OI, scale_OG) in ours.items():
        codes, scale = theirs[name]
        if codes.shape != codes_OI.shape:
            raise ExportError(f"self-check failed: {name}: shape {tuple(codes.shape)}, not {tuple(codes_OI.shape)}")
        other = int((codes.double() != codes_OI.double()).sum())
        if other:
            raise ExportError(f"self-check failed: {name}: {other:,} of {codes.numel():,} codes differ from the run's")
        ours_OG, theirs_OG = torch.broadcast_tensors(scale_OG.double(), scale.double())
        relative_OG = ((theirs_OG - ours_OG) / ours_OG).abs()
        at = int(relative_OG.nan_to_num(torch.inf).argmax())
        if not float(relative_OG.flatten()[at]) <= tolerance:
            values = f"{float(theirs_OG.flatten()[at]):.6g}, not {float(ours_OG.flatten()[at]):.6g}"
            raise ExportError(f"self-check failed: {name}: scale {values}")
        worst = max(worst, float(relative_OG.flatten()[at]))
    equal = "identical" if worst == 0.0 else f"within {worst:.1e}"
    gate = f" (at most {tolerance:g})" if tolerance else ""
    return f"codes of {len(ours)} matrices identical, scales {equal}{gate}"
