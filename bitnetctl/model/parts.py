"""The parts of a training step that have own kernels; imports no Triton, which few machines without a GPU have."""

from typing import Literal, TypeAlias, get_args

from bitnetctl.config import ModelConfig
from bitnetctl.kernels import MAX_WIDTH
from bitnetctl.model.matmul import Precision

Part: TypeAlias = Literal["weights", "layers", "gradients", "loss", "update", "probe"]
"""What own kernels compute: ternary weights; norms, activation quantizers, gates and rotary embeddings; matmuls that
write the gradients of weights in fp32; the loss with its gradient; embedding gradients and the optimizer; what the
probe reads off its logits."""
PARTS: tuple[Part, ...] = get_args(Part)


def supported_parts(config: ModelConfig, precision: Precision) -> frozenset[Part]:
    """Return the parts that have kernels for a model: int8 operands and very wide rows have none."""
    parts = set(PARTS)
    if precision == "int8":
        parts -= {"weights", "layers"}
    if max(config.hidden_size, config.intermediate_size) > MAX_WIDTH:
        parts -= {"layers"}
    if precision == "fp32":
        # there is nothing to cast
        parts -= {"gradients"}
    return frozenset(parts)
