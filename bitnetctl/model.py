"""The packed BitNet transformer: R runs side by side in one set of tensors; it knows no optimizer.

Shapes: R runs, B rows, T positions of a row, N = B·T, H hidden, V vocabulary, L layers, O×I a matrix,
F feed-forward, A query heads, K key/value heads, D head size.

The layout is that of `BitNetForCausalLM` in `transformers` (BitNet b1.58 2B4T, arXiv 2504.12285): RMSNorm in front
of attention and feed-forward, SubLN before the output and down projections, rotary embeddings, no biases.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl import kernels
from bitnetctl.config import ModelConfig, ParameterGroup
from bitnetctl.products import Operand, Precision, Products, Quantization
from bitnetctl.quant import ternary_codes


@dataclass(frozen=True, kw_only=True)
class Storage:
    """One packed tensor of the model and the named parameters that are blocks of it.

    `shape` is without the run dimension: [L, O, I] for matrices, [L, F] for norms, [V, H] for tables.
    `blocks` are the projections fused in the rows: name (with `{layer}`) and height; the heights sum to O.
    """

    shape: tuple[int, ...]
    blocks: tuple[tuple[str, int], ...]
    group: ParameterGroup | None = None
    per_layer: bool = True

    @property
    def is_matrix(self) -> bool:
        """Whether it is quantized."""
        return self.group is None

    def parameters(self, row: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the view of every parameter in a run's row of this storage, or of its gradient."""
        for layer, rows in enumerate(row.unbind(0) if self.per_layer else (row,)):
            start = 0
            for name, height in self.blocks:
                yield name.format(layer=layer), rows[start : start + height]
                start += height


def storages(config: ModelConfig, vocab_size: int) -> dict[str, Storage]:
    """Return the packed tensors of a model by name; parameter names are those of `transformers`."""
    layers, hidden, ffn = config.num_layers, config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_size
    kv = config.num_key_value_heads * config.head_size
    layer, attention, mlp = "model.layers.{layer}.", "self_attn.", "mlp."

    def matrix(inputs: int, *blocks: tuple[str, int]) -> Storage:
        named = tuple((f"{layer}{name}.weight", height) for name, height in blocks)
        return Storage(shape=(layers, sum(height for _, height in blocks), inputs), blocks=named)

    def norm(name: str, width: int) -> Storage:
        return Storage(shape=(layers, width), blocks=((f"{layer}{name}.weight", width),), group="norms")

    def table(name: str, group: ParameterGroup) -> Storage:
        return Storage(shape=(vocab_size, hidden), blocks=((name, vocab_size),), group=group, per_layer=False)

    result = {"embed": table("model.embed_tokens.weight", "embeddings")}
    if not config.tie_word_embeddings:
        result["head"] = table("lm_head.weight", "head")
    result |= {
        "qkv": matrix(hidden, (f"{attention}q_proj", heads), (f"{attention}k_proj", kv), (f"{attention}v_proj", kv)),
        "o": matrix(heads, (f"{attention}o_proj", hidden)),
        "gate_up": matrix(hidden, (f"{mlp}gate_proj", ffn), (f"{mlp}up_proj", ffn)),
        "down": matrix(ffn, (f"{mlp}down_proj", hidden)),
        "input_norm": norm("input_layernorm", hidden),
        "attn_sub_norm": norm(f"{attention}attn_sub_norm", heads),
        "post_norm": norm("post_attention_layernorm", hidden),
        "ffn_sub_norm": norm(f"{mlp}ffn_sub_norm", ffn),
    }
    if config.inner_norms:
        result["qkv_norm"] = norm(f"{attention}qkv_norm", hidden)
        result["gate_up_norm"] = norm(f"{mlp}gate_up_norm", hidden)
    result["final_norm"] = Storage(
        shape=(hidden,), blocks=(("model.norm.weight", hidden),), group="norms", per_layer=False
    )
    return result


