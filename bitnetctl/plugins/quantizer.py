"""Calls of a hook that quantizes, with its results checked: what is not codes and a scale is blamed on the plug-in.

Values are checked at the first call of each shape, which is before a step is captured; later calls never make the host
wait for the device. No torch is imported here before there is a tensor.

Shapes: M matrices of all runs and layers, N tokens of all runs, O×I a matrix.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from bitnetctl.plugins.blame import blamed
from bitnetctl.plugins.values import kind_of

if TYPE_CHECKING:
    from torch import Tensor

QuantizerHook = Literal["quantize_weights", "quantize_activations"]
QUANTIZER_HOOKS: tuple[QuantizerHook, ...] = ("quantize_weights", "quantize_activations")

# weights and activations up to which codes and scale must be right
_LARGEST = 1e30
# smallest and largest code, and what the message calls them
_CODES = {
    "quantize_weights": (-1, 1, "codes other than -1, 0 and 1"),
    "quantize_activations": (-128, 127, "codes that are not whole numbers from -128 to 127"),
}


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """The hook of a plug-in as a function of matrices [M, O, I] or tokens [N, I].

    `isolated` makes the context of a call. A result that cannot be used raises PluginError.
    """

    plugin: str
    hook: QuantizerHook
    function: Callable[["Tensor"], Any]
    isolated: Callable[[], contextlib.AbstractContextManager[None]]
    _seen: set[object] = field(default_factory=set)

    def __call__(self, x: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return codes of the shape of `x`, and a scale [M, 1 or O, groups] or [N, groups] of its type."""
        key = tuple(x.shape), x.dtype
        if key in self._seen or _is_capturing(x):
            return self._call(x)
        result = self.checked(x)
        self._seen.add(key)
        return result

    def checked(self, x: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return the same with every value checked."""
        before = x.clone()
        codes, scale = self._call(x)
        if not before.equal(x) and not x.isnan().any():
            self._fail("changed its argument in place; it must return new tensors")
        # of a run that diverged, or is about to, a sum may overflow
        is_sound = (x.abs() < _LARGEST).flatten(1).all(1)
        codes_seen, scale_seen = codes[is_sound], scale[is_sound]
        if not scale_seen.isfinite().all():
            self._fail("returned a scale that is not finite")
        least, most, text = _CODES[self.hook]
        wrong = ~((codes_seen >= least) & (codes_seen <= most) & (codes_seen == codes_seen.round()))
        if wrong.any():
            self._fail(f"returned {text}, such as {codes_seen[wrong][0].item():g}")
        return codes, scale

    def _call(self, x: "Tensor") -> "tuple[Tensor, Tensor]":
        with self.isolated():
            result = self.function(x)
        if not isinstance(result, tuple) or len(result) != 2:
            self._fail(f"returned {kind_of(result)}, not (codes, scale)")
        codes, scale = (self._tensor(name, value, x) for name, value in zip(("codes", "scale"), result, strict=True))
        if codes.shape != x.shape:
            self._fail(f"returned codes of shape {tuple(codes.shape)} for {tuple(x.shape)}")
        first, *rows, inputs = x.shape
        fits = scale.dim() == x.dim() and scale.shape[0] == first
        if not fits or scale.shape[-1] < 1 or inputs % scale.shape[-1] or (rows and scale.shape[1] not in (1, *rows)):
            shapes = [(first, *rows, "groups")] if not rows else [(first, 1, "groups"), (first, *rows, "groups")]
            wanted = " or ".join(f"({', '.join(map(str, shape))})" for shape in shapes)
            self._fail(
                f"returned a scale of shape {tuple(scale.shape)} for {tuple(x.shape)}; it must be {wanted}, "
                f"groups dividing {inputs}"
            )
        return codes.to(x.dtype), scale.to(x.dtype)

    def _tensor(self, name: str, value: object, x: "Tensor") -> "Tensor":
        """Return what the hook returned as codes or scale, if it is a real tensor where `x` is."""
        import torch

        if not isinstance(value, torch.Tensor):
            self._fail(f"returned {kind_of(value)} as {name}, not a tensor")
        if value.dtype == torch.bool or value.is_complex():
            self._fail(f"returned {name} of {value.dtype}")
        if value.device != x.device:
            self._fail(f"returned {name} on {value.device}, not {x.device}")
        return value.detach()

    def _fail(self, problem: str) -> NoReturn:
        raise blamed(self.plugin, f"{self.hook} {problem}", self.function)


def _is_capturing(x: "Tensor") -> bool:
    """Whether a CUDA graph is captured, in which no value can be read."""
    if not x.is_cuda:
        return False
    import torch

    return bool(torch.cuda.is_current_stream_capturing())
