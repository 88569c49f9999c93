"""What a file states beside its tensors: the numbers of the config, the context, the end of text, the run."""

import math
from collections.abc import Iterator

from bitnetctl.errors import ExportError
from bitnetctl.formats.model_content import ModelContent
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.units import UNKNOWN

# of a number that was stored in fp32
_TOLERANCE = 1e-7


def require_stated(run: TrainedRun, content: ModelContent) -> None:
    """Raise ExportError where a file states another setting than that of the run.

    Another epsilon or base of rotary embeddings may change the probabilities of a small model too little to be seen.
    """
    for name, found, expected in _settings(run, content):
        if isinstance(found, float) and isinstance(expected, float):
            is_same = math.isclose(found, expected, rel_tol=_TOLERANCE)
        else:
            is_same = found == expected
        if not is_same:
            raise ExportError(f"self-check failed: {name} is {str(found)[:80]!r} in the file, not {expected!r}")


def _settings(run: TrainedRun, content: ModelContent) -> Iterator[tuple[str, object, object]]:
    """Yield the name of a setting, its value in the file and that of the run."""
    model = run.config.model
    for name, value in content.model.items():
        if name == "intermediate_ratio":
            yield "intermediate_size", round(value * model.hidden_size), model.intermediate_size
        else:
            yield name, value, getattr(model, name)
    yield "context_length", content.context_length, run.context_length
    yield "quantization", content.quant_lambda, run.quant_lambda
    yield "end_of_text", content.end_of_text, end_of_text_name(run)
    yield "run", content.run, run.name
    yield "step", content.step, run.step


def end_of_text_name(run: TrainedRun) -> str | None:
    """Return the token that ends a text of a run, None where it has none."""
    return None if run.end_of_text is None else str(run.tokenizer.id_to_token(run.end_of_text))


def without_folders(spec: object) -> str:
    """Return `file:/home/me/text.txt` as `file:text.txt`; names on the hub stay whole."""
    if not isinstance(spec, str):
        return UNKNOWN
    scheme, separator, rest = spec.partition(":")
    return f"{scheme}:{rest.replace(chr(92), '/').rpartition('/')[2]}" if separator and scheme != "hf" else spec