def num_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Number of parameters of one run."""
    return sum(math.prod(storage.shape) for storage in storages(config, vocab_size).values())


# one tensor for each: what the optimizer updates, and what may be exempt from decay
_LEAVES: dict[ParameterGroup | None, str] = {"embeddings": "embed", "head": "head", None: "matrices", "norms": "norms"}

# up to this many positions plain products beat the fused attention of the CPU
_SHORT = 64
_TABLES = ("embed", "head")


@dataclass(kw_only=True)
class _Layer:
    """What a layer's way back needs."""

    input_saved: list[tuple[Tensor, Tensor]]
    qkv_input: Operand
    attention: tuple[Tensor, ...]
    sub_saved: list[tuple[Tensor, Tensor]]
    o_input: Operand
    post_saved: list[tuple[Tensor, Tensor]]
    gate_up_input: Operand
    gate_up_RNF: Tensor
    ffn_saved: list[tuple[Tensor, Tensor]]
    down_input: Operand


@dataclass(kw_only=True)
class Tape:
    """What a forward pass leaves for the way back; `hidden_RNH` is what the head multiplies."""

    tokens_RN: Tensor
    positions: int
    hidden_RNH: Tensor
    final_saved: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    weights: Mapping[str, Sequence[Operand]] = field(default_factory=dict)
    layers: list[_Layer] = field(default_factory=list)


