"""What a file in a public format holds of a model, by the names of `transformers`.

Shapes: O×I a matrix, G groups of inputs with a scale each.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_EXPORTED_NAME = re.compile(r"(.+)@([1-9][0-9]{0,8})")


@dataclass(frozen=True, kw_only=True)
class ModelContent:
    """The content of a model's file.

    `model` are the fields of ModelConfig that the file states. `weights` are fp32: all tensors that are not quantized,
    and the masters where the file has them. `quantized` are int8 codes [O, I] and fp32 scale [O, G] of matrices: their
    product is what the model multiplies. `quant_lambda` is λ of the weights, 1 of a file with codes alone; where
    `is_lambda_stated` is false, values that are not in `quantized` may be codes · scale all the same.

    `tokenizer` is the text of a tokenizer.json, None where the file has none that gives the same tokens; `end_of_text`
    is the token that follows a document. `run` and `step`, `tokenizer_sha256` and `config` (the whole RunConfig) are
    known of own files only, the last of safetensors ones. `notes` are lines for whoever imports it.
    """

    model: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    quant_lambda: float
    is_lambda_stated: bool = True
    quantized: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    context_length: int | None = None
    tokenizer: str | None = None
    tokenizer_sha256: str | None = None
    end_of_text: str | None = None
    run: str | None = None
    step: int | None = None
    config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def exported_name(run: str, step: int | None) -> str:
    """Return how a file names the run and step that it holds: NAME@STEP, or NAME where the step is unknown."""
    return run if step is None else f"{run}@{step}"


def parse_exported_name(text: str | None) -> tuple[str | None, int | None]:
    """Return run and step of `exported_name`; text of another form is the run's name."""
    match = _EXPORTED_NAME.fullmatch(text or "")
    return (text, None) if match is None else (match[1], int(match[2]))
