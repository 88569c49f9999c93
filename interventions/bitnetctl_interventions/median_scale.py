"""Ternary weights scaled by the median magnitude instead of the mean."""

from typing import TYPE_CHECKING

from bitnetctl.intervention import Intervention

if TYPE_CHECKING:
    from torch import Tensor

# lower bound of a scale, as of the built-in quantizer
_FLOOR = 1e-5


class MedianScale(Intervention):
    """Scale each projection by the median of |w|, which few large weights do not move.

    Of an even number of weights the median is the lower of the two in the middle, as in the authors' package
    `bitlinear`, which has the same floor. Of a normal distribution it is 0.84 times the mean, so there are fewer zeros.
    """

    summary = "ternary weights scaled by the median of |w| instead of the mean"
    capturable = True
    source = (
        "Nielsen & Schneider-Kamp 2024 (BitNet b1.58 Reloaded), arXiv 2407.09527; their package bitlinear, AbsMedian"
    )

    def quantize_weights(self, weight_LOI: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return clamp(round(w / s), ±1) and s = max(median |w|, 1e-5) of each matrix."""
        scale_L11 = weight_LOI.abs().flatten(1).median(dim=1).values.clamp(min=_FLOOR).view(-1, 1, 1)
        return (weight_LOI / scale_L11).round().clamp(-1, 1), scale_L11
