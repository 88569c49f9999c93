"""The parts of a training step that have own kernels; imports no Triton, which few machines without a GPU have."""

from collections.abc import Collection
from typing import Literal, TypeAlias, get_args

from bitnetctl.config import ModelConfig
from bitnetctl.kernels import MAX_WIDTH
from bitnetctl.model.matmul import Precision

Part: TypeAlias = Literal["weights", "layers", "gradients", "loss", "update", "probe"]
"""What own kernels compute: ternary weights; norms, activation quantizers, gates and rotary embeddings; matmuls that
write the gradients of weights in fp32; the loss with its gradient; embedding gradients and the optimizer; what the
probe reads off its logits."""
PARTS: tuple[Part, ...] = get_args(Part)

Quantized: TypeAlias = Literal["weights", "activations"]
"""What an intervention may quantize in a way of its own."""


def supported_parts(
    config: ModelConfig, precision: Precision, custom: Collection[Quantized] = frozenset()
) -> frozenset[Part]:
    """Return the parts that have kernels for a model with `custom` quantizers.

    Quantizers of interventions, int8 operands, very wide rows and capped logits have none.
    """
    parts = set(PARTS)
    if "weights" in custom:
        parts -= {"weights"}
    if "activations" in custom:
        parts -= {"layers"}
    if config.logit_soft_cap is not None:
        parts -= {"loss"}
    if precision == "int8":
        parts -= {"weights", "layers"}
    if max(config.hidden_size, config.intermediate_size) > MAX_WIDTH:
        parts -= {"layers"}
    if precision == "fp32":
        # there is nothing to cast
        parts -= {"gradients"}
    return frozenset(parts)
