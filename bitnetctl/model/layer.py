"""One layer of the packed transformer, forward and backward written out: functions of tensors alone.

All layers of a model have one shape, so what is compiled for one of them serves them all.

Shapes: R runs, B rows, T positions of a row, N = B·T, H hidden, F features, O outputs of a matrix, A query heads, G
key/value heads, D head size.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.model import functional
from bitnetctl.model.matmul import Matmul, Operand, Quantization

# the norms in front of each matrix; a layer may have only some of them
_NORMS_BEFORE = {
    "qkv": ("input_norm", "qkv_norm"),
    "o": ("attn_sub_norm",),
    "gate_up": ("post_norm", "gate_up_norm"),
    "down": ("ffn_sub_norm",),
}
# up to this many positions plain products beat the fused attention of the CPU
_SHORT = 64
# shapes that one process may compile; beyond its limit the compiler runs new ones as they are, and says nothing
_MOST_SHAPES = 64

_Heads = tuple[Tensor, Tensor, Tensor]
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Operands of a layer's matrices, and the weights [R, 1, F] of the norms that it has."""

    matrices: Mapping[str, Operand]
    norms: Mapping[str, Tensor]

    def norm_keys(self, matrix: str) -> list[str]:
        """Return the norms in front of a matrix."""
        return [key for key in _NORMS_BEFORE[matrix] if key in self.norms]


@dataclass
class Saved:
    """What the way back needs: what each matrix multiplied, what its norms did, what attention and gate saw."""

    inputs: dict[str, Operand] = field(default_factory=dict)
    norms: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    attention: tuple[Tensor, ...] = ()
    gate_up: tuple[Tensor, ...] = ()


