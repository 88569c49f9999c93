"""The packed model with own Triton kernels in its training step; storage, evaluation and matmuls are those of its base.

A kernel takes each tensor once over what are many operations in the plain model: between two matmuls of a layer lies
one kernel forward and one backward. `parts` says which of them run; the others are computed as in the base.

Shapes: R runs, N tokens, H hidden, F features, V vocabulary, P blocks of tokens, S size of all norms of a run.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.kernels.cross_entropy import cross_entropy_
from bitnetctl.kernels.embedding import MAX_TOKENS, add_rows_, embedding_rows
from bitnetctl.kernels.norm import Activation, norm_quantize, norm_quantize_backward, token_blocks
from bitnetctl.kernels.rotary import rotate_, rotate_backward
from bitnetctl.kernels.ternary import TernaryTiles, ternary_
from bitnetctl.model.layer import HeadGradients, Layer, LayerActivations, LayerGradients, LayerWeights
from bitnetctl.model.matmul import Matmul, Operand, Precision, Quantization
from bitnetctl.model.packed import Normalize, PackedModel
from bitnetctl.model.parts import Part
from bitnetctl.model.quantization import BUILT_IN, Quantizers
from bitnetctl.model.storage import TABLES

_Heads = tuple[Tensor, Tensor, Tensor]


class FusedModel(PackedModel):
    """R runs of one shape, trained with own kernels in `parts`.

    Where "update" is one of them, `embedding_rows_RNH` and `slots_RV` hold the gradient of the embeddings after
    `backward`, by rows of the table that occur. Two tensors must then be kept up to date by whoever changes weights:
    `head_copy_RVH`, the head in the dtype of the precision, and `absolute_sums_RT`, where there is one.
    """

    def __init__(
        self,
        configs: Sequence[ModelConfig],
        vocab_size: int,
        seeds: Sequence[int],
        device: torch.device,
        *,
        precision: Precision = "fp32",
        compiled: bool = False,
        quantizers: Quantizers = BUILT_IN,
        parts: Collection[Part],
    ) -> None:
        super().__init__(
            configs, vocab_size, seeds, device, precision=precision, compiled=compiled, quantizers=quantizers
        )
        if ("weights" in parts and quantizers.weights) or ("layers" in parts and quantizers.activations):
            raise ValueError("custom quantizers have no own kernels")
        self.parts = frozenset(parts)
        config, runs = self.config, self.num_runs
        self.matmul.casts_sums = "gradients" in parts and self.device.type == "cuda"
        self.absolute_sums_RT: Tensor | None = None
        if "weights" in parts:
            self.tiles = TernaryTiles(self._matrix_segments(), self.device)
            self._ternary_RS = torch.empty_like(self._flat["matrices"], dtype=self.matmul.dtype)
            self._ternary_layers = {
                key: [Operand(layer_ROI) for layer_ROI in view_RLOI.unbind(1)]
                for key, view_RLOI in self._spec_views({**self._flat, "matrices": self._ternary_RS}).items()
                if key in self._matrices
            }
            if "update" in parts:
                self.absolute_sums_RT = torch.empty(runs, self.tiles.count, device=self.device)
        self._fused_layers: dict[int, FusedLayer] = {}
        self._partial_sums: dict[int, Tensor] = {}
        self.embedding_rows_RNH: Tensor | None = None
        self.slots_RV: Tensor | None = None
        self.head_copy_RVH: Tensor | None = None
        if "update" in parts:
            if not config.tie_word_embeddings:
                self.slots_RV = torch.full((runs, self._padded_vocab), -1, dtype=torch.int32, device=self.device)
            if self.matmul.dtype != torch.float32:
                self.head_copy_RVH = self._head(self._flat).to(self.matmul.dtype)

    def _matrix_segments(self) -> list[tuple[int, int]]:
        """Return (start, length) in the flat matrices of what shares a ternary scale."""
        segments, start = [], 0
        for key in self._matrices:
            layers, _, inputs = self.parameter_specs[key].shape
            for rows in self.segments(key) * layers:
                segments.append((start, rows * inputs))
                start += rows * inputs
        return segments

    def _quantized_matrices(self, quant: Quantization) -> dict[str, list[Operand]]:
        if "weights" not in self.parts:
            return super()._quantized_matrices(quant)
        ternary_(
            self._flat["matrices"],
            self._ternary_RS,
            self.tiles,
            quantizes=not quant.off,
            quant_lambda_R=quant.quant_lambda_R,
            sums_RT=self.absolute_sums_RT,
        )
        return self._ternary_layers

    def arithmetic(self, positions: int, *, for_backward: bool) -> tuple[Layer, Normalize]:
        if "layers" not in self.parts:
            return super().arithmetic(positions, for_backward=for_backward)
        if positions not in self._fused_layers:
            self._fused_layers[positions] = FusedLayer(self.config, self.matmul, positions, self.device)
        return self._fused_layers[positions], self._final_norm_fused

    def _layer_weights(self, matrices: Mapping[str, list[Operand]], tokens: int) -> list[LayerWeights]:
        weights = super()._layer_weights(matrices, tokens)
        if "layers" not in self.parts:
            return weights
        views = self._spec_views({**self._flat, "norms": self._norm_sums(tokens)})
        return [
            replace(each, partial_sums={key: views[key][:, :, layer] for key in each.norms})
            for layer, each in enumerate(weights)
        ]

    def _norm_sums(self, tokens: int) -> Tensor:
        """Return the memory of the partial sums of all norms' gradients: [R, P, S]."""
        if tokens not in self._partial_sums:
            runs, size = self._flat["norms"].shape
            blocks = token_blocks(runs, tokens)
            self._partial_sums[tokens] = torch.empty(runs, blocks, size, device=self.device)
        return self._partial_sums[tokens]

    def _final_norm_fused(
        self, x_RNH: Tensor, weights: Sequence[Tensor], eps: float
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the input of the head in the dtype of the precision, and (x, 1 / RMS) for backward."""
        normed = norm_quantize(x_RNH, weights, eps, dtype=self.matmul.dtype, quantizes=False)
        return normed.values_RNF, [(x_RNH, normed.inverse_KRN)]

    def _final_norm_backward(self, grad_RNH: Tensor, saved: list[tuple[Tensor, Tensor]]) -> Tensor:
        if "layers" not in self.parts:
            return super()._final_norm_backward(grad_RNH, saved)
        ((x_RNH, inverse_1RN),) = saved
        sums_RPS = self._norm_sums(x_RNH.shape[1])
        sums_RPH = self._spec_views({**self._flat, "norms": sums_RPS})["final_norm"]
        return norm_quantize_backward(
            grad_RNH,
            x_RNH,
            self.final_norm,
            inverse_1RN,
            [sums_RPH],
            dtype=torch.float32,
            scale=1 / x_RNH.shape[1],
        )

    def _write_norm_gradients(self, layers: Sequence[Mapping[str, Tensor]], tokens: int) -> None:
        if "layers" in self.parts:
            torch.sum(self._norm_sums(tokens), dim=1, out=self._flat_gradients["norms"])
        else:
            super()._write_norm_gradients(layers, tokens)

    def _scaled_gradient(self, grad_RNH: Tensor, tokens: int) -> Tensor:
        # the kernel of the last norm scales it
        return grad_RNH if "layers" in self.parts else super()._scaled_gradient(grad_RNH, tokens)

    def _head_operand(self) -> Tensor:
        return super()._head_operand() if self.head_copy_RVH is None else self.head_copy_RVH

    def _token_losses(self, logits_RNV: Tensor, targets_RN: Tensor, *, in_place: bool) -> tuple[Tensor, Tensor]:
        if "loss" not in self.parts:
            return super()._token_losses(logits_RNV, targets_RN, in_place=in_place)
        grad_RNV = logits_RNV if in_place else torch.empty_like(logits_RNV)
        return cross_entropy_(logits_RNV, targets_RN, self.vocab_size, grad_RNV), grad_RNV

    def _write_embedding_gradient(self, tokens_RN: Tensor, grad_RNH: Tensor) -> None:
        self.embedding_rows_RNH = None
        if "update" not in self.parts or tokens_RN.shape[1] > MAX_TOKENS:
            super()._write_embedding_gradient(tokens_RN, grad_RNH)
            return
        rows_RNH, is_first_RN = embedding_rows(grad_RNH, tokens_RN - self._offsets_R1, self.slots_RV)
        if self.config.tie_word_embeddings:
            table_RVH = self._head(self._flat_gradients)
            add_rows_(table_RVH, rows_RNH, tokens_RN - self._offsets_R1, is_first_RN)
        else:
            self.embedding_rows_RNH = rows_RNH

    def flat_tables(self) -> dict[str, tuple[Tensor, Tensor, int]]:
        """Return the flat parameters of all runs and their gradients [R, S], and how much of S is not padding."""
        vocabulary = self.vocab_size * self.config.hidden_size
        return {
            name: (flat_RS, self._flat_gradients[name], vocabulary if name in TABLES else flat_RS.shape[1])
            for name, flat_RS in self._flat.items()
        }

    def head_copy(self, name: str) -> Tensor | None:
        """Return the copy [R, S] that the update of a flat parameter writes too: of the head's, where there is one."""
        is_head = name == ("embed" if self.config.tie_word_embeddings else "head")
        return self.head_copy_RVH.flatten(1) if is_head and self.head_copy_RVH is not None else None

    def refresh_head_copy(self) -> None:
        """Make the copy of the head equal to it again, after its weights were changed from outside."""
        if self.head_copy_RVH is not None:
            self.head_copy_RVH.copy_(self._head(self._flat))


class FusedLayer(Layer):
    """A layer of own kernels between its matmuls and attention.

    In `LayerActivations.norms` it keeps, by matrix, the input of the norms and 1 / RMS of each: (x, [K, R, N]).
    """

    def __init__(self, config: ModelConfig, matmul: Matmul, positions: int, device: torch.device) -> None:
        super().__init__(config, matmul, positions, device)
        self._eps, self._activation = config.rms_norm_eps, config.activation

    def _before_attention(
        self, x_RNH: Tensor, weights: LayerWeights, quant: Quantization
    ) -> tuple[_Heads, LayerActivations]:
        saved = LayerActivations()
        qkv_RNO, _ = self._fused_linear("qkv", x_RNH, weights, quant, saved)
        rotate_(qkv_RNO, self._cos_TD, self._sin_TD, self._heads + self._kv_heads)
        heads = qkv_RNO.view(-1, self._positions, self._heads + 2 * self._kv_heads, self._config.head_size)
        dtype = self._matmul.dtype if self._on_gpu else x_RNH.dtype
        heads = heads.transpose(1, 2).to(dtype)
        query, key, value = heads.split([self._heads, self._kv_heads, self._kv_heads], dim=1)
        return (query, key, value), saved

    def _after_attention(
        self, x_RNH: Tensor, a_RNH: Tensor, weights: LayerWeights, quant: Quantization
    ) -> tuple[Tensor, LayerActivations]:
        saved = LayerActivations()
        o_RNH, _ = self._fused_linear("o", a_RNH, weights, quant, saved)
        gate_up_RNF, x_RNH = self._fused_linear("gate_up", x_RNH, weights, quant, saved, delta_RNF=o_RNH)
        down_RNH, _ = self._fused_linear("down", gate_up_RNF, weights, quant, saved, activation=self._activation)
        return x_RNH + down_RNH, saved

    def _after_attention_backward(
        self, grad_RNH: Tensor, saved: LayerActivations, weights: LayerWeights
    ) -> tuple[Tensor, Tensor, LayerGradients]:
        grads, low = LayerGradients(), self._matmul.dtype
        grad_RNF = self._fused_backward("down", grad_RNH, saved, weights, grads, dtype=low, activation=self._activation)
        # the next matmul backward takes it in the dtype of the precision
        low_RNH = torch.empty_like(grad_RNH, dtype=low) if low != torch.float32 else None
        grad_RNH = self._fused_backward(
            "gate_up", grad_RNF, saved, weights, grads, dtype=torch.float32, residual_RNF=grad_RNH, copy_RNF=low_RNH
        )
        attention_dtype = low if self._on_gpu else torch.float32
        grad_RNO = grad_RNH if low_RNH is None else low_RNH
        return grad_RNH, self._fused_backward("o", grad_RNO, saved, weights, grads, dtype=attention_dtype), grads

    def _before_attention_backward(
        self, grad_RNH: Tensor, grad_heads: HeadGradients, saved: LayerActivations, weights: LayerWeights
    ) -> tuple[Tensor, LayerGradients]:
        grads = LayerGradients()
        # SDPA's math backend, which a GPU takes for fp32 heads of 2, 6, 10 …, leaves the keys' transposed
        grad_query, grad_key, grad_value = (_with_contiguous_rows(grad) for grad in grad_heads)
        grad_qkv_RNO = rotate_backward(grad_query, grad_key, grad_value, self._cos_TD, self._sin_TD, grad_RNH.shape[0])
        grad_RNH = self._fused_backward(
            "qkv", grad_qkv_RNO, saved, weights, grads, dtype=torch.float32, residual_RNF=grad_RNH
        )
        return grad_RNH, grads

    def _fused_linear(
        self,
        matrix: str,
        x_RNI: Tensor,
        weights: LayerWeights,
        quant: Quantization,
        saved: LayerActivations,
        *,
        delta_RNF: Tensor | None = None,
        activation: Activation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Normalize, quantize and multiply; return the product and the residual stream that was normalized."""
        normed = norm_quantize(
            x_RNI,
            list(weights.norms_before(matrix).values()),
            self._eps,
            dtype=self._matmul.dtype,
            quantizes=not quant.off,
            quant_lambda_R=quant.quant_lambda_R,
            delta_RNF=delta_RNF,
            activation=activation,
        )
        saved.norms[matrix] = [(normed.stream_RNF, normed.inverse_KRN)]
        saved.inputs[matrix] = Operand(normed.values_RNF)
        return self._matmul.multiply(saved.inputs[matrix], weights.matrices[matrix]), normed.stream_RNF

    def _fused_backward(
        self,
        matrix: str,
        grad_RNO: Tensor,
        saved: LayerActivations,
        weights: LayerWeights,
        grads: LayerGradients,
        *,
        dtype: torch.dtype,
        activation: Activation | None = None,
        residual_RNF: Tensor | None = None,
        copy_RNF: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient of the input of a matrix's norms; write those of its norms, add the matrix to `grads`."""
        grad_RNO = self._matmul.cast(grad_RNO)
        grads.matrix_factors[matrix] = (grad_RNO, saved.inputs[matrix].values)
        norms = weights.norms_before(matrix)
        ((x_RNI, inverse_KRN),) = saved.norms[matrix]
        return norm_quantize_backward(
            torch.bmm(grad_RNO, weights.matrices[matrix].values),
            x_RNI,
            list(norms.values()),
            inverse_KRN,
            [weights.partial_sums[key] for key in norms],
            dtype=dtype,
            activation=activation,
            residual_RNF=residual_RNF,
            copy_RNF=copy_RNF,
        )


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
