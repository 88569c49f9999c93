"""The operations of a step other than weight matmuls, each with a hand-written backward.

Without autograd, because its graph costs more than the arithmetic of a small model, and because a step without one
can be captured as a CUDA graph and compiled as it is. Each function takes and returns plain tensors.

Shapes: R runs, N tokens, F features, V vocabulary, B rows of T positions, A heads, D head size.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number as a cached scalar tensor: torch converts a plain number at every use."""
    if torch.compiler.is_compiling():
        return torch.full((), value, dtype=dtype, device=device)
    return cached_constant(value, dtype, device)


@lru_cache(maxsize=64)
def cached_constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number as a scalar tensor, the same one at every call; `cache_clear` forgets them all."""
    # it outlives the step that asks for it first
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def rms_norm(x_RNF: Tensor, weight_R1F: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019), x / sqrt(…) and 1 / sqrt(…)."""
    norm_RN1 = torch.linalg.vector_norm(x_RNF, dim=-1, keepdim=True)
    eps_0 = constant(eps, x_RNF.dtype, x_RNF.device)
    inverse_RN1 = torch.addcmul(eps_0, norm_RN1, norm_RN1, value=1 / x_RNF.shape[-1]).rsqrt_()
    normed_RNF = x_RNF * inverse_RN1
    return normed_RNF * weight_R1F, normed_RNF, inverse_RN1