@dataclass
class Gradients:
    """What the way back finds: gradients [R, F] of norms; of a matrix the gradient of its product, and its input.

    A matrix's own gradient is the product of these two; the caller makes it where it belongs.
    """

    norms: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def fused(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return the function compiled, for every shape that it meets."""
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    compiled: Callable[_P, _T] = torch.compile(function, dynamic=False, fullgraph=True)
    return compiled


def as_is(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return the function."""
    return function


class Layer:
    """The arithmetic of a layer for rows of `positions` tokens; it holds no weights.

    `compiled` fuses it: as a whole where attention is made of plain products, else what is before and after attention.
    """

    def __init__(
        self, config: ModelConfig, matmul: Matmul, positions: int, device: torch.device, *, compiled: bool = False
    ) -> None:
        self._config, self._products, self._positions = config, matmul, positions
        self._queries, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._on_gpu = device.type == "cuda"
        self._is_plain = not self._on_gpu and self._queries == self._groups and positions <= _SHORT
        self._cos_TD, self._sin_TD = (table.to(device) for table in rotary_tables(config, positions))
        # fused attention has its own, and rows may be long
        masked = positions if self._is_plain else 0
        self._mask_TT = torch.full((masked, masked), -math.inf).triu(1).to(device)
        whole = fused if compiled and self._is_plain else as_is
        piece = fused if compiled and not self._is_plain else as_is
        self.forward, self.backward = whole(self._forward), whole(self._backward)
        self._before, self._after = piece(self._up_to_attention), piece(self._from_attention)
        self._after_back, self._before_back = piece(self._back_to_attention), piece(self._back_from_attention)

    def _forward(self, x_RNH: Tensor, weights: LayerWeights, q: Quantization) -> tuple[Tensor, Saved]:
        """Return the residual stream after the layer, and what the way back needs."""
        heads, before = self._before(x_RNH, weights, q)
        a_RNH, attention = self._attend(heads, x_RNH.shape[0])
        x_RNH, after = self._after(x_RNH, a_RNH, weights, q)
        return x_RNH, Saved(before.inputs | after.inputs, before.norms | after.norms, attention, after.gate_up)

    def _backward(self, grad_RNH: Tensor, saved: Saved, weights: LayerWeights) -> tuple[Tensor, Gradients]:
        """Return the gradient of the residual stream before the layer, and what concerns its weights."""
        grad_RNH, grad_a_RNH, after = self._after_back(grad_RNH, saved, weights)
        grad_heads = self._attend_backward(grad_a_RNH, saved.attention)
        grad_RNH, before = self._before_back(grad_RNH, grad_heads, saved, weights)
        return grad_RNH, Gradients(after.norms | before.norms, after.factors | before.factors)

    def _up_to_attention(self, x_RNH: Tensor, weights: LayerWeights, q: Quantization) -> tuple[_Heads, Saved]:
        """Return queries [R·B, A, T, D], keys and values [R·B, G, T, D]."""
        saved = Saved()
        qkv_RNO = self._multiply("qkv", x_RNH, weights, q, saved)
        heads = qkv_RNO.view(-1, self._positions, self._queries + 2 * self._groups, self._config.head_size)
        # rotary embeddings turn queries and keys alike, so both go through in one piece
        turned, value = heads.transpose(1, 2).split([self._queries + self._groups, self._groups], dim=1)
        query, key = functional.rotate(turned, self._cos_TD, self._sin_TD).split([self._queries, self._groups], dim=1)
        # on a GPU in the type that its fast kernels take; elsewhere that of the weights
        dtype = self._products.dtype if self._on_gpu else x_RNH.dtype
        # a view of the values would keep the whole product
        value = value.to(dtype) if self._is_plain or value.dtype != dtype else value.clone()
        return (query.to(dtype), key.to(dtype), value), saved

    def _from_attention(
        self, x_RNH: Tensor, a_RNH: Tensor, weights: LayerWeights, q: Quantization
    ) -> tuple[Tensor, Saved]:
        """Return the residual stream after attention and feed-forward."""
        saved = Saved()
        x_RNH = x_RNH + self._multiply("o", a_RNH.to(x_RNH.dtype), weights, q, saved)
        gate_up_RNF = self._multiply("gate_up", x_RNH, weights, q, saved)
        saved.gate_up = (gate_up_RNF,)
        f_RNF = functional.gate(gate_up_RNF, self._config.activation)
        return x_RNH + self._multiply("down", f_RNF, weights, q, saved), saved

    def _back_to_attention(
        self, grad_RNH: Tensor, saved: Saved, weights: LayerWeights
    ) -> tuple[Tensor, Tensor, Gradients]:
        """Return the gradients of the residual stream after attention, and of attention's output."""
        found = Gradients()
        grad_RNF = self._multiply_backward("down", grad_RNH, saved, weights, found)
        grad_RNF = functional.gate_backward(grad_RNF, saved.gate_up[0], self._config.activation)
        grad_RNH = grad_RNH + self._multiply_backward("gate_up", grad_RNF, saved, weights, found)
        return grad_RNH, self._multiply_backward("o", grad_RNH, saved, weights, found), found

    def _back_from_attention(
        self, grad_RNH: Tensor, grad_heads: _Heads, saved: Saved, weights: LayerWeights
    ) -> tuple[Tensor, Gradients]:
        """Return the gradient of the residual stream before the layer."""
        found = Gradients()
        grad_query, grad_key, grad_value = (grad.to(grad_RNH.dtype) for grad in grad_heads)
        grad_turned = torch.cat((grad_query, grad_key), dim=1)
        grad_turned = functional.rotate_backward(grad_turned, self._cos_TD, self._sin_TD)
        grad_qkv_RNO = torch.cat((grad_turned, grad_value), dim=1).transpose(1, 2).reshape(*grad_RNH.shape[:2], -1)
        return grad_RNH + self._multiply_backward("qkv", grad_qkv_RNO, saved, weights, found), found

    def _multiply(self, matrix: str, x_RNF: Tensor, weights: LayerWeights, q: Quantization, saved: Saved) -> Tensor:
        """Normalize, quantize and multiply."""
        norms = [weights.norms[key] for key in weights.norm_keys(matrix)]
        normed_RNF, saved.norms[matrix] = functional.normalize(x_RNF, norms, self._config.rms_norm_eps)
        saved.inputs[matrix] = self._products.activations(normed_RNF, q)
        return self._products.multiply(saved.inputs[matrix], weights.matrices[matrix])

    def _multiply_backward(
        self, matrix: str, grad_RNO: Tensor, saved: Saved, weights: LayerWeights, found: Gradients
    ) -> Tensor:
        """Return the gradient of what went into the norms before a matrix; note what concerns their weights."""
        keys = weights.norm_keys(matrix)
        grad_RNO = self._products.cast(grad_RNO)
        found.factors[matrix] = (grad_RNO, self._products.figures(saved.inputs[matrix]))
        grad_RNF = torch.bmm(grad_RNO, self._products.figures(weights.matrices[matrix]))
        norms = [weights.norms[key] for key in keys]
        grad_RNF, grads_RF = functional.normalize_backward(grad_RNF, saved.norms[matrix], norms)
        found.norms.update(zip(keys, grads_RF, strict=True))
        return grad_RNF

    def _attend(self, heads: _Heads, runs: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the heads' output [R, N, A·D] and what the way back needs."""
        with self._products.outside():
            if self._is_plain:
                q, k, v = (head.reshape(-1, self._positions, self._config.head_size) for head in heads)
                out, last = functional.attend(q, k, v, self._mask_TT)
            else:
                # the one piece whose gradient torch records: its kernels differ by device
                q, k, v = (head.detach().requires_grad_() for head in heads)
                with torch.enable_grad():
                    shares = self._queries != self._groups
                    last = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shares)
                out = last.detach()
        out = out.view(-1, self._queries, self._positions, self._config.head_size)
        return out.transpose(1, 2).reshape(runs, -1, self._queries * self._config.head_size), (q, k, v, last)

    def _attend_backward(self, grad_RNH: Tensor, saved: tuple[Tensor, ...]) -> _Heads:
        q, k, v, last = saved
        grad_out = grad_RNH.view(-1, self._positions, self._queries, self._config.head_size).transpose(1, 2)
        with self._products.outside():
            if self._is_plain:
                grads = functional.attend_backward(grad_out.reshape(q.shape), q, k, v, last)
                grad_q, grad_k, grad_v = (grad.view(grad_out.shape) for grad in grads)
            else:
                grad_q, grad_k, grad_v = torch.autograd.grad(last, (q, k, v), grad_out.to(last.dtype))
        return grad_q, grad_k, grad_v


def rotary_tables(config: ModelConfig, positions: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [T, D] of rotary embeddings; the sign of rotate-half is folded into the sine."""
    half = config.head_size // 2
    exponent_D = torch.arange(0, 2 * half, 2, dtype=torch.float) / (2 * half)
    angle_TD = torch.arange(positions)[:, None].float() * (1.0 / (config.rope_theta**exponent_D))
    sin_TD = angle_TD.sin()
    return angle_TD.cos().repeat(1, 2), torch.cat((-sin_TD, sin_TD), dim=-1)
