"""What a file in a public format holds of a model, by the names of `transformers`.

Shapes: O×I a matrix, G groups of inputs with a scale each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModelContent:
    """The content of a model's file.

    `model` are the fields of ModelConfig that the file tells. `weights` are fp32: all tensors that are not quantized,
    and the masters where the file has them. `quantized` are int8 codes [O, I] and fp32 scale [O, G] of matrices: their
    product is what the model multiplies. `quant_lambda` is λ of the weights, 1 of a file with codes alone.

    `tokenizer` is the text of a tokenizer.json, None where the file has none that gives the same tokens; `end_of_text`
    is the token that follows a document. `run` (NAME@STEP), `tokenizer_sha256` and `config` (the whole RunConfig) are
    known of own files only, the last of plain ones.
    """

    model: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    quant_lambda: float
    quantized: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    context_length: int | None = None
    tokenizer: str | None = None
    tokenizer_sha256: str | None = None
    end_of_text: str | None = None
    run: str | None = None
    config: Mapping[str, Any] | None = None
