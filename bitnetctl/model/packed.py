"""The packed BitNet transformer: the weights of R runs batched in one set of tensors, forward and backward.

The architecture is that of `BitNetForCausalLM` in `transformers` (BitNet b1.58 2B4T, arXiv 2504.12285): RMSNorm in
front of attention and feed-forward, SubLN before the output and down projections, rotary embeddings, no biases.

Shapes: R runs, B rows, T positions of a row, N = B·T tokens, H hidden, V vocabulary, L layers, O×I a matrix.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.model import functional
from bitnetctl.model.layer import Layer, LayerActivations, LayerWeights, compile_if
from bitnetctl.model.matmul import Matmul, Operand, Precision, Quantization
from bitnetctl.model.parts import Part
from bitnetctl.model.quantization import BUILT_IN, Quantizers, custom_codes, ternary_codes, ternary_scale
from bitnetctl.model.storage import PackedParameters

# tokens, over all runs, whose logits are in a GPU's memory at once
_GPU_CHUNK = 4096

Normalize = Callable[[Tensor, Sequence[Tensor], float], tuple[Tensor, list[tuple[Tensor, Tensor]]]]


@dataclass(kw_only=True)
class SavedActivations:
    """What backward needs of a forward pass: by layer its activations and quantized weights.

    `hidden_RNH` is the input of the head. `tokens_RN` index the embeddings of all runs, concatenated.
    """

    tokens_RN: Tensor
    layer: Layer
    hidden_RNH: Tensor
    final_norm: list[tuple[Tensor, Tensor]]
    weights: list[LayerWeights]
    layers: list[LayerActivations]


class PackedModel(PackedParameters):
    """The weights of R runs of one shape, their forward pass and their gradients; `parts` have own kernels.

    A training step is `forward_for_backward`, then `head_loss`, then `backward`.
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
    ) -> None:
        super().__init__(configs, vocab_size, seeds, device)
        self.parts: frozenset[Part] = frozenset()
        self.matmul = Matmul(precision, device, quantizers)
        self.compiled = compiled
        # what a plug-in computes cannot be traced
        self._compiles_layers = compiled and quantizers.activations is None
        self._quantize = compile_if(compiled and quantizers.weights is None, self._quantized_matrices)
        self._normalize = compile_if(compiled, functional.normalize)
        self._normalize_backward = compile_if(compiled, functional.normalize_backward)
        self._cross_entropy = compile_if(compiled, functional.cross_entropy)
        # views of every layer, made once: weights [R, 1, F] of the norms, gradients of the matrices
        norms = [key for key, spec in self.parameter_specs.items() if spec.group == "norms" and spec.per_layer]
        layers = range(self.config.num_layers)
        self._norm_layers = [{key: self.packed[key][:, layer].unsqueeze(1) for key in norms} for layer in layers]
        self._gradient_layers = [{key: self.gradients[key][:, layer] for key in self._matrices} for layer in layers]
        self.final_norm = [self.packed["final_norm"].unsqueeze(1)]
        self._layers: dict[tuple[int, bool], Layer] = {}
        self._offsets_R1 = torch.arange(self.num_runs, device=device).unsqueeze(-1) * self._padded_vocab

    def segments(self, key: str) -> list[int]:
        """Return the numbers of rows of a matrix that share a ternary scale, as `ternary_scale` takes them."""
        spec = self.parameter_specs[key]
        if self.config.scale_group == "fused":
            return [spec.shape[1]]
        return [height for _, height in spec.blocks]

    def ternary_codes(self) -> dict[str, Tensor]:
        """Return the ternary values of every matrix as int8 [R, L, O, I]."""
        if self.matmul.quantizers.weights is not None:
            return {key: self._codes_and_scale(key)[0] for key in self._matrices}
        return {key: ternary_codes(self.packed[key], self.segments(key)) for key in self._matrices}

    def quantized(self, run: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return int8 codes [O, I] and scale of a run's matrices by their names in `transformers`.

        The scale is [O, groups of inputs]. Codes · scale are the weights that the forward pass multiplies at λ 1,
        before they are cast to its precision.
        """
        result = {}
        for key in self._matrices:
            codes_RLOI, scale_RLOG = self._codes_and_scale(key)
            names = self.parameter_specs[key].parameters(codes_RLOI[run])
            scales = self.parameter_specs[key].parameters(scale_RLOG[run])
            for (name, codes_OI), (_, scale_OG) in zip(names, scales, strict=True):
                result[name] = codes_OI, scale_OG
        return result

    @torch.no_grad()
    def _codes_and_scale(self, key: str) -> tuple[Tensor, Tensor]:
        """Return the codes of a matrix as int8 [R, L, O, I] and their scale [R, L, O, groups of inputs]."""
        weight_RLOI, segments = self.packed[key], self.segments(key)
        quantizers = self.matmul.quantizers
        if quantizers.weights is None:
            return ternary_codes(weight_RLOI, segments), ternary_scale(weight_RLOI, segments).reciprocal_()
        parts = list(custom_codes(weight_RLOI, segments, quantizers.codes or quantizers.weights))
        groups = math.lcm(*(scale.shape[-1] for _, _, scale in parts))
        scales_RLOG = [
            scale.repeat_interleave(groups // scale.shape[-1], dim=-1).expand(-1, -1, codes_RLOI.shape[2], -1)
            for _, codes_RLOI, scale in parts
        ]
        return torch.cat([codes_RLOI.to(torch.int8) for _, codes_RLOI, _ in parts], 2), torch.cat(scales_RLOG, 2)

    def forward(self, tokens_RBT: Tensor, quant_lambdas: Sequence[float]) -> Tensor:
        """Return logits [R, N, V] of token ids [R, B, T]; `quant_lambdas` are the quantization λ of the runs."""
        return self.prepared(quant_lambdas)(tokens_RBT)

    @torch.no_grad()
    def prepared(self, quant_lambdas: Sequence[float]) -> "PreparedModel":
        """Return `forward` with the weights quantized and cast once, for many passes; updates may not reach it."""
        quant = self.quantization(quant_lambdas)
        weights = PackedModel._layer_weights(self, self._quantized_matrices(quant), 0)
        return PreparedModel(model=self, quant=quant, weights=weights, head_RVH=self._head_operand())

    def forward_for_backward(self, tokens_RBT: Tensor, quantization: Quantization) -> SavedActivations:
        """Run up to the head and save the activations for backward."""
        return self._hidden(tokens_RBT, quantization)

    def logits(self, hidden_RNH: Tensor, head_RVH: Tensor | None = None) -> Tensor:
        """Return the logits [R, N, V] of the head, cast already or by default as it is now."""
        head_RVH = self._head_operand() if head_RVH is None else head_RVH
        logits_RNV = self.matmul.bmm(self.matmul.cast(hidden_RNH), head_RVH.mT)[..., : self.vocab_size]
        cap = self.config.logit_soft_cap
        return logits_RNV if cap is None else functional.soft_cap(logits_RNV, cap)

    @torch.no_grad()
    def head_loss(
        self, hidden_RNH: Tensor, targets_RN: Tensor, override: Callable[[Tensor, Tensor], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return every run's mean cross-entropy [R] and its gradient w.r.t. `hidden_RNH`; write the head's gradient.

        Many tokens are taken in chunks, so that not all logits are in memory at once. `override(logits_RNV,
        grad_RNV)`, of capped logits, may replace the gradient of a run in place by N times that of another objective;
        it gets all tokens at once.
        """
        matmul, tokens, cap = self.matmul, hidden_RNH.shape[1], self.config.logit_soft_cap
        head_RVH, head_gradient_RVH = self._head_operand(), self._head(self._flat_gradients)
        # every chunk reads and writes the whole gradient of the head, so few large chunks are faster
        chunk = max(self.config.hidden_size, _GPU_CHUNK // self.num_runs if self.device.type == "cuda" else 128)
        if override is not None or tokens <= 2 * chunk:
            chunk = tokens
        losses, grads = [], []
        for start in range(0, tokens, chunk):
            part = slice(start, start + chunk)
            x_RNH = matmul.cast(hidden_RNH[:, part])
            logits_RNV = matmul.bmm(x_RNH, head_RVH.mT)
            if cap is not None:
                logits_RNV = functional.soft_cap(logits_RNV, cap)
            is_read = override is not None or cap is not None
            loss_RN, grad_RNV = self._token_losses(logits_RNV, targets_RN[:, part], in_place=not is_read)
            losses.append(loss_RN)
            # without the padding, whose logits are -inf
            logits_RNV, unpadded_RNV = logits_RNV[..., : self.vocab_size], grad_RNV[..., : self.vocab_size]
            if override is not None:
                override(logits_RNV, unpadded_RNV)
            if cap is not None:
                functional.soft_cap_backward_(unpadded_RNV, logits_RNV, cap)
            grad_RNV = matmul.cast(grad_RNV)
            # the mean's 1 / N is applied to the narrow side of each matmul, not to the logits
            grads.append(self._scaled_gradient(matmul.bmm(grad_RNV, head_RVH), tokens))
            if start == 0:
                matmul.multiply_into(head_gradient_RVH, grad_RNV.mT, x_RNH / tokens)
            else:
                head_gradient_RVH += matmul.bmm(grad_RNV.mT, x_RNH / tokens)
        if len(losses) > 1:
            losses, grads = [torch.cat(losses, dim=1)], [torch.cat(grads, dim=1)]
        return losses[0].mean(-1), grads[0]

    def _scaled_gradient(self, grad_RNH: Tensor, tokens: int) -> Tensor:
        """Return the gradient of the mean loss of `tokens` tokens from that of their sum, as `backward` takes it."""
        return grad_RNH.to(self._flat["embed"].dtype).div_(tokens)

    def _head_operand(self) -> Tensor:
        """Return the head [R, V, H], padded, in the dtype of the precision."""
        return self.matmul.cast(self._head(self._flat))

    def _token_losses(self, logits_RNV: Tensor, targets_RN: Tensor, *, in_place: bool) -> tuple[Tensor, Tensor]:
        """Return every token's loss [R, N] and its gradient [R, N, V]; `in_place`: the logits may be overwritten."""
        if self._padded_vocab > self.vocab_size:
            logits_RNV[..., self.vocab_size :] = -math.inf
        return self._cross_entropy(logits_RNV, targets_RN)

    def _head(self, flat: Mapping[str, Tensor]) -> Tensor:
        """Return the head [R, V, H], padded, of the flat parameters or of their gradients."""
        table = flat["embed" if self.config.tie_word_embeddings else "head"]
        return table.view(self.num_runs, self._padded_vocab, self.config.hidden_size)

    def quantization(self, quant_lambdas: Sequence[float]) -> Quantization:
        """Return the λ of the runs as the `Quantization` of a step."""
        if all(quant_lambda == 1.0 for quant_lambda in quant_lambdas):
            return Quantization(off=False, quant_lambda_R=None)
        off = all(quant_lambda == 0.0 for quant_lambda in quant_lambdas)
        return Quantization(off=off, quant_lambda_R=None if off else torch.tensor(quant_lambdas, device=self.device))

    @torch.no_grad()
    def _hidden(
        self, tokens_RBT: Tensor, quant: Quantization, weights: list[LayerWeights] | None = None
    ) -> SavedActivations:
        """Run up to the head; activations are saved for backward unless `weights` are prepared ones."""
        tokens_RN, x_RNH = self.embedded(tokens_RBT)
        for_backward = weights is None
        layer, normalize = self.arithmetic(tokens_RBT.shape[-1], for_backward=for_backward)
        with self._layer_blas(tokens_RN):
            if weights is None:
                weights = self._layer_weights(self._quantize(quant), tokens_RN.shape[1])
            layers = []
            for layer_weights in weights:
                x_RNH, activations = layer.forward(x_RNH, layer_weights, quant)
                if for_backward:
                    layers.append(activations)
        hidden_RNH, final_norm = normalize(x_RNH, self.final_norm, self.config.rms_norm_eps)
        return SavedActivations(
            tokens_RN=tokens_RN,
            layer=layer,
            hidden_RNH=hidden_RNH,
            final_norm=final_norm,
            weights=weights,
            layers=layers,
        )

    def embedded(self, tokens_RBT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows [R, N] of the embeddings of all runs, concatenated, that tokens index, and these rows."""
        tokens_RN = tokens_RBT.flatten(1) + self._offsets_R1
        return tokens_RN, F.embedding(tokens_RN, self._flat["embed"].view(-1, self.config.hidden_size))

    def _layer_weights(self, matrices: Mapping[str, list[Operand]], tokens: int) -> list[LayerWeights]:
        """Return the weights of every layer, as it takes them for `tokens` tokens of a run."""
        return [
            LayerWeights(matrices={key: operands[index] for key, operands in matrices.items()}, norms=norms)
            for index, norms in enumerate(self._norm_layers)
        ]

    def _quantized_matrices(self, quant: Quantization) -> dict[str, list[Operand]]:
        """Return the operands of every layer by matrix."""
        return {key: self.matmul.weights(self.packed[key], self.segments(key), quant) for key in self._matrices}

    @torch.no_grad()
    def backward(self, activations: SavedActivations, grad_RNH: Tensor) -> None:
        """Write the gradients of all weights but the head's, from that of `activations.hidden_RNH`.

        Where the head is tied to the embeddings, `head_loss` must have written its gradient: this adds to it.
        """
        grad_RNH = self._final_norm_backward(grad_RNH, activations.final_norm)
        norms: list[dict[str, Tensor]] = []
        with self._layer_blas(activations.tokens_RN):
            for layer in range(self.config.num_layers - 1, -1, -1):
                grad_RNH, grads = activations.layer.backward(
                    grad_RNH, activations.layers[layer], activations.weights[layer]
                )
                norms.append(grads.norms)
                for key, (grad_RNO, x_RNI) in grads.matrix_factors.items():
                    self.matmul.multiply_into(self._gradient_layers[layer][key], grad_RNO.mT, x_RNI)
        self._write_norm_gradients(norms[::-1], grad_RNH.shape[1])
        self._write_embedding_gradient(activations.tokens_RN, grad_RNH)

    def _final_norm_backward(self, grad_RNH: Tensor, saved: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the gradient of the residual stream; write that of the last norm."""
        grad_RNH, (final_RH,) = self._normalize_backward(grad_RNH, saved, self.final_norm)
        self.gradients["final_norm"].copy_(final_RH)
        return grad_RNH

    def _write_norm_gradients(self, layers: Sequence[Mapping[str, Tensor]], tokens: int) -> None:
        """Write the gradients of all norms but the last, given by layer."""
        for key in self._norm_layers[0]:
            torch.stack([gradients[key] for gradients in layers], dim=1, out=self.gradients[key])

    def _write_embedding_gradient(self, tokens_RN: Tensor, grad_RNH: Tensor) -> None:
        """Write the gradient of the embeddings, or add it to the head's where they are tied."""
        if not self.config.tie_word_embeddings:
            self._flat_gradients["embed"].zero_()
        table = self._flat_gradients["embed"].view(-1, self.config.hidden_size)
        tokens_N = tokens_RN.flatten()
        if self.device.type == "cuda":
            # deterministic: it sorts, where index_add_ adds atomically in any order
            table.index_put_((tokens_N,), grad_RNH.flatten(0, 1), accumulate=True)
        else:
            table.index_add_(0, tokens_N, grad_RNH.flatten(0, 1))

    def _layer_blas(self, tokens_RN: Tensor) -> contextlib.AbstractContextManager[None]:
        """Return the BLAS context of compiled layers, chosen by the largest matmul in them; others choose for each."""
        if not self._compiles_layers:
            return contextlib.nullcontext()
        largest = max(math.prod(self.parameter_specs[key].shape[1:]) for key in self._matrices)
        return self.matmul.fastest_blas(tokens_RN.numel() * largest)

    def arithmetic(self, positions: int, *, for_backward: bool) -> tuple[Layer, Normalize]:
        """Return the layer for rows of `positions` tokens, and the last norm."""
        # evaluation has other shapes and takes little time: it is not worth compiling
        if for_backward:
            return self._layer(positions, compiled=self._compiles_layers), self._normalize
        return self._layer(positions, compiled=False), functional.normalize

    def _layer(self, positions: int, *, compiled: bool) -> Layer:
        key = (positions, compiled)
        if key not in self._layers:
            self._layers[key] = Layer(self.config, self.matmul, positions, self.device, compiled=compiled)
        return self._layers[key]


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """The forward pass of a model whose weights are quantized and cast already; `weights` by layer."""

    model: PackedModel
    quant: Quantization
    weights: list[LayerWeights]
    head_RVH: Tensor

    def __call__(self, tokens_RBT: Tensor) -> Tensor:
        """Return logits [R, N, V] of token ids [R, B, T]."""
        return self.logits(self.model._hidden(tokens_RBT, self.quant, self.weights).hidden_RNH)

    def logits(self, hidden_RNH: Tensor) -> Tensor:
        """Return the logits [R, N, V] of the head."""
        return self.model.logits(hidden_RNH, self.head_RVH)
