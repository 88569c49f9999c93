"""The reference of the benchmarks: the same mathematics with stock modules, in a plain loop.

`PlainModel` is the straightforward implementation: `nn.Linear` with a straight-through estimator by detach,
`nn.RMSNorm` and SDPA. `StockLoop` trains it with one stock Adam, `clip_grad_norm_`, and `.item()` each step.

Shapes: B rows, T positions, N = B·T, H hidden, V vocabulary, D head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnetctl.config import ModelConfig, ParameterGroup, RunConfig
from bitnetctl.data import Batches, TokenData
from bitnetctl.engine import schedule
from bitnetctl.model.packed import PackedModel


class BitLinear(nn.Linear):
    """A linear layer with ternary weights and int8 activations, and the straight-through estimator."""

    def forward(self, x: Tensor) -> Tensor:
        """Quantize both, then multiply."""
        weight_scale = 1.0 / self.weight.abs().mean().clamp(min=1e-5)
        weight = (self.weight * weight_scale).round().clamp(-1, 1) / weight_scale
        scale = 127.0 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
        quantized = (x * scale).round().clamp(-128, 127) / scale
        return F.linear(x + (quantized - x).detach(), self.weight + (weight - self.weight).detach())


class PlainBlock(nn.Module):
    """Attention and gated feed-forward in the layout of the config."""

    def __init__(self, config: ModelConfig, linear: type[nn.Linear]) -> None:
        super().__init__()
        hidden, ffn, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
        heads, kv = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
        fused = config.scale_group == "fused"
        self.config = config
        self.input_norm, self.post_norm = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)
        self.qkv_norm = nn.RMSNorm(hidden, eps) if config.inner_norms else nn.Identity()
        self.gate_up_norm = nn.RMSNorm(hidden, eps) if config.inner_norms else nn.Identity()
        self.sub_norm, self.ffn_norm = nn.RMSNorm(heads, eps), nn.RMSNorm(ffn, eps)
        qkv, gate_up = ([heads + 2 * kv], [2 * ffn]) if fused else ([heads, kv, kv], [ffn, ffn])
        self.qkv = nn.ModuleList(linear(hidden, height, bias=False) for height in qkv)
        self.gate_up = nn.ModuleList(linear(hidden, height, bias=False) for height in gate_up)
        self.o, self.down = linear(heads, hidden, bias=False), linear(ffn, hidden, bias=False)

    def forward(self, x_BTH: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Return the residual stream after the block."""
        config = self.config
        rows, positions, _ = x_BTH.shape
        h = self.qkv_norm(self.input_norm(x_BTH))
        qkv = torch.cat([linear(h) for linear in self.qkv], dim=-1)
        count, kv_count = config.num_attention_heads, config.num_key_value_heads
        heads = qkv.view(rows, positions, count + 2 * kv_count, config.head_size).transpose(1, 2)
        q, k, v = heads.split([count, kv_count, kv_count], dim=1)
        q, k = (t * cos_TD + _rotate_half(t) * sin_TD for t in (q, k))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=count != kv_count)
        x_BTH = x_BTH + self.o(self.sub_norm(a.transpose(1, 2).reshape(rows, positions, -1)))
        h = self.gate_up_norm(self.post_norm(x_BTH))
        gate, up = torch.cat([linear(h) for linear in self.gate_up], dim=-1).chunk(2, dim=-1)
        gate = F.relu(gate).square() if config.activation == "relu2" else F.silu(gate)
        out_BTH: Tensor = x_BTH + self.down(self.ffn_norm(gate * up))
        return out_BTH


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class PlainModel(nn.Module):
    """A language model with the mathematics of `bitnetctl.model.packed.PackedModel` for one run."""

    frequency_D: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, linear: type[nn.Linear] = BitLinear) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(PlainBlock(config, linear) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.head.weight = self.embed.weight
        exponent_D = torch.arange(0, config.head_size, 2, dtype=torch.float) / config.head_size
        frequency = 1.0 / config.rope_theta**exponent_D
        self.register_buffer("frequency_D", torch.cat((frequency, frequency)))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits [B, T, V]."""
        angle_TD = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[:, None] * self.frequency_D
        x = self.embed(tokens_BT)
        cos_TD, sin_TD = angle_TD.cos().to(x.dtype), angle_TD.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cos_TD, sin_TD)
        logits: Tensor = self.head(self.norm(x))
        return logits

    @torch.no_grad()
    def load_packed(self, weights: dict[str, Tensor]) -> None:
        """Copy the weights, named as in `transformers`, but those of the norms, which are 1 at first."""
        layer, attention = "model.layers.{}.", "self_attn."
        self.embed.weight.copy_(weights["model.embed_tokens.weight"])
        if not self.config.tie_word_embeddings:
            self.head.weight.copy_(weights["lm_head.weight"])
        for index, block in enumerate(self.blocks):
            assert isinstance(block, PlainBlock)
            prefix = layer.format(index)
            for linears, names in (
                (list(block.qkv), [f"{attention}{name}_proj" for name in "qkv"]),
                (list(block.gate_up), ["mlp.gate_proj", "mlp.up_proj"]),
                ([block.o], [f"{attention}o_proj"]),
                ([block.down], ["mlp.down_proj"]),
            ):
                parts = [weights[f"{prefix}{name}.weight"] for name in names]
                for linear, part in zip(linears, parts if len(linears) > 1 else [torch.cat(parts)], strict=True):
                    assert isinstance(linear, nn.Linear)
                    linear.weight.copy_(part)


def plain_model(
    config: RunConfig, vocab_size: int, device: torch.device, linear: type[nn.Linear] = BitLinear
) -> PlainModel:
    """Return the model with the same initial weights that the trainer gives this run."""
    packed = PackedModel([config.model], vocab_size, [config.seed], torch.device("cpu"))
    model = PlainModel(config.model, vocab_size, linear)
    model.load_packed(packed.parameters(0))
    return model.to(device)


class StockLoop:
    """A training loop of torch's own parts over the trainer's batches, learning rate and weight decay.

    `tuned`: fused Adam, no synchronization for the loss. `compiles`: forward and loss are compiled together.
    `autocast`: matmuls are bf16 and weights fp32.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        tokens: TokenData,
        device: torch.device,
        *,
        tuned: bool = False,
        compiles: bool = False,
        autocast: bool = False,
    ) -> None:
        self._model, self._config, self._device = model, config, device
        self._batches = Batches(tokens, config.data, config.seed)
        stock = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer.name]
        decayed = [tensor for name, tensor in model.named_parameters() if group_of(name) not in config.optimizer.exempt]
        exempt = [tensor for name, tensor in model.named_parameters() if group_of(name) in config.optimizer.exempt]
        groups = [{"params": decayed}, {"params": exempt}] if exempt else decayed
        self._optimizer = stock(groups, weight_decay=0.0, betas=config.optimizer.betas, fused=True if tuned else None)
        self._loss = torch.compile(stock_loss) if compiles else stock_loss
        self._tuned = tuned
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=autocast)

    def step(self, step: int) -> Tensor | float:
        """Train a step; return its loss."""
        config = self._config
        for group in self._optimizer.param_groups:
            group["lr"] = schedule.learning_rate(config.schedule, step, config.steps)
        decayed = self._optimizer.param_groups[0]
        decayed["weight_decay"] = schedule.weight_decay(config.schedule, step, config.steps)
        rows_BT1 = torch.from_numpy(self._batches.rows_BT1(step)).to(self._device)
        self._optimizer.zero_grad()
        with self._autocast:
            loss = self._loss(self._model, rows_BT1[:, :-1], rows_BT1[:, 1:].flatten())
        loss.backward()
        if config.optimizer.max_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), config.optimizer.max_norm)
        self._optimizer.step()
        return loss.detach() if self._tuned else loss.item()


def stock_loss(model: nn.Module, inputs_BT: Tensor, targets_N: Tensor) -> Tensor:
    """Return the mean cross-entropy, in fp32 or wider."""
    output = model(inputs_BT)
    # models of `transformers` return an object
    logits_BTV: Tensor = getattr(output, "logits", output)
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_N)


def group_of(name: str) -> ParameterGroup | None:
    """Return the group of a parameter by its name, None for matrices."""
    if "embed" in name:
        return "embeddings"
    if "head" in name:
        return "head"
    return "norms" if "norm" in name else None