def rms_norm_backward(
    grad_RNF: Tensor, normed_RNF: Tensor, inverse_RN1: Tensor, weight_R1F: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the input [R, N, F] and of the weight [R, F]."""
    product_RNF = grad_RNF * normed_RNF
    if grad_RNF.is_cpu and not torch.compiler.is_compiling():
        # half the time of a product and a sum
        dot_RN1 = torch.bmm(product_RNF, weight_R1F.mT)
    else:
        dot_RN1 = (product_RNF * weight_R1F).sum(-1, keepdim=True)
    grad_RNF = grad_RNF * weight_R1F
    grad_RNF = grad_RNF.addcmul_(normed_RNF, dot_RN1, value=-1 / normed_RNF.shape[-1]).mul_(inverse_RN1)
    return grad_RNF, product_RNF.sum(1)


def rotate(x: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Apply RoPE (Su et al. 2021) to heads [..., T, D], with the tables of `rotary_tables`."""
    return torch.addcmul(x * cos_TD, _halves_swapped(x), sin_TD)


def rotate_backward(grad: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Return the gradient of the heads before rotation."""
    return _halves_swapped(grad * sin_TD).addcmul_(grad, cos_TD)


def _halves_swapped(x: Tensor) -> Tensor:
    # each is twice as fast as the other on such a tensor
    if x.is_contiguous():
        return torch.roll(x, x.shape[-1] // 2, -1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1)


def split_heads(qkv_RNO: Tensor, positions: int, head_size: int, dtype: torch.dtype) -> Tensor:
    """Return the queries, keys and values [3, R·B, A, T, D] of the fused projection, in `dtype`, contiguous."""
    heads = qkv_RNO.view(-1, positions, 3, qkv_RNO.shape[-1] // (3 * head_size), head_size).permute(2, 0, 3, 1, 4)
    return heads.to(dtype, memory_format=torch.contiguous_format).contiguous()


def merge_heads(heads: Tensor) -> Tensor:
    """Return the gradient of the fused projection [R·B, T, 3·A·D] of that of its heads [3, R·B, A, T, D]."""
    return heads.permute(1, 3, 0, 2, 4).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask_TT: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(q · kᵀ / √D + mask) · v and the softmax, for heads [R·B·A, T, D]: faster than SDPA for short T."""
    p = torch.baddbmm(mask_TT, q, k.mT, alpha=q.shape[-1] ** -0.5).softmax(-1)
    return torch.bmm(p, v), p


def attend_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> Tensor:
    """Return the gradients of q, k and v, stacked."""
    grad_s = torch._softmax_backward_data(torch.bmm(grad, v.mT), p, -1, p.dtype)
    scale = q.shape[-1] ** -0.5
    if torch.compiler.is_compiling():
        grad_q = torch.baddbmm(q, grad_s, k, beta=0, alpha=scale)
        grad_k = torch.baddbmm(k, grad_s.mT, q, beta=0, alpha=scale)
        return torch.stack((grad_q, grad_k, torch.bmm(p.mT, grad)))
    grads = q.new_empty(3, *q.shape)
    grad_q, grad_k, grad_v = grads.unbind(0)
    torch.baddbmm(q, grad_s, k, beta=0, alpha=scale, out=grad_q)
    torch.baddbmm(k, grad_s.mT, q, beta=0, alpha=scale, out=grad_k)
    torch.bmm(p.mT, grad, out=grad_v)
    return grads


def gate(gate_up_RNF: Tensor, activation: str) -> Tensor:
    """Return act(gate) · up of the fused projection [R, N, 2F] in fp32 or wider; act is ReLU² or SiLU."""
    gate_RNF, up_RNF = gate_up_RNF.chunk(2, dim=-1)
    gate_RNF = gate_RNF.to(torch.promote_types(gate_RNF.dtype, torch.float32))
    if activation == "relu2":
        gate_RNF = F.relu(gate_RNF)
        return (gate_RNF * gate_RNF).mul_(up_RNF)
    return F.silu(gate_RNF).mul_(up_RNF)


def gate_backward(grad_RNF: Tensor, gate_up_RNF: Tensor, activation: str) -> Tensor:
    """Return the gradient of the fused projection [R, N, 2F]."""
    gate_RNF, up_RNF = gate_up_RNF.chunk(2, dim=-1)
    gate_RNF = gate_RNF.to(grad_RNF.dtype)
    if activation == "relu2":
        gate_RNF = F.relu(gate_RNF)
        gate_grad_RNF = grad_RNF * gate_RNF
        return _products_concatenated(gate_grad_RNF + gate_grad_RNF, up_RNF, gate_grad_RNF, gate_RNF)
    sigmoid_RNF = torch.sigmoid(gate_RNF)
    silu_RNF = gate_RNF * sigmoid_RNF
    # d silu(g) = σ + silu·(1 − σ)
    slope_RNF = torch.addcmul(sigmoid_RNF, silu_RNF, 1 - sigmoid_RNF)
    return _products_concatenated(grad_RNF * up_RNF, slope_RNF, grad_RNF, silu_RNF)


def _products_concatenated(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return a · b and c · d concatenated in the last dimension."""
    if torch.compiler.is_compiling():
        return torch.cat((a * b, c * d), dim=-1)
    result = a.new_empty(*a.shape[:-1], 2 * a.shape[-1])
    first, second = result.chunk(2, dim=-1)
    torch.mul(a, b, out=first)
    torch.mul(c, d, out=second)
    return result


def cross_entropy(logits_RNV: Tensor, targets_RN: Tensor) -> tuple[Tensor, Tensor]:
    """Return every token's loss [R, N] and its gradient, softmax − one-hot [R, N, V], in fp32 or wider.

    log Σ exp is read off the softmax: it is m − log p at the largest logit m, where p ≥ 1 / V cannot underflow.
    """
    targets_RN1 = targets_RN.unsqueeze(-1)
    p_RNV = torch.softmax(logits_RNV, -1, dtype=torch.promote_types(logits_RNV.dtype, torch.float32))
    gap_RN = logits_RNV.amax(-1).to(p_RNV.dtype) - logits_RNV.gather(-1, targets_RN1).squeeze(-1)
    loss_RN = gap_RN - p_RNV.amax(-1).log_()
    minus_one = constant(-1.0, p_RNV.dtype, p_RNV.device)
    p_RNV.scatter_add_(-1, targets_RN1, minus_one.expand(targets_RN1.shape))
    return loss_RN, p_RNV


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """Return cap · tanh(logits / cap), in fp32 or wider, in place where they are that (Gemma 2, arXiv 2408.00118)."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).div_(cap).tanh_().mul_(cap)


def soft_cap_backward_(grad: Tensor, capped: Tensor, cap: float) -> Tensor:
    """Multiply the gradient of capped logits y by dy/dx = 1 − (y / cap)², in place."""
    return grad.mul_(1 - (capped / cap).square_())


def normalize(x_RNF: Tensor, weights: Sequence[Tensor], eps: float) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Apply RMSNorms in sequence; return the result and, of each, (normed, 1 / RMS) for backward."""
    saved = []
    for weight_R1F in weights:
        x_RNF, normed_RNF, inverse_RN1 = rms_norm(x_RNF, weight_R1F, eps)
        saved.append((normed_RNF, inverse_RN1))
    return x_RNF, saved


def normalize_backward(
    grad_RNF: Tensor, saved: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of the input and of each weight [R, F]."""
    grads = []
    for (normed_RNF, inverse_RN1), weight_R1F in zip(reversed(saved), reversed(weights), strict=True):
        grad_RNF, grad_RF = rms_norm_backward(grad_RNF, normed_RNF, inverse_RN1, weight_R1F)
        grads.append(grad_RF)
    return grad_RNF, grads[::-1]
