"""One layer of the packed transformer, forward and hand-written backward, as functions of tensors alone.

All layers of a model have one shape, so a function compiled for one of them serves them all.

Shapes: R runs, B rows, T positions of a row, N = B·T tokens, H hidden, F features, I inputs and O outputs of a matrix,
A query heads, G key/value heads, D head size.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

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
# up to this many positions attention as plain matmuls is faster on the CPU than SDPA
_PLAIN_ATTENTION_POSITIONS = 64
# not cuDNN: it makes a plan for every shape, which costs an H100 a second at the start for 2 % of a step at most
_SDPA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# flash attention adds a query's gradients atomically, one from each block of 64 or 128 keys; two give the same sum in
# either order
_ORDER_FREE_POSITIONS = 128
# what Inductor advises to do about its own kernels; TF32 would not be the fp32 that was requested
_INDUCTOR_ADVICE = (r"\s*Online softmax is disabled on the fly", r"\s*TensorFloat32 tensor cores")
# every shape is compiled anew, and with `fullgraph` torch raises beyond its limit, which is 8 by default
_RECOMPILE_LIMIT = 64

_Heads = tuple[Tensor, Tensor, Tensor]
# of queries, keys and values; with plain attention stacked, so that both operations behind it take all of them at once
HeadGradients = tuple[Tensor, ...] | Tensor
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Operands of a layer's matrices, and the weights [R, 1, F] of the norms that it has.

    `partial_sums` [R, P, F], where own kernels run, receive the gradient of a norm summed over each block of tokens.
    """

    matrices: Mapping[str, Operand]
    norms: Mapping[str, Tensor]
    partial_sums: Mapping[str, Tensor] = field(default_factory=dict)

    def norms_before(self, matrix: str) -> dict[str, Tensor]:
        """Return the norms in front of a matrix."""
        return {key: self.norms[key] for key in _NORMS_BEFORE[matrix] if key in self.norms}


class AttentionActivations(NamedTuple):
    """What attention saves for backward: its inputs, and the softmax of plain matmuls or SDPA's output with its graph.

    With plain attention q, k and v are [R·B·A, T, D], with SDPA [R·B, A or G, T, D].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    p_or_out: Tensor


@dataclass
class LayerActivations:
    """Activations saved for backward.

    `inputs` and `norms` by matrix: its quantized input, and (normed, 1 / RMS) of each norm in front of it.
    `gate_up` holds the output of that matrix.
    """

    inputs: dict[str, Operand] = field(default_factory=dict)
    norms: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    attention: AttentionActivations | None = None
    gate_up: tuple[Tensor, ...] = ()


@dataclass
class LayerGradients:
    """Norm gradients [R, F], and (grad_output [R, N, O], input [R, N, I]) of each matrix.

    The caller forms dW = grad_outputᵀ · input, written directly into the gradient tensor.
    """

    norms: dict[str, Tensor] = field(default_factory=dict)
    matrix_factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def is_attention_plain(config: ModelConfig, positions: int, device: torch.device) -> bool:
    """Whether attention over rows of `positions` tokens is plain matmuls; else it is SDPA, with autograd's backward."""
    alike = config.num_attention_heads == config.num_key_value_heads
    return device.type != "cuda" and alike and positions <= _PLAIN_ATTENTION_POSITIONS


