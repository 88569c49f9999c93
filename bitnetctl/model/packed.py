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

from bitnetctl.config import ModelConfig, ParameterGroup
from bitnetctl.model import functional
from bitnetctl.model.layer import Layer, LayerActivations, LayerWeights, compile_if
from bitnetctl.model.matmul import Matmul, Operand, Precision, Quantization
from bitnetctl.model.parameters import num_parameters, parameter_specs
from bitnetctl.model.prepared import PreparedModel
from bitnetctl.model.quantization import ternary_codes

# flat parameters: the few large tensors that the optimizer updates, one for each group of weight decay
_FLAT: dict[ParameterGroup | None, str] = {"embeddings": "embed", "head": "head", None: "matrices", "norms": "norms"}
FLAT_GROUPS = {flat: group for group, flat in _FLAT.items()}
# those with a row for each token of the vocabulary, which may be padded
TABLES = ("embed", "head")
# matmuls on a GPU are faster in such multiples; the padding rows are never seen from outside
_VOCABULARY_MULTIPLE = {"cpu": 1, "cuda": 64}
# tokens, over all runs, whose logits are in a GPU's memory at once
_GPU_CHUNK = 4096


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


class PackedModel:
    """The weights of R runs of one shape, their forward pass and their gradients.

    `packed[name]` and `gradients[name]` have shape [R, *parameter_specs[name].shape] and are views of the flat
    parameters and their gradients; `num_parameters` counts those of one run. Run r is initialised from `seeds[r]`
    alone, so it has the same weights in every pack. A training step is `forward_for_backward`, then `head_loss`, then
    `backward`.
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
    ) -> None:
        self.config = configs[0]
        self.num_runs = len(configs)
        self.num_parameters = num_parameters(self.config, vocab_size)
        self.vocab_size = vocab_size
        self.device = device
        self.matmul = Matmul(precision, device)
        self.parameter_specs = parameter_specs(self.config, vocab_size)
        self._matrices = [key for key, spec in self.parameter_specs.items() if spec.is_matrix]
        multiple = _VOCABULARY_MULTIPLE[device.type]
        self._padded_vocab = -(-vocab_size // multiple) * multiple
        self.compiled = compiled
        self._quantize = compile_if(compiled, self._quantized_matrices)
        self._normalize = compile_if(compiled, functional.normalize)
        self._normalize_backward = compile_if(compiled, functional.normalize_backward)
        self._cross_entropy = compile_if(compiled, functional.cross_entropy)
        self._flat = self._allocate()
        self._flat_gradients = {key: torch.zeros_like(flat) for key, flat in self._flat.items()}
        self.packed = self._spec_views(self._flat)
        self.gradients = self._spec_views(self._flat_gradients)
        drawn: dict[tuple[object, ...], int] = {}
        for run, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
            source = drawn.setdefault((config.initialization, config.init_std, seed), run)
            if source == run:
                self._initialize(run, config, seed)
            else:
                # the arms of a seed start from equal weights, and drawing is slow
                for flat in self._flat.values():
                    flat[run] = flat[source]
        # views of every layer, made once: weights [R, 1, F] of the norms, gradients of the matrices
        norms = [key for key, spec in self.parameter_specs.items() if spec.group == "norms" and spec.per_layer]
        layers = range(self.config.num_layers)
        self._norm_layers = [{key: self.packed[key][:, layer].unsqueeze(1) for key in norms} for layer in layers]
        self._gradient_layers = [{key: self.gradients[key][:, layer] for key in self._matrices} for layer in layers]
        self._final_norm = [self.packed["final_norm"].unsqueeze(1)]
        self._layers: dict[tuple[int, bool], Layer] = {}
        self._offsets_R1 = torch.arange(self.num_runs, device=device).unsqueeze(-1) * self._padded_vocab

    def _allocate(self) -> dict[str, Tensor]:
        """Return the flat parameters of all runs [R, size], zero."""
        sizes: dict[str, int] = {}
        for spec in self.parameter_specs.values():
            name = _FLAT[spec.group]
            rows = self._padded_vocab if name in TABLES else spec.shape[0]
            sizes[name] = sizes.get(name, 0) + rows * math.prod(spec.shape[1:])
        return {name: torch.zeros(self.num_runs, size, device=self.device) for name, size in sizes.items()}

    def _spec_views(self, flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the packed tensors as views [..., *shape] of flat ones [..., size]."""
        views, starts = {}, dict.fromkeys(flat, 0)
        for key, spec in self.parameter_specs.items():
            name, size = _FLAT[spec.group], math.prod(spec.shape)
            views[key] = flat[name][..., starts[name] : starts[name] + size].unflatten(-1, spec.shape)
            starts[name] += size
        return views

    def flat_parameters(self, run: int) -> dict[str, Tensor]:
        """Return the flat parameters of a run with their `.grad`: what its optimizer updates, in the pack's memory.

        Few and large, since Adam works element by element and each tensor costs host time.
        """
        parameters = {}
        for name, flat in self._flat.items():
            size = self.vocab_size * self.config.hidden_size if name in TABLES else flat.shape[1]
            parameters[name] = flat[run, :size].requires_grad_()
            parameters[name].grad = self._flat_gradients[name][run, :size]
        return parameters

    def gradient_norms(self) -> Tensor:
        """Return the global norm of every run's gradients: [R]."""
        norms_R = [torch.linalg.vector_norm(gradient, dim=1) for gradient in self._flat_gradients.values()]
        norm_R: Tensor = torch.linalg.vector_norm(torch.stack(norms_R), dim=0)
        return norm_R

    def by_spec(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an optimizer's tensors, `flat parameter/key`, as `parameter spec/key`: their names in checkpoints."""
        result: dict[str, Tensor] = {}
        for key in dict.fromkeys(path.partition("/")[2] for path in state):
            tensors = {name: state[f"{name}/{key}"] for name in self._flat}
            is_scalar = all(tensor.dim() == 0 for tensor in tensors.values())
            views = {} if is_scalar else self._spec_views(tensors)
            for spec_name, spec in self.parameter_specs.items():
                tensor = tensors[_FLAT[spec.group]].clone() if is_scalar else views[spec_name].contiguous()
                result[f"{spec_name}/{key}"] = tensor
        return result

    def by_flat_parameter(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an optimizer's tensors, `parameter spec/key`, as `flat parameter/key`: the inverse of `by_spec`."""
        result = {}
        for key in dict.fromkeys(path.partition("/")[2] for path in state):
            parts: dict[str, list[Tensor]] = {name: [] for name in self._flat}
            for spec_name, spec in self.parameter_specs.items():
                parts[_FLAT[spec.group]].append(state[f"{spec_name}/{key}"])
            for name, tensors in parts.items():
                whole = tensors[0] if tensors[0].dim() == 0 else torch.cat([tensor.flatten() for tensor in tensors])
                result[f"{name}/{key}"] = whole
        return result

    def parameters(self, run: int) -> dict[str, Tensor]:
        """Return the parameters of a run by their names in `transformers`: views of its weights, with `.grad`."""
        parameters: dict[str, Tensor] = {}
        for key, spec in self.parameter_specs.items():
            gradients = spec.parameters(self.gradients[key][run])
            for (name, view), (_, gradient) in zip(spec.parameters(self.packed[key][run]), gradients, strict=True):
                parameters[name] = view.detach().requires_grad_()
                parameters[name].grad = gradient
        return parameters

    def segments(self, key: str) -> list[int]:
        """Return the numbers of rows of a matrix that share a ternary scale, as `ternary_scale` takes them."""
        spec = self.parameter_specs[key]
        if self.config.scale_group == "fused":
            return [spec.shape[1]]
        return [height for _, height in spec.blocks]

    def ternary_codes(self) -> dict[str, Tensor]:
        """Return the ternary values of every matrix as int8 [R, L, O, I]."""
        return {key: ternary_codes(self.packed[key], self.segments(key)) for key in self._matrices}

    def forward(self, tokens_RBT: Tensor, quant_lambdas: Sequence[float]) -> Tensor:
        """Return logits [R, N, V] of token ids [R, B, T]; `quant_lambdas` are the quantization λ of the runs."""
        return self.prepared(quant_lambdas).logits(tokens_RBT)

    @torch.no_grad()
    def prepared(self, quant_lambdas: Sequence[float]) -> PreparedModel:
        """Return the weights quantized and cast for evaluation, where many forward passes follow each other."""
        quant = self.quantization(quant_lambdas)
        # of the plain layer, whatever trains
        weights = PackedModel._layer_weights(self, self._quantized_matrices(quant), 0)
        head_RVH = self._head_operand()
        return PreparedModel(
            forward=lambda tokens_RBT: self.logits(self._hidden(tokens_RBT, quant, weights).hidden_RNH, head_RVH)
        )

    def forward_for_backward(self, tokens_RBT: Tensor, quantization: Quantization) -> SavedActivations:
        """Run up to the head and save the activations for backward."""
        return self._hidden(tokens_RBT, quantization)

    def logits(self, hidden_RNH: Tensor, head_RVH: Tensor | None = None) -> Tensor:
        """Return the logits [R, N, V] of the head, cast already or by default as it is now."""
        head_RVH = self._head_operand() if head_RVH is None else head_RVH
        return self.matmul.bmm(self.matmul.cast(hidden_RNH), head_RVH.mT)[..., : self.vocab_size]

    @torch.no_grad()
    def head_loss(
        self, hidden_RNH: Tensor, targets_RN: Tensor, override: Callable[[Tensor, Tensor], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return every run's mean cross-entropy [R] and its gradient w.r.t. `hidden_RNH`; write the head's gradient.

        Many tokens are taken in chunks, so that not all logits are in memory at once. `override(logits_RNV,
        grad_RNV)` may replace the gradient of a run in place by N times that of another objective; it gets all
        tokens at once.
        """
        matmul, tokens = self.matmul, hidden_RNH.shape[1]
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
            loss_RN, grad_RNV = self._token_losses(logits_RNV, targets_RN[:, part], in_place=override is None)
            losses.append(loss_RN)
            if override is not None:
                override(logits_RNV[..., : self.vocab_size], grad_RNV[..., : self.vocab_size])
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
        runs, _, positions = tokens_RBT.shape
        tokens_RN = tokens_RBT.reshape(runs, -1) + self._offsets_R1
        x_RNH = F.embedding(tokens_RN, self._flat["embed"].view(-1, self.config.hidden_size))
        # evaluation has other shapes and takes little time: it is not worth compiling
        for_backward = weights is None
        normalize = self._normalize if for_backward else functional.normalize
        layer = self._training_layer(positions) if for_backward else self._layer(positions, compiled=False)
        with self._layer_blas(tokens_RN):
            if weights is None:
                weights = self._layer_weights(self._quantize(quant), tokens_RN.shape[1])
            layers = []
            for layer_weights in weights:
                x_RNH, activations = layer.forward(x_RNH, layer_weights, quant)
                if for_backward:
                    layers.append(activations)
        hidden_RNH, final_norm = normalize(x_RNH, self._final_norm, self.config.rms_norm_eps)
        return SavedActivations(
            tokens_RN=tokens_RN,
            layer=layer,
            hidden_RNH=hidden_RNH,
            final_norm=final_norm,
            weights=weights,
            layers=layers,
        )

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
        grad_RNH, (final_RH,) = self._normalize_backward(grad_RNH, saved, self._final_norm)
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
        if not self.compiled:
            return contextlib.nullcontext()
        largest = max(math.prod(self.parameter_specs[key].shape[1:]) for key in self._matrices)
        return self.matmul.fastest_blas(tokens_RN.numel() * largest)

    def _training_layer(self, positions: int) -> Layer:
        return self._layer(positions, compiled=self.compiled)

    def _layer(self, positions: int, *, compiled: bool) -> Layer:
        key = (positions, compiled)
        if key not in self._layers:
            self._layers[key] = Layer(self.config, self.matmul, positions, self.device, compiled=compiled)
        return self._layers[key]

    def _initialize(self, run: int, config: ModelConfig, seed: int) -> None:
        """Draw the weights of a run from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        for key, spec in self.parameter_specs.items():
            target = self.packed[key][run]
            if spec.group == "norms":
                target.fill_(1.0)
                continue
            values = torch.empty(spec.shape)
            if config.initialization == "normal":
                values.normal_(0.0, config.init_std, generator=generator)
            elif spec.group == "embeddings":
                values.normal_(0.0, 1.0, generator=generator)
            else:
                bound = spec.shape[-1] ** -0.5
                values.uniform_(-bound, bound, generator=generator)
            target.copy_(values)

    def load(self, run: int, weights: Mapping[str, Tensor]) -> None:
        """Copy named weights into one run; raises KeyError for a missing name."""
        with torch.no_grad():
            for name, parameter in self.parameters(run).items():
                parameter.copy_(weights[name])
