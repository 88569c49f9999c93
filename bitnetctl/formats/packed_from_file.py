"""The packed model of what a file holds, proven to quantize its weights to the codes and scales of the file.

Shapes: O×I a matrix, G groups of inputs with a scale each.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.errors import DataError
from bitnetctl.formats.gates import Mismatch, compare_quantized
from bitnetctl.formats.masters import Quantized, group_size, make_masters
from bitnetctl.formats.model_content import ModelContent
from bitnetctl.model.packed import PackedModel
from bitnetctl.model.parameters import EMBEDDINGS, HEAD
from bitnetctl.model.quantization import Quantizers

# of a scale that is a mean of rounded weights
_SCALE_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class PackedFromFile:
    """A model of one run with the weights of a file; `notes` has a line for what was compared, made or left out."""

    model: PackedModel
    notes: tuple[str, ...]


def packed_from_file(
    file: ModelContent, config: ModelConfig, quantizers: Quantizers, vocab_size: int, path: Path, device: torch.device
) -> PackedFromFile:
    """Return the model of a file with the vocabulary of its tokenizer, and masters for codes that have none.

    Masters of the file that quantize to other codes than those beside them are left out, with a note: another quantizer
    made the codes, or the masters are damaged. Raises DataError where made ones do not give codes and scales back.
    """
    notes: list[str] = []
    tables = _tables(file, vocab_size, path, notes)
    model = PackedModel([config], vocab_size, [0], device, quantizers=quantizers)
    weights = {**file.weights, **tables}
    if not file.quantized:
        model.load(0, weights)
        return PackedFromFile(model=model, notes=tuple(notes))
    if file.quantized.keys() <= weights.keys():
        model.load(0, weights)
        try:
            return PackedFromFile(model=model, notes=(*notes, _compared(file, model)))
        except Mismatch as error:
            # between 0 and 1 the masters are part of what is computed
            if file.quant_lambda != 1.0:
                raise DataError(f"{path}: quantizing its weights gives other codes or scales: {error}") from error
            notes.append(
                f"its masters are left out, since they do not quantize to its codes and scales here ({error}): it was "
                "trained with another quantizer, or the masters are damaged"
            )
    model.load(0, {**weights, **make_masters(file.quantized, config)})
    try:
        compared = _compared(file, model)
    except Mismatch as error:
        raise DataError(f"{path}: quantizing weights here gives other codes or scales: {error}") from error
    made = f"masters of {len(file.quantized)} matrices made of codes and scales"
    notes.append(f"{made}: those that were trained are not in the file")
    return PackedFromFile(model=model, notes=(*notes, compared))


def _tables(file: ModelContent, vocab_size: int, path: Path, notes: list[str]) -> dict[str, Tensor]:
    """Return embeddings and head with a row for each token; files may have more, as padding."""
    rows = file.weights[EMBEDDINGS].shape[0]
    if rows < vocab_size:
        raise DataError(f"{path}: has {rows} tokens, and the tokenizer {vocab_size}; it is that of another model")
    if rows > vocab_size:
        notes.append(f"left out {rows - vocab_size} rows of the vocabulary that the tokenizer has no token for")
    return {name: file.weights[name][:vocab_size] for name in (EMBEDDINGS, HEAD) if name in file.weights}


def _compared(file: ModelContent, model: PackedModel) -> str:
    """Return a line that says codes and scales are those of the file; raises Mismatch if not."""
    ours: Quantized = model.quantized(0)
    compared = {}
    for name, (codes_OI, scale_OG) in ours.items():
        # what nothing but 0 is multiplied by may be anything
        is_zero_OG = (codes_OI == 0).unflatten(-1, (scale_OG.shape[1], -1)).all(-1)
        is_zero_OG = is_zero_OG if group_size(file.quantized) else is_zero_OG.all().expand_as(scale_OG)
        stored_OG = file.quantized[name][1].to(scale_OG.device)
        if stored_OG.shape[1] not in (1, scale_OG.shape[1]):
            raise Mismatch(f"{name}: {stored_OG.shape[1]} scales for a row, and {scale_OG.shape[1]} here")
        compared[name] = codes_OI.cpu(), torch.where(is_zero_OG, stored_OG, scale_OG).cpu()
    return compare_quantized(file.quantized, compared, tolerance=_SCALE_TOLERANCE)