def compile_if(enabled: bool, function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return the function, compiled for every shape it is called with if `enabled`."""
    if not enabled:
        return function
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    for message in _INDUCTOR_ADVICE:
        warnings.filterwarnings("ignore", message=message)
    return torch.compile(function, dynamic=False, fullgraph=True)


class Layer:
    """The arithmetic of a layer for rows of `positions` tokens; it holds no weights.

    `compiled`: forward and backward each as one function, or, where SDPA runs, as one before and one after attention.
    """

    def __init__(
        self, config: ModelConfig, matmul: Matmul, positions: int, device: torch.device, *, compiled: bool = False
    ) -> None:
        self._config, self._matmul, self._positions = config, matmul, positions
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._on_gpu = device.type == "cuda"
        self._plain_attention = is_attention_plain(config, positions, device)
        self._cos_TD, self._sin_TD = (table.to(device) for table in rotary_tables(config, positions))
        # SDPA needs no mask, which would be large for long rows
        masked = positions if self._plain_attention else 0
        self._mask_TT = torch.full((masked, masked), -math.inf).triu(1).to(device)
        whole, part = compiled and self._plain_attention, compiled and not self._plain_attention
        self.forward, self.backward = compile_if(whole, self._forward), compile_if(whole, self._backward)
        self._before, self._after = compile_if(part, self._before_attention), compile_if(part, self._after_attention)
        self._backward_after = compile_if(part, self._after_attention_backward)
        self._backward_before = compile_if(part, self._before_attention_backward)

    def _forward(self, x_RNH: Tensor, weights: LayerWeights, quant: Quantization) -> tuple[Tensor, LayerActivations]:
        """Return the residual stream after the layer, and the activations saved for backward."""
        heads, before = self._before(x_RNH, weights, quant)
        a_RNH, attention = self._attend(heads, x_RNH.shape[0])
        x_RNH, after = self._after(x_RNH, a_RNH, weights, quant)
        after.inputs.update(before.inputs)
        after.norms.update(before.norms)
        after.attention = attention
        return x_RNH, after

    def _backward(
        self, grad_RNH: Tensor, saved: LayerActivations, weights: LayerWeights
    ) -> tuple[Tensor, LayerGradients]:
        """Return the gradients of the residual stream before the layer and of the layer's weights."""
        grad_RNH, grad_a_RNH, after = self._backward_after(grad_RNH, saved, weights)
        assert saved.attention is not None
        grad_heads = self._attend_backward(grad_a_RNH, saved.attention)
        grad_RNH, before = self._backward_before(grad_RNH, grad_heads, saved, weights)
        after.norms.update(before.norms)
        after.matrix_factors.update(before.matrix_factors)
        return grad_RNH, after

    def _before_attention(
        self, x_RNH: Tensor, weights: LayerWeights, quant: Quantization
    ) -> tuple[_Heads, LayerActivations]:
        """Return queries [R·B, A, T, D] and keys and values [R·B, G, T, D], queries and keys rotated."""
        saved = LayerActivations()
        qkv_RNO = self._linear("qkv", x_RNH, weights, quant, saved)
        if self._plain_attention:
            heads = functional.split_heads(qkv_RNO, self._positions, self._config.head_size, x_RNH.dtype)
            query, key = functional.rotate(heads[:2], self._cos_TD, self._sin_TD).unbind(0)
            return (query, key, heads[2]), saved
        heads = qkv_RNO.view(-1, self._positions, self._heads + 2 * self._kv_heads, self._config.head_size)
        # rotary embeddings treat queries and keys alike, so one call rotates both
        query_key, value = heads.transpose(1, 2).split([self._heads + self._kv_heads, self._kv_heads], dim=1)
        rotated = functional.rotate(query_key, self._cos_TD, self._sin_TD)
        query, key = rotated.split([self._heads, self._kv_heads], dim=1)
        # on a GPU in the dtype of the precision, for SDPA's fast kernels; elsewhere in that of the weights
        dtype = self._matmul.dtype if self._on_gpu else x_RNH.dtype
        # SDPA saves v for backward: a view would keep all of qkv in memory
        value = value.to(dtype) if value.dtype != dtype else value.clone()
        return (query.to(dtype), key.to(dtype), value), saved

    def _after_attention(
        self, x_RNH: Tensor, a_RNH: Tensor, weights: LayerWeights, quant: Quantization
    ) -> tuple[Tensor, LayerActivations]:
        """Return the residual stream after output projection and feed-forward."""
        saved = LayerActivations()
        x_RNH = x_RNH + self._linear("o", a_RNH.to(x_RNH.dtype), weights, quant, saved)
        gate_up_RNF = self._linear("gate_up", x_RNH, weights, quant, saved)
        saved.gate_up = (gate_up_RNF,)
        f_RNF = functional.gate(gate_up_RNF, self._config.activation)
        return x_RNH + self._linear("down", f_RNF, weights, quant, saved), saved

    def _after_attention_backward(
        self, grad_RNH: Tensor, saved: LayerActivations, weights: LayerWeights
    ) -> tuple[Tensor, Tensor, LayerGradients]:
        """Return the gradients of the residual stream after attention, of attention's output, and of the weights."""
        grads = LayerGradients()
        grad_RNF = self._linear_backward("down", grad_RNH, saved, weights, grads)
        grad_RNF = functional.gate_backward(grad_RNF, saved.gate_up[0], self._config.activation)
        grad_RNH = grad_RNH + self._linear_backward("gate_up", grad_RNF, saved, weights, grads)
        return grad_RNH, self._linear_backward("o", grad_RNH, saved, weights, grads), grads

    def _before_attention_backward(
        self, grad_RNH: Tensor, grad_heads: HeadGradients, saved: LayerActivations, weights: LayerWeights
    ) -> tuple[Tensor, LayerGradients]:
        """Return the gradients of the residual stream before the layer and of the weights."""
        grads = LayerGradients()
        if isinstance(grad_heads, Tensor):
            query_key = grad_heads[:2]
            query_key.copy_(functional.rotate_backward(query_key, self._cos_TD, self._sin_TD))
            grad_qkv_RNO = functional.merge_heads(grad_heads).view(*grad_RNH.shape[:2], -1)
        else:
            grad_query, grad_key, grad_value = (grad.to(grad_RNH.dtype) for grad in grad_heads)
            grad_query_key = torch.cat((grad_query, grad_key), dim=1)
            grad_query_key = functional.rotate_backward(grad_query_key, self._cos_TD, self._sin_TD)
            grad_qkv = torch.cat((grad_query_key, grad_value), dim=1).transpose(1, 2)
            grad_qkv_RNO = grad_qkv.reshape(*grad_RNH.shape[:2], -1)
        return grad_RNH + self._linear_backward("qkv", grad_qkv_RNO, saved, weights, grads), grads

    def _linear(
        self, matrix: str, x_RNI: Tensor, weights: LayerWeights, quant: Quantization, saved: LayerActivations
    ) -> Tensor:
        """Normalize, quantize and multiply; add to `saved` what backward needs."""
        norms = list(weights.norms_before(matrix).values())
        normed_RNI, saved.norms[matrix] = functional.normalize(x_RNI, norms, self._config.rms_norm_eps)
        saved.inputs[matrix] = self._matmul.activations(normed_RNI, quant)
        return self._matmul.multiply(saved.inputs[matrix], weights.matrices[matrix])

    def _linear_backward(
        self, matrix: str, grad_RNO: Tensor, saved: LayerActivations, weights: LayerWeights, grads: LayerGradients
    ) -> Tensor:
        """Return the gradient of the input of a matrix's norms; add those of norms and matrix to `grads`."""
        grad_RNO = self._matmul.cast(grad_RNO)
        grads.matrix_factors[matrix] = (grad_RNO, self._matmul.dequantize(saved.inputs[matrix]))
        grad_RNI = self._matmul.bmm(grad_RNO, self._matmul.dequantize(weights.matrices[matrix]))
        norms = weights.norms_before(matrix)
        grad_RNI, norm_grads_RF = functional.normalize_backward(grad_RNI, saved.norms[matrix], list(norms.values()))
        grads.norms.update(zip(norms, norm_grads_RF, strict=True))
        return grad_RNI

    def _attend(self, heads: _Heads, runs: int) -> tuple[Tensor, AttentionActivations]:
        """Return the output of attention [R, N, A·D] and what its backward needs."""
        if self._plain_attention:
            q, k, v = (head.reshape(-1, self._positions, self._config.head_size) for head in heads)
            out, p_or_out = functional.attend(q, k, v, self._mask_TT)
        else:
            # the one gradient left to autograd: SDPA's backward kernels differ by device
            q, k, v = (head.detach().requires_grad_() for head in heads)
            with torch.enable_grad(), sdpa_kernel(_SDPA_BACKENDS):
                grouped = self._heads != self._kv_heads
                p_or_out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            out = p_or_out.detach()
        out = out.view(-1, self._heads, self._positions, self._config.head_size)
        a_RNH = out.transpose(1, 2).reshape(runs, -1, self._heads * self._config.head_size)
        return a_RNH, AttentionActivations(q, k, v, p_or_out)

    def _attend_backward(self, grad_RNH: Tensor, saved: AttentionActivations) -> HeadGradients:
        """Return the gradients of queries, keys and values."""
        q, k, v, p_or_out = saved
        grad_out = grad_RNH.view(-1, self._positions, self._heads, self._config.head_size).transpose(1, 2)
        if self._plain_attention:
            grads = functional.attend_backward(grad_out.reshape(q.shape), q, k, v, p_or_out)
            return grads.view(3, *grad_out.shape)
        with _repeatable(p_or_out, self._positions):
            return torch.autograd.grad(p_or_out, (q, k, v), grad_out.to(p_or_out.dtype))


def _repeatable(out: Tensor, positions: int) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the backward of SDPA's output `out` gives the same bits every time."""
    node = out.grad_fn
    if node is not None and node.name().startswith("Slice"):
        # heads that are no multiple of 8 wide are padded
        node = node.next_functions[0][0]
    # other backends repeat anyway, and `math` would be refused: its matmuls need CUBLAS_WORKSPACE_CONFIG
    by_flash = node is not None and node.name().startswith("ScaledDotProductFlashAttentionBackward")
    return _deterministic() if by_flash and positions > _ORDER_FREE_POSITIONS else contextlib.nullcontext()


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Let torch use deterministic algorithms only, without its filling of uninitialized memory."""
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def rotary_tables(config: ModelConfig, positions: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [T, D] of rotary embeddings; the sign of rotate-half is folded into the sine."""
    half = config.head_size // 2
    exponent_D = torch.arange(0, 2 * half, 2, dtype=torch.float) / (2 * half)
    angle_TD = torch.arange(positions)[:, None].float() * (1.0 / (config.rope_theta**exponent_D))
    sin_TD = angle_TD.sin()
    return angle_TD.cos().repeat(1, 2), torch.cat((-sin_TD, sin_TD), dim=-1)
