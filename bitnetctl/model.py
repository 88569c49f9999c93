"""The packed BitNet transformer: R runs side by side in one set of tensors; it knows no optimizer.

Shapes: R runs, B rows, T positions of a row, N = B·T, H hidden, V vocabulary, L layers, O×I a matrix,
F feed-forward, A query heads, K key/value heads, D head size.

The layout is that of `BitNetForCausalLM` in `transformers` (BitNet b1.58 2B4T, arXiv 2504.12285): RMSNorm in front
of attention and feed-forward, SubLN before the output and down projections, rotary embeddings, no biases.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl.config import ModelConfig, ParameterGroup
from bitnetctl.quant import int8_activations, ternary_codes, ternary_weights


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


class PackedModel:
    """The weights of R runs of one shape and their forward pass.

    `packed[name]` has shape [R, *storages[name].shape]; run r is initialised from `seeds[r]` alone, so it has the
    same weights in every pack.
    """

    def __init__(
        self,
        configs: Sequence[ModelConfig],
        vocab_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.config = configs[0]
        self.vocab_size = vocab_size
        self.device = device
        self.storages = storages(self.config, vocab_size)
        self.packed = {
            name: torch.empty((len(configs), *storage.shape), device=device) for name, storage in self.storages.items()
        }
        for run, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
            self._initialize(run, config, seed)
        for tensor in self.packed.values():
            tensor.requires_grad_()
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._offsets_R1 = torch.arange(len(configs), device=device).unsqueeze(-1) * vocab_size

    @property
    def num_runs(self) -> int:
        """Number of runs in the pack."""
        return self._offsets_R1.shape[0]

    @property
    def num_parameters(self) -> int:
        """Number of parameters of one run."""
        return num_parameters(self.config, self.vocab_size)

    def leaves(self, run: int) -> dict[str, Tensor]:
        """Return row `run` of every storage as leaf tensors that share its memory: what an optimizer updates.

        One leaf for all layers of a kind, since updates are element by element and each tensor costs host time.
        """
        return {key: packed.detach()[run].requires_grad_() for key, packed in self.packed.items()}

    def set_gradients(self, run: int, leaves: Mapping[str, Tensor]) -> None:
        """Point the `.grad` of the leaves at the gradients of the last backward pass."""
        for key, leaf in leaves.items():
            gradient = self.packed[key].grad
            leaf.grad = None if gradient is None else gradient[run]

    def parameters(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of a run by name: two-dimensional views of its leaves, `.grad` included."""
        parameters: dict[str, Tensor] = {}
        for key, storage in self.storages.items():
            gradient = leaves[key].grad
            parameters.update((name, view.requires_grad_()) for name, view in storage.parameters(leaves[key].detach()))
            if gradient is not None:
                for name, view in storage.parameters(gradient):
                    parameters[name].grad = view
        return parameters

    def segments(self, key: str) -> list[int]:
        """Heights of the blocks of a matrix that have a ternary scale of their own."""
        storage = self.storages[key]
        if self.config.scale_group == "fused":
            return [storage.shape[1]]
        return [height for _, height in storage.blocks]

    @torch.no_grad()
    def ternary_codes(self) -> dict[str, Tensor]:
        """Return the ternary values of every matrix storage: int8, [R, L, O, I]."""
        return {
            key: ternary_codes(self.packed[key], self.segments(key))
            for key, storage in self.storages.items()
            if storage.is_matrix
        }

    def forward(self, tokens_RBT: Tensor, strengths: Sequence[float]) -> Tensor:
        """Return logits [R, N, V] of token ids [R, B, T]; `strengths` are the quantization λ of the runs."""
        runs, rows, positions = tokens_RBT.shape
        config = self.config
        blend = _Blend(strengths, self.device)
        weights = self._layer_weights(blend)

        x_RNH = self._embed(tokens_RBT.reshape(runs, -1))
        for layer in range(config.num_layers):
            w = {key: per_layer[layer] for key, per_layer in weights.items()}

            h_RNH = rms_norm(x_RNH, w["input_norm"], config.rms_norm_eps)
            if config.inner_norms:
                h_RNH = rms_norm(h_RNH, w["qkv_norm"], config.rms_norm_eps)
            qkv_RNO = torch.bmm(blend.activations(h_RNH), w["qkv"].mT)
            a_RNH = self._attention(qkv_RNO, rows, positions)
            a_RNH = rms_norm(a_RNH, w["attn_sub_norm"], config.rms_norm_eps)
            x_RNH = torch.baddbmm(x_RNH, blend.activations(a_RNH), w["o"].mT)

            h_RNH = rms_norm(x_RNH, w["post_norm"], config.rms_norm_eps)
            if config.inner_norms:
                h_RNH = rms_norm(h_RNH, w["gate_up_norm"], config.rms_norm_eps)
            gate_RNF, up_RNF = torch.bmm(blend.activations(h_RNH), w["gate_up"].mT).chunk(2, dim=-1)
            if config.activation == "relu2":
                f_RNF = F.relu(gate_RNF).square() * up_RNF
            else:
                f_RNF = F.silu(gate_RNF) * up_RNF
            f_RNF = rms_norm(f_RNF, w["ffn_sub_norm"], config.rms_norm_eps)
            x_RNH = torch.baddbmm(x_RNH, blend.activations(f_RNF), w["down"].mT)

        x_RNH = rms_norm(x_RNH, self.packed["final_norm"], config.rms_norm_eps)
        head_RVH = self.packed["embed" if config.tie_word_embeddings else "head"]
        return torch.bmm(x_RNH, head_RVH.mT)

    def _layer_weights(self, blend: "_Blend") -> dict[str, tuple[Tensor, ...]]:
        weights = {}
        for key, storage in self.storages.items():
            if storage.per_layer:
                packed = self.packed[key]
                if storage.is_matrix:
                    packed = blend.weights(packed, self.segments(key))
                weights[key] = packed.unbind(1)
        return weights

    def _embed(self, tokens_RN: Tensor) -> Tensor:
        table_RVH = self.packed["embed"]
        return F.embedding(tokens_RN + self._offsets_R1, table_RVH.flatten(0, 1))

    def _attention(self, qkv_RNO: Tensor, rows: int, positions: int) -> Tensor:
        config = self.config
        query_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        # rotary embeddings turn queries and keys alike, so both go through in one piece
        heads = qkv_RNO.view(-1, positions, query_heads + 2 * kv_heads, config.head_size).transpose(1, 2)
        cos_TD, sin_TD = self._rotary_tables(positions)
        turned, value = heads.split([query_heads + kv_heads, kv_heads], dim=1)
        turned = turned * cos_TD + turned.roll(config.head_size // 2, dims=-1) * sin_TD
        query, key = turned.split([query_heads, kv_heads], dim=1)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query_heads != kv_heads)
        return out.transpose(1, 2).reshape(self.num_runs, rows * positions, query_heads * config.head_size)

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
            for name, parameter in self.parameters(self.leaves(run)).items():
                parameter.copy_(weights[name])