class _Ops:
    """What is not a matrix product, each as one function, so that a compiler may fuse it."""

    def __init__(self, config: ModelConfig, products: Products, *, compiled: bool) -> None:
        self._config = config
        self._products = products

        def fused(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False) if compiled else function

        self.enter = fused(self._enter)
        self.normalize = fused(functools.partial(kernels.normalize, eps=config.rms_norm_eps))
        self.normalize_backward = fused(kernels.normalize_backward)
        self.gate = fused(functools.partial(kernels.gate, activation=config.activation))
        self.gate_backward = fused(functools.partial(kernels.gate_backward, activation=config.activation))
        self.rotate, self.rotate_backward = fused(kernels.rotate), fused(kernels.rotate_backward)
        self.cross_entropy = fused(kernels.cross_entropy)
        self.weights = fused(products.weights)

    def _enter(
        self, x_RNF: Tensor, norms: tuple[Tensor, ...], q: Quantization
    ) -> tuple[Operand, list[tuple[Tensor, Tensor]]]:
        """Normalize and quantize what a matrix multiplies."""
        normed_RNF, saved = kernels.normalize(x_RNF, norms, self._config.rms_norm_eps)
        return self._products.activations(normed_RNF, q), saved


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
        self.products = Products(precision, device)
        self.storages = storages(self.config, vocab_size)
        # matrix products on a card want multiples of 64; the additional rows are never seen from outside
        multiple = pad_vocabulary_to or (64 if device.type == "cuda" else 1)
        self._padded_vocab = -(-vocab_size // multiple) * multiple
        self._ops = _Ops(self.config, self.products, compiled=compiled)
        self._leaves = self._allocate(len(configs))
        self._leaf_gradients = {key: torch.zeros_like(leaf) for key, leaf in self._leaves.items()}
        self.packed = self._storage_views(self._leaves)
        self.gradients = self._storage_views(self._leaf_gradients)
        for run, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
            self._initialize(run, config, seed)
        # per layer, made once: [R, 1, F] weights of the norms, gradients of the matrices
        self._norm_layers = self._layer_views(self.packed, norms=True)
        self._gradient_layers = self._layer_views(self.gradients, norms=False)
        self._masks: dict[int, Tensor] = {}
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._offsets_R1 = torch.arange(len(configs), device=device).unsqueeze(-1) * self._padded_vocab

    def _allocate(self, runs: int) -> dict[str, Tensor]:
        sizes: dict[str, int] = {}
        for storage in self.storages.values():
            leaf = _LEAVES[storage.group]
            rows = self._padded_vocab if leaf in _TABLES else storage.shape[0]
            sizes[leaf] = sizes.get(leaf, 0) + rows * math.prod(storage.shape[1:])
        return {leaf: torch.zeros(runs, size, device=self.device) for leaf, size in sizes.items()}

    def _storage_views(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return every storage as a view [..., *shape] of the leaves [..., size]."""
        views, starts = {}, dict.fromkeys(leaves, 0)
        for key, storage in self.storages.items():
            leaf, size = _LEAVES[storage.group], math.prod(storage.shape)
            views[key] = leaves[leaf][..., starts[leaf] : starts[leaf] + size].unflatten(-1, storage.shape)
            starts[leaf] += size
        return views

    def _layer_views(self, tensors: Mapping[str, Tensor], *, norms: bool) -> dict[str, list[Tensor]]:
        return {
            key: [layer.unsqueeze(1) if norms else layer for layer in tensors[key].unbind(1)]
            for key, storage in self.storages.items()
            if storage.per_layer and (storage.group == "norms") == norms
        }

    @property
    def num_runs(self) -> int:
        """Number of runs in the pack."""
        return self._offsets_R1.shape[0]

    @property
    def num_parameters(self) -> int:
        """Number of parameters of one run."""
        return num_parameters(self.config, self.vocab_size)

    def leaves(self, run: int) -> dict[str, Tensor]:
        """Return row `run` of the large tensors as leaves that share their memory, `.grad` included.

        They are what an optimizer updates: few, since updates are element by element and each tensor costs host time.
        """
        leaves = {}
        for key, packed in self._leaves.items():
            size = self.vocab_size * self.config.hidden_size if key in _TABLES else packed.shape[1]
            leaves[key] = packed[run, :size].requires_grad_()
            leaves[key].grad = self._leaf_gradients[key][run, :size]
        return leaves

    def leaf_groups(self) -> dict[str, ParameterGroup | None]:
        """Return the parameter group of every leaf."""
        return {leaf: group for group, leaf in _LEAVES.items() if leaf in self._leaves}

    def gradient_norms(self) -> Tensor:
        """Return the global norm of every run's gradients: [R]."""
        norms_R = [torch.linalg.vector_norm(gradient, dim=1) for gradient in self._leaf_gradients.values()]
        norm_R: Tensor = torch.linalg.vector_norm(torch.stack(norms_R), dim=0)
        return norm_R

    def by_storage(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an optimizer's tensors, `leaf/key`, as `storage/key`: how files name them, whatever memory is like."""
        result: dict[str, Tensor] = {}
        for key in dict.fromkeys(path.partition("/")[2] for path in state):
            tensors = {leaf: state[f"{leaf}/{key}"] for leaf in self._leaves}
            if all(tensor.dim() == 0 for tensor in tensors.values()):
                views = {name: tensors[_LEAVES[storage.group]].clone() for name, storage in self.storages.items()}
            else:
                views = self._storage_views(tensors)
            result |= {f"{name}/{key}": view.contiguous() for name, view in views.items()}
        return result

    def by_leaf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take back what `by_storage` returned."""
        result = {}
        for key in dict.fromkeys(path.partition("/")[2] for path in state):
            parts: dict[str, list[Tensor]] = {leaf: [] for leaf in self._leaves}
            for name, storage in self.storages.items():
                parts[_LEAVES[storage.group]].append(state[f"{name}/{key}"])
            for leaf, tensors in parts.items():
                whole = tensors[0] if tensors[0].dim() == 0 else torch.cat([tensor.flatten() for tensor in tensors])
                result[f"{leaf}/{key}"] = whole
        return result

    def parameters(self, run: int) -> dict[str, Tensor]:
        """Return the parameters of a run by name: views of its leaves, `.grad` included."""
        parameters: dict[str, Tensor] = {}
        for key, storage in self.storages.items():
            gradients = storage.parameters(self.gradients[key][run])
            for (name, view), (_, gradient) in zip(storage.parameters(self.packed[key][run]), gradients, strict=True):
                parameters[name] = view.detach().requires_grad_()
                parameters[name].grad = gradient
        return parameters

    def segments(self, key: str) -> list[int]:
        """Heights of the blocks of a matrix that have a ternary scale of their own."""
        storage = self.storages[key]
        if self.config.scale_group == "fused":
            return [storage.shape[1]]
        return [height for _, height in storage.blocks]

    def ternary_codes(self) -> dict[str, Tensor]:
        """Return the ternary values of every matrix storage: int8, [R, L, O, I]."""
        return {
            key: ternary_codes(self.packed[key], self.segments(key))
            for key, storage in self.storages.items()
            if storage.is_matrix
        }

    def forward(self, tokens_RBT: Tensor, strengths: Sequence[float]) -> Tensor:
        """Return logits [R, N, V] of token ids [R, B, T]; `strengths` are the quantization λ of the runs."""
        return self.logits(self._run(tokens_RBT, self.quantization(strengths), keep=False).hidden_RNH)

    def record(self, tokens_RBT: Tensor, quantization: Quantization) -> Tape:
        """Run up to the head and keep what the way back needs."""
        return self._run(tokens_RBT, quantization, keep=True)

    def logits(self, hidden_RNH: Tensor) -> Tensor:
        """Return logits [R, N, V]."""
        with self.products.scope(hidden_RNH.numel() * self.vocab_size):
            head_RVH = self.products.cast(self._head(self._leaves))
            return torch.bmm(self.products.cast(hidden_RNH), head_RVH.mT)[..., : self.vocab_size]

    @torch.no_grad()
    def head_loss(
        self, hidden_RNH: Tensor, targets_RN: Tensor, claim: Callable[[Tensor, Tensor], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss of every run [R] and its gradient by `hidden_RNH`; write the head's gradient.

        Where there are more tokens than features the logits are made, used and dropped in chunks of tokens.
        `claim(logits_RNV, gradient_RNV)` may replace the gradient of a run by N times that of another objective; it
        sees all tokens at once.
        """
        products, tokens = self.products, hidden_RNH.shape[1]
        head_RVH, head_gradient_RVH = products.cast(self._head(self._leaves)), self._head(self._leaf_gradients)
        whole = claim is not None or tokens <= max(2 * self.config.hidden_size, 256)
        chunk = tokens if whole else self.config.hidden_size
        loss_R, grads = torch.zeros(self.num_runs, device=self.device), []
        for start in range(0, tokens, chunk):
            part = slice(start, start + chunk)
            x_RNH = products.cast(hidden_RNH[:, part])
            with products.scope(x_RNH.numel() * self.vocab_size):
                logits_RNV = torch.bmm(x_RNH, head_RVH.mT)
            if self._padded_vocab > self.vocab_size:
                logits_RNV[..., self.vocab_size :] = -math.inf
            loss_RN, grad_RNV = self._ops.cross_entropy(logits_RNV, targets_RN[:, part])
            loss_R += loss_RN.sum(-1) / tokens
            if claim is not None:
                claim(logits_RNV[..., : self.vocab_size], grad_RNV[..., : self.vocab_size])
            grad_RNV = products.cast(grad_RNV)
            with products.scope(x_RNH.numel() * self.vocab_size):
                # the mean's 1 / N goes to the narrow factor of each product, not to the logits
                grads.append(torch.bmm(grad_RNV, head_RVH).to(hidden_RNH.dtype).div_(tokens))
                self._add_product(head_gradient_RVH, grad_RNV.mT, x_RNH / tokens, first=start == 0)
        return loss_R, torch.cat(grads, dim=1) if len(grads) > 1 else grads[0]

    def _add_product(self, target: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
        if first and target.dtype == a.dtype:
            torch.bmm(a, b, out=target)
        elif first:
            target.copy_(torch.bmm(a, b))
        else:
            target += torch.bmm(a, b)

    def _head(self, leaves: Mapping[str, Tensor]) -> Tensor:
        table = leaves["embed" if self.config.tie_word_embeddings else "head"]
        return table.view(self.num_runs, self._padded_vocab, self.config.hidden_size)

    def quantization(self, strengths: Sequence[float]) -> Quantization:
        """Return the strengths λ of the runs as a step takes them."""
        if all(strength == 1.0 for strength in strengths):
            return Quantization(off=False, strength_R=None)
        off = all(strength == 0.0 for strength in strengths)
        return Quantization(off=off, strength_R=None if off else torch.tensor(strengths, device=self.device))

    @torch.no_grad()
    def _run(self, tokens_RBT: Tensor, q: Quantization, *, keep: bool) -> Tape:
        runs, _, positions = tokens_RBT.shape
        config, products = self.config, self.products
        tokens_RN = tokens_RBT.reshape(runs, -1) + self._offsets_R1
        x_RNH = F.embedding(tokens_RN, self._leaves["embed"].view(-1, config.hidden_size))
        layers = []
        with self._layer_scope(tokens_RN):
            weights = {
                key: self._ops.weights(self.packed[key], self.segments(key), q)
                for key, storage in self.storages.items()
                if storage.is_matrix
            }
            for layer in range(config.num_layers):
                qkv_input, input_saved = self._ops.enter(x_RNH, self._norms("input_norm", "qkv_norm", layer=layer), q)
                qkv_RNO = products.multiply(qkv_input, weights["qkv"][layer])
                a_RNH, attention = self._attend(qkv_RNO, positions)
                o_input, sub_saved = self._ops.enter(a_RNH, self._norms("attn_sub_norm", layer=layer), q)
                x_RNH = x_RNH + products.multiply(o_input, weights["o"][layer])

                norms = self._norms("post_norm", "gate_up_norm", layer=layer)
                gate_up_input, post_saved = self._ops.enter(x_RNH, norms, q)
                gate_up_RNF = products.multiply(gate_up_input, weights["gate_up"][layer])
                f_RNF = self._ops.gate(gate_up_RNF)
                down_input, ffn_saved = self._ops.enter(f_RNF, self._norms("ffn_sub_norm", layer=layer), q)
                x_RNH = x_RNH + products.multiply(down_input, weights["down"][layer])
                if keep:
                    layers.append(
                        _Layer(
                            input_saved=input_saved,
                            qkv_input=qkv_input,
                            attention=attention,
                            sub_saved=sub_saved,
                            o_input=o_input,
                            post_saved=post_saved,
                            gate_up_input=gate_up_input,
                            gate_up_RNF=gate_up_RNF,
                            ffn_saved=ffn_saved,
                            down_input=down_input,
                        )
                    )
        final = self.packed["final_norm"].unsqueeze(1)
        hidden_RNH, final_saved = self._ops.normalize(x_RNH, (final,))
        if not keep:
            return Tape(tokens_RN=tokens_RN, positions=positions, hidden_RNH=hidden_RNH)
        return Tape(
            tokens_RN=tokens_RN,
            positions=positions,
            hidden_RNH=hidden_RNH,
            final_saved=final_saved,
            weights=weights,
            layers=layers,
        )

    @torch.no_grad()
    def backward(self, tape: Tape, grad_RNH: Tensor) -> None:
        """Write the gradients of everything but the head, `grad_RNH` being that of `tape.hidden_RNH`.

        The head's must be there already where it is tied to the embeddings.
        """
        products, weights = self.products, tape.weights
        norms: dict[str, list[Tensor]] = {key: [] for key in self._norm_layers}
        final = self.packed["final_norm"].unsqueeze(1)
        grad_RNH, (final_RH,) = self._ops.normalize_backward(grad_RNH, tape.final_saved, (final,))
        self.gradients["final_norm"].copy_(final_RH)
        with self._layer_scope(tape.tokens_RN):
            for layer in range(self.config.num_layers - 1, -1, -1):
                saved = tape.layers[layer]

                def matrix(grad: Tensor, key: str, operand: Operand, layer: int = layer) -> Tensor:
                    return products.backward(grad, operand, weights[key][layer], self._gradient_layers[key][layer])

                leave = functools.partial(self._leave, layer=layer, norms=norms)
                grad_RNF = matrix(grad_RNH, "down", saved.down_input)
                grad_RNF = leave(grad_RNF, saved.ffn_saved, "ffn_sub_norm")
                grad_RNF = self._ops.gate_backward(grad_RNF, saved.gate_up_RNF)
                grad_RNF = matrix(grad_RNF, "gate_up", saved.gate_up_input)
                grad_RNH = leave(grad_RNF, saved.post_saved, "post_norm", "gate_up_norm").add_(grad_RNH)

                grad_a_RNH = matrix(grad_RNH, "o", saved.o_input)
                grad_a_RNH = leave(grad_a_RNH, saved.sub_saved, "attn_sub_norm")
                grad_qkv_RNO = self._attend_backward(grad_a_RNH, saved.attention, tape.positions)
                grad_qkv_RNO = matrix(grad_qkv_RNO, "qkv", saved.qkv_input)
                grad_RNH = leave(grad_qkv_RNO, saved.input_saved, "input_norm", "qkv_norm").add_(grad_RNH)
        for key, grads_RF in norms.items():
            torch.stack(grads_RF, dim=1, out=self.gradients[key])
        if not self.config.tie_word_embeddings:
            self._leaf_gradients["embed"].zero_()
        table = self._leaf_gradients["embed"].view(-1, self.config.hidden_size)
        tokens_N = tape.tokens_RN.flatten()
        if self.device.type == "cuda":
            # sorts, where index_add_ adds in the order of arrival
            table.index_put_((tokens_N,), grad_RNH.flatten(0, 1), accumulate=True)
        else:
            table.index_add_(0, tokens_N, grad_RNH.flatten(0, 1))

    def _layer_scope(self, tokens_RN: Tensor) -> contextlib.AbstractContextManager[None]:
        sizes = (storage.shape[1] * storage.shape[2] for storage in self.storages.values() if storage.is_matrix)
        return self.products.scope(tokens_RN.numel() * max(sizes))

    def _norms(self, *keys: str, layer: int) -> tuple[Tensor, ...]:
        """Return the weights [R, 1, F] of the norms that this model has of `keys`."""
        return tuple(self._norm_layers[key][layer] for key in keys if key in self._norm_layers)

    def _leave(
        self,
        grad_RNF: Tensor,
        saved: list[tuple[Tensor, Tensor]],
        *keys: str,
        layer: int,
        norms: dict[str, list[Tensor]],
    ) -> Tensor:
        """Go back through the norms `keys`; their weights' gradients are put in front of the lists in `norms`."""
        grad_RNF, grads_RF = self._ops.normalize_backward(grad_RNF, saved, self._norms(*keys, layer=layer))
        for key, grad_RF in zip((key for key in keys if key in self._norm_layers), grads_RF, strict=True):
            norms[key].insert(0, grad_RF)
        return grad_RNF

    def _attend(self, qkv_RNO: Tensor, positions: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the heads' output [R, N, A·D] and what the way back needs."""
        config, runs = self.config, qkv_RNO.shape[0]
        queries, groups = config.num_attention_heads, config.num_key_value_heads
        heads = qkv_RNO.view(-1, positions, queries + 2 * groups, config.head_size).transpose(1, 2)
        cos_TD, sin_TD = self._rotary_tables(positions)
        # rotary embeddings turn queries and keys alike, so both go through in one piece
        turned, value = heads.split([queries + groups, groups], dim=1)
        query, key = self._ops.rotate(turned, cos_TD, sin_TD).split([queries, groups], dim=1)
        with self.products.outside():
            if self._attends_plainly(positions):
                dtype = self._leaves["embed"].dtype
                q, k, v = (t.reshape(-1, positions, config.head_size).to(dtype) for t in (query, key, value))
                out, p = kernels.attend(q, k, v, self._causal_mask(positions))
                flat = out.view(-1, queries, positions, config.head_size).transpose(1, 2)
                return flat.reshape(runs, -1, queries * config.head_size), (q, k, v, p)
            q, k, v = (self._attention_input(t).requires_grad_() for t in (query, key, value))
            # the one piece whose gradient torch records: its kernels differ by device
            with torch.enable_grad():
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=queries != groups)
        flat = out.detach().transpose(1, 2).reshape(runs, -1, queries * config.head_size)
        return flat.to(self._leaves["embed"].dtype), (q, k, v, out)

    def _attend_backward(self, grad_RNH: Tensor, saved: tuple[Tensor, ...], positions: int) -> Tensor:
        config, runs = self.config, grad_RNH.shape[0]
        queries, groups = config.num_attention_heads, config.num_key_value_heads
        q, k, v, last = saved
        grad_out = grad_RNH.view(-1, positions, queries, config.head_size).transpose(1, 2).to(last.dtype)
        with self.products.outside():
            if self._attends_plainly(positions):
                flat = grad_out.reshape(-1, positions, config.head_size)
                grads = kernels.attend_backward(flat, q, k, v, last)
                grad_q, grad_k, grad_value = (grad.view(grad_out.shape) for grad in grads)
            else:
                grad_q, grad_k, grad_value = torch.autograd.grad(last, (q, k, v), grad_out)
        grad_turned = torch.cat((grad_q, grad_k), dim=1).to(grad_RNH.dtype)
        grad_turned = self._ops.rotate_backward(grad_turned, *self._rotary_tables(positions))
        grad_heads = torch.cat((grad_turned, grad_value), dim=1)
        return grad_heads.transpose(1, 2).reshape(runs, -1, (queries + 2 * groups) * config.head_size)

    def _attends_plainly(self, positions: int) -> bool:
        same_heads = self.config.num_attention_heads == self.config.num_key_value_heads
        return self.device.type == "cpu" and same_heads and positions <= _SHORT

    def _causal_mask(self, positions: int) -> Tensor:
        if positions not in self._masks:
            hidden = torch.full((positions, positions), -math.inf, device=self.device)
            self._masks[positions] = hidden.triu(1)
        return self._masks[positions]

    def _attention_input(self, heads: Tensor) -> Tensor:
        """Detach; on a card in the type that its fast kernels take."""
        dtype = self.products.dtype if self.device.type == "cuda" else self._leaves["embed"].dtype
        return heads.detach().to(dtype)

    def _rotary_tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine [T, D]; the sign of rotate-half is folded into the sine."""
        if positions not in self._rotary:
            half = self.config.head_size // 2
            exponent = torch.arange(0, 2 * half, 2, dtype=torch.float) / (2 * half)
            angle = torch.arange(positions)[:, None].float() * (1.0 / (self.config.rope_theta**exponent))
            cos, sin = angle.cos().repeat(1, 2), angle.sin()
            self._rotary[positions] = (
                cos.to(self.device),
                torch.cat((-sin, sin), dim=-1).to(self.device),
            )
        return self._rotary[positions]

    def _initialize(self, run: int, config: ModelConfig, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for key, storage in self.storages.items():
            target = self.packed[key][run]
            if storage.group == "norms":
                target.fill_(1.0)
                continue
            values = torch.empty(storage.shape)
            if config.initialization == "normal":
                values.normal_(0.0, config.init_std, generator=generator)
            elif storage.group == "embeddings":
                values.normal_(0.0, 1.0, generator=generator)
            else:
                bound = storage.shape[-1] ** -0.5
                values.uniform_(-bound, bound, generator=generator)
            target.copy_(values)

    def load(self, run: int, weights: Mapping[str, Tensor]) -> None:
        """Copy named weights into one run; raises KeyError for a missing name."""
        with torch.no_grad():
            for name, parameter in self.parameters(run).items():
                parameter.copy_(weights[name])
