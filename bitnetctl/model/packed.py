"""The packed BitNet transformer: R runs side by side in one set of tensors; it knows no optimizer.

Shapes: R runs, B rows, T positions of a row, N = B·T, H hidden, V vocabulary, L layers, O×I a matrix,
F feed-forward, A query heads, K key/value heads, D head size.

The layout is that of `BitNetForCausalLM` in `transformers` (BitNet b1.58 2B4T, arXiv 2504.12285): RMSNorm in front
of attention and feed-forward, SubLN before the output and down projections, rotary embeddings, no biases.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl.config import ModelConfig, ParameterGroup
from bitnetctl.model import functional
from bitnetctl.model.layer import Layer, LayerWeights, Saved, as_is, fused
from bitnetctl.model.matmul import Matmul, Operand, Precision, Quantization, write_product
from bitnetctl.model.parameters import num_parameters, parameter_specs
from bitnetctl.model.quantization import ternary_codes

# one tensor for each: what the optimizer updates, and what may be exempt from decay
_LEAVES: dict[ParameterGroup | None, str] = {"embeddings": "embed", "head": "head", None: "matrices", "norms": "norms"}

_TABLES = ("embed", "head")
# tokens of all runs whose logits lie on a GPU at once
_GPU_CHUNK = 4096


@dataclass(kw_only=True)
class SavedActivations:
    """What a forward pass leaves for the way back; `hidden_RNH` is what the head multiplies."""

    tokens_RN: Tensor
    layer: Layer
    hidden_RNH: Tensor
    final_saved: list[tuple[Tensor, Tensor]]
    weights: list[LayerWeights] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)


class PackedModel:
    """The weights of R runs of one shape, their forward pass and their gradients.

    `packed[name]` and `gradients[name]` have shape [R, *storages[name].shape] and are views of a few large tensors;
    run r is initialised from `seeds[r]` alone, so it has the same weights in every pack. A training step is
    `record`, then `head_loss`, then `backward`.
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
        pad_vocabulary_to: int | None = None,
    ) -> None:
        self.config = configs[0]
        self.vocab_size = vocab_size
        self.device = device
        self.matmul = Matmul(precision, device)
        self.parameter_specs = parameter_specs(self.config, vocab_size)
        # matrix products on a GPU want multiples of 64; the additional rows are never seen from outside
        multiple = pad_vocabulary_to or (64 if device.type == "cuda" else 1)
        self._padded_vocab = -(-vocab_size // multiple) * multiple
        self._compiled = compiled
        maybe = fused if compiled else as_is
        self._quantize = maybe(self._quantized_matrices)
        self._normalize = maybe(functional.normalize)
        self._normalize_backward = maybe(functional.normalize_backward)
        self._cross_entropy = maybe(functional.cross_entropy)
        self._flat = self._allocate(len(configs))
        self._flat_gradients = {key: torch.zeros_like(flat) for key, flat in self._flat.items()}
        self.packed = self._spec_views(self._flat)
        self.gradients = self._spec_views(self._flat_gradients)
        first: dict[tuple[object, ...], int] = {}
        for run, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
            alike = first.setdefault((config.initialization, config.init_std, seed), run)
            if alike == run:
                self._initialize(run, config, seed)
            else:
                # the arms of a seed begin alike, and drawing is slow
                for flat in self._flat.values():
                    flat[run] = flat[alike]
        # of every layer, made once: weights [R, 1, F] of the norms, gradients of the matrices
        self._norm_layers = [
            {key: norm_RF.unsqueeze(1) for key, norm_RF in norms.items()}
            for norms in self._layer_views(self.packed, norms=True)
        ]
        self._gradient_layers = self._layer_views(self.gradients, norms=False)
        self._layers: dict[tuple[int, bool], Layer] = {}
        self._offsets_R1 = torch.arange(len(configs), device=device).unsqueeze(-1) * self._padded_vocab

    def _allocate(self, runs: int) -> dict[str, Tensor]:
        sizes: dict[str, int] = {}
        for spec in self.parameter_specs.values():
            flat = _LEAVES[spec.group]
            rows = self._padded_vocab if flat in _TABLES else spec.shape[0]
            sizes[flat] = sizes.get(flat, 0) + rows * math.prod(spec.shape[1:])
        return {flat: torch.zeros(runs, size, device=self.device) for flat, size in sizes.items()}

    def _spec_views(self, flat_parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return every storage as a view [..., *shape] of the leaves [..., size]."""
        views, starts = {}, dict.fromkeys(flat_parameters, 0)
        for key, spec in self.parameter_specs.items():
            flat, size = _LEAVES[spec.group], math.prod(spec.shape)
            views[key] = flat_parameters[flat][..., starts[flat] : starts[flat] + size].unflatten(-1, spec.shape)
            starts[flat] += size
        return views

    def _layer_views(self, tensors: Mapping[str, Tensor], *, norms: bool) -> list[dict[str, Tensor]]:
        """Return for every layer its block of the norms, or of the matrices."""
        of_kind = {
            key: tensors[key].unbind(1)
            for key, spec in self.parameter_specs.items()
            if spec.per_layer and (spec.group == "norms") == norms
        }
        return [{key: blocks[layer] for key, blocks in of_kind.items()} for layer in range(self.config.num_layers)]

    @property
    def num_runs(self) -> int:
        """Number of runs in the pack."""
        return self._offsets_R1.shape[0]

    @property
    def num_parameters(self) -> int:
        """Number of parameters of one run."""
        return num_parameters(self.config, self.vocab_size)

    def flat_parameters(self, run: int) -> dict[str, Tensor]:
        """Return row `run` of the large tensors as leaves that share their memory, `.grad` included.

        They are what an optimizer updates: few, since updates are element by element and each tensor costs host time.
        """
        flat_parameters = {}
        for key, packed in self._flat.items():
            size = self.vocab_size * self.config.hidden_size if key in _TABLES else packed.shape[1]
            flat_parameters[key] = packed[run, :size].requires_grad_()
            flat_parameters[key].grad = self._flat_gradients[key][run, :size]
        return flat_parameters

    def flat_parameter_groups(self) -> dict[str, ParameterGroup | None]:
        """Return the parameter group of every leaf."""
        return {flat: group for group, flat in _LEAVES.items() if flat in self._flat}

    def gradient_norms(self) -> Tensor:
        """Return the global norm of every run's gradients: [R]."""
        norms_R = [torch.linalg.vector_norm(gradient, dim=1) for gradient in self._flat_gradients.values()]
        norm_R: Tensor = torch.linalg.vector_norm(torch.stack(norms_R), dim=0)
        return norm_R

    def by_spec(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an optimizer's tensors, `leaf/key`, as `spec/key`: how files name them, whatever memory is like."""
        result: dict[str, Tensor] = {}
        for key in dict.fromkeys(path.partition("/")[2] for path in state):
            tensors = {flat: state[f"{flat}/{key}"] for flat in self._flat}
            if all(tensor.dim() == 0 for tensor in tensors.values()):
                views = {name: tensors[_LEAVES[spec.group]].clone() for name, spec in self.parameter_specs.items()}
            else:
                views = self._spec_views(tensors)
            result |= {f"{name}/{key}": view.contiguous() for name, view in views.items()}
        return result

    def by_flat_parameter(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take back what `by_spec` returned."""
        result = {}
        for key in dict.fromkeys(path.partition("/")[2] for path in state):
            parts: dict[str, list[Tensor]] = {flat: [] for flat in self._flat}
            for name, spec in self.parameter_specs.items():
                parts[_LEAVES[spec.group]].append(state[f"{name}/{key}"])
            for flat, tensors in parts.items():
                whole = tensors[0] if tensors[0].dim() == 0 else torch.cat([tensor.flatten() for tensor in tensors])
                result[f"{flat}/{key}"] = whole
        return result

    def parameters(self, run: int) -> dict[str, Tensor]:
        """Return the parameters of a run by name: views of its leaves, `.grad` included."""
        parameters: dict[str, Tensor] = {}
        for key, spec in self.parameter_specs.items():
            gradients = spec.parameters(self.gradients[key][run])
            for (name, view), (_, gradient) in zip(spec.parameters(self.packed[key][run]), gradients, strict=True):
                parameters[name] = view.detach().requires_grad_()
                parameters[name].grad = gradient
        return parameters

    def segments(self, key: str) -> list[int]:
        """Heights of the blocks of a matrix that have a ternary scale of their own."""
        spec = self.parameter_specs[key]
        if self.config.scale_group == "fused":
            return [spec.shape[1]]
        return [height for _, height in spec.blocks]

    def ternary_codes(self) -> dict[str, Tensor]:
        """Return the ternary values of every matrix storage: int8, [R, L, O, I]."""
        return {
            key: ternary_codes(self.packed[key], self.segments(key))
            for key, spec in self.parameter_specs.items()
            if spec.is_matrix
        }

    def forward(self, tokens_RBT: Tensor, quant_lambdas: Sequence[float]) -> Tensor:
        """Return logits [R, N, V] of token ids [R, B, T]; `quant_lambdas` are the quantization λ of the runs."""
        return self.logits(self._run(tokens_RBT, self.quantization(quant_lambdas), keep=False).hidden_RNH)

    def forward_backward(self, tokens_RBT: Tensor, quant_lambdas: Sequence[float]) -> None:
        """Do a step's arithmetic for the time that it takes; of a compiled model the way forward, and that as it is.

        What is compiled is compiled for a number of threads, and rehearsals are there to find that.
        """
        if self._compiled:
            self.forward(tokens_RBT, quant_lambdas)
            return
        activations = self.record(tokens_RBT, self.quantization(quant_lambdas))
        self.backward(activations, self.head_loss(activations.hidden_RNH, tokens_RBT.flatten(1))[1])

    def record(self, tokens_RBT: Tensor, quantization: Quantization) -> SavedActivations:
        """Run up to the head and keep what the way back needs."""
        return self._run(tokens_RBT, quantization, keep=True)

    def logits(self, hidden_RNH: Tensor) -> Tensor:
        """Return logits [R, N, V]."""
        with self.matmul.scope(hidden_RNH.numel() * self.vocab_size):
            head_RVH = self.matmul.cast(self._head(self._flat))
            return torch.bmm(self.matmul.cast(hidden_RNH), head_RVH.mT)[..., : self.vocab_size]

    @torch.no_grad()
    def head_loss(
        self, hidden_RNH: Tensor, targets_RN: Tensor, claim: Callable[[Tensor, Tensor], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss of every run [R] and its gradient by `hidden_RNH`; write the head's gradient.

        Where there are more tokens than features the logits are made, used and dropped in chunks of tokens.
        `claim(logits_RNV, gradient_RNV)` may replace the gradient of a run by N times that of another objective; it
        sees all tokens at once.
        """
        matmul, tokens = self.matmul, hidden_RNH.shape[1]
        head_RVH, head_gradient_RVH = matmul.cast(self._head(self._flat)), self._head(self._flat_gradients)
        # every chunk adds to the whole gradient of the head, so few are better where memory is large
        chunk = max(self.config.hidden_size, _GPU_CHUNK // self.num_runs if self.device.type == "cuda" else 128)
        if claim is not None or tokens <= 2 * chunk:
            chunk = tokens
        loss_R, grads = torch.zeros(self.num_runs, device=self.device), []
        for start in range(0, tokens, chunk):
            part = slice(start, start + chunk)
            x_RNH = matmul.cast(hidden_RNH[:, part])
            with matmul.scope(x_RNH.numel() * self.vocab_size):
                logits_RNV = torch.bmm(x_RNH, head_RVH.mT)
            if self._padded_vocab > self.vocab_size:
                logits_RNV[..., self.vocab_size :] = -math.inf
            loss_RN, grad_RNV = self._cross_entropy(logits_RNV, targets_RN[:, part])
            loss_R += loss_RN.sum(-1) / tokens
            if claim is not None:
                claim(logits_RNV[..., : self.vocab_size], grad_RNV[..., : self.vocab_size])
            grad_RNV = matmul.cast(grad_RNV)
            with matmul.scope(x_RNH.numel() * self.vocab_size):
                # the mean's 1 / N goes to the narrow factor of each product, not to the logits
                grads.append(torch.bmm(grad_RNV, head_RVH).to(hidden_RNH.dtype).div_(tokens))
                if start == 0:
                    write_product(head_gradient_RVH, grad_RNV.mT, x_RNH / tokens)
                else:
                    head_gradient_RVH += torch.bmm(grad_RNV.mT, x_RNH / tokens)
        return loss_R, torch.cat(grads, dim=1) if len(grads) > 1 else grads[0]

    def _head(self, flat_parameters: Mapping[str, Tensor]) -> Tensor:
        table = flat_parameters["embed" if self.config.tie_word_embeddings else "head"]
        return table.view(self.num_runs, self._padded_vocab, self.config.hidden_size)

    def quantization(self, quant_lambdas: Sequence[float]) -> Quantization:
        """Return the strengths λ of the runs as a step takes them."""
        if all(quant_lambda == 1.0 for quant_lambda in quant_lambdas):
            return Quantization(off=False, quant_lambda_R=None)
        off = all(quant_lambda == 0.0 for quant_lambda in quant_lambdas)
        return Quantization(off=off, quant_lambda_R=None if off else torch.tensor(quant_lambdas, device=self.device))

    @torch.no_grad()
    def _run(self, tokens_RBT: Tensor, q: Quantization, *, keep: bool) -> SavedActivations:
        runs, _, positions = tokens_RBT.shape
        tokens_RN = tokens_RBT.reshape(runs, -1) + self._offsets_R1
        x_RNH = F.embedding(tokens_RN, self._flat["embed"].view(-1, self.config.hidden_size))
        # what is measured has many shapes and little time: it is not worth compiling
        quantize, normalize = (
            (self._quantize, self._normalize) if keep else (self._quantized_matrices, functional.normalize)
        )
        layer = self._layer(positions, compiled=self._compiled and keep)
        with self._layer_scope(tokens_RN):
            weights = self._layer_weights(quantize(q))
            saved = []
            for of_layer in weights:
                x_RNH, of_way_back = layer.forward(x_RNH, of_layer, q)
                if keep:
                    saved.append(of_way_back)
        final = [self.packed["final_norm"].unsqueeze(1)]
        hidden_RNH, final_saved = normalize(x_RNH, final, self.config.rms_norm_eps)
        return SavedActivations(
            tokens_RN=tokens_RN,
            layer=layer,
            hidden_RNH=hidden_RNH,
            final_saved=final_saved,
            weights=weights,
            saved=saved,
        )

    def _layer_weights(self, matrices: Mapping[str, Sequence[Operand]]) -> list[LayerWeights]:
        """Return what every layer multiplies and scales by."""
        return [
            LayerWeights(matrices={key: operands[layer] for key, operands in matrices.items()}, norms=norms)
            for layer, norms in enumerate(self._norm_layers)
        ]

    def _quantized_matrices(self, q: Quantization) -> dict[str, list[Operand]]:
        """Return the operands of every layer, quantized once for forward and backward."""
        return {
            key: self.matmul.weights(self.packed[key], self.segments(key), q)
            for key, spec in self.parameter_specs.items()
            if spec.is_matrix
        }

    @torch.no_grad()
    def backward(self, activations: SavedActivations, grad_RNH: Tensor) -> None:
        """Write the gradients of everything but the head, `grad_RNH` being that of `tape.hidden_RNH`.

        The head's must be there already where it is tied to the embeddings.
        """
        final = [self.packed["final_norm"].unsqueeze(1)]
        grad_RNH, (final_RH,) = self._normalize_backward(grad_RNH, activations.final_saved, final)
        self.gradients["final_norm"].copy_(final_RH)
        norms: list[dict[str, Tensor]] = []
        with self._layer_scope(activations.tokens_RN):
            for layer in range(self.config.num_layers - 1, -1, -1):
                grad_RNH, found = activations.layer.backward(
                    grad_RNH, activations.saved[layer], activations.weights[layer]
                )
                norms.append(found.norms)
                for key, (grad_RNO, x_RNI) in found.factors.items():
                    write_product(self._gradient_layers[layer][key], grad_RNO.mT, x_RNI)
        for key in self._norm_layers[0]:
            torch.stack([grads[key] for grads in reversed(norms)], dim=1, out=self.gradients[key])
        if not self.config.tie_word_embeddings:
            self._flat_gradients["embed"].zero_()
        table = self._flat_gradients["embed"].view(-1, self.config.hidden_size)
        tokens_N = activations.tokens_RN.flatten()
        if self.device.type == "cuda":
            # sorts, where index_add_ adds in the order of arrival
            table.index_put_((tokens_N,), grad_RNH.flatten(0, 1), accumulate=True)
        else:
            table.index_add_(0, tokens_N, grad_RNH.flatten(0, 1))

    def _layer_scope(self, tokens_RN: Tensor) -> contextlib.AbstractContextManager[None]:
        sizes = (spec.shape[1] * spec.shape[2] for spec in self.parameter_specs.values() if spec.is_matrix)
        return self.matmul.scope(tokens_RN.numel() * max(sizes))

    def _layer(self, positions: int, *, compiled: bool) -> Layer:
        key = (positions, compiled)
        if key not in self._layers:
            self._layers[key] = Layer(self.config, self.matmul, positions, self.device, compiled=compiled)
        return self._layers[key]

    def _initialize(self, run: int, config: ModelConfig, seed: int) -> None:
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