class _Blend:
    """Quantizers at the strengths of the pack; skipped where all runs are at full precision."""

    def __init__(self, strengths: Sequence[float], device: torch.device) -> None:
        self._off = all(strength == 0.0 for strength in strengths)
        ternary = all(strength == 1.0 for strength in strengths)
        self._strength_R = None if ternary else torch.tensor(strengths, dtype=torch.float, device=device)

    def weights(self, weight_RLOI: Tensor, segments: Sequence[int]) -> Tensor:
        return weight_RLOI if self._off else ternary_weights(weight_RLOI, segments, self._strength_R)

    def activations(self, x: Tensor) -> Tensor:
        return x if self._off else int8_activations(x, self._strength_R)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RNF: Tensor, weight_R1F: Tensor, eps: float) -> Tensor:
        inverse_RN1 = torch.linalg.vector_norm(x_RNF, dim=-1, keepdim=True).square_()
        inverse_RN1 = inverse_RN1.div_(x_RNF.shape[-1]).add_(eps).rsqrt_()
        normed_RNF: Tensor = x_RNF * inverse_RN1
        ctx.save_for_backward(normed_RNF, inverse_RN1, weight_R1F)
        return normed_RNF * weight_R1F

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        normed_RNF, inverse_RN1, weight_R1F = ctx.saved_tensors
        grad_RNF = grads[0]
        grad_weight_R1F = (grad_RNF * normed_RNF).sum(1, keepdim=True)
        grad_normed = grad_RNF * weight_R1F
        radial_RN1 = torch.linalg.vecdot(grad_normed, normed_RNF).unsqueeze(-1).div_(normed_RNF.shape[-1])
        grad_x = grad_normed.addcmul_(normed_RNF, radial_RN1, value=-1).mul_(inverse_RN1)
        return grad_x, grad_weight_R1F, None


def rms_norm(x_RNF: Tensor, weight_RF: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich 2019), per run.

    One autograd node: on the CPU it costs a third of the composed operations for a pack of nine.
    """
    result: Tensor = _RMSNorm.apply(x_RNF, weight_RF.unsqueeze(1), eps)  # type: ignore[no-untyped-call]
    return result
