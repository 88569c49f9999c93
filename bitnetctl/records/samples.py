"""Text that a run wrote at a step (`samples.json`), and how it measures beside human text. No torch here."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitnetctl.errors import RecordError, cannot_read, one_line
from bitnetctl.files import write_atomic
from bitnetctl.records.paths import SAMPLES_NAME

SCHEMA_VERSION = 1
MAX_BYTES = 2**24

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Measured = Annotated[float, Field(ge=0.0, le=1e6)]
_Text = Annotated[str, Field(max_length=1_000_000)]


class _Document(BaseModel):
    """Base: frozen; fields of a newer version are ignored; NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TextMeasures(_Document):
    """Measures of several texts of equal length; see `bitnetctl.inference.quality` for each, None is unknown.

    Where it was measured, the first separates collapsed from healthy runs, the others do not: docs/text-quality.md.
    """

    bigram_nats: _Measured | None = Field(None, description="cross-entropy under the training bigram, nats per token")
    repetition: _Measured = Field(description="fraction of 4-grams of a text that repeat an earlier one of it")
    distinct: _Measured = Field(description="distinct bigrams over all bigrams of the texts together")
    zipf: _Measured | None = Field(
        None, description="exponent of frequency against rank; None below two distinct tokens"
    )
    compression: _Measured = Field(description="UTF-8 bytes over bytes after zlib")


class Continuation(_Document):
    """A prompt of held-out text, how it goes on, and how the model goes on: its most probable tokens, and sampled."""

    prompt: _Text
    human: _Text
    greedy: _Text
    sampled: _Text


class Samples(_Document):
    """What the model of a run wrote after `step`, each continuation `new_tokens` long; temperature 0 is greedy.

    `temperature`, `top_k`, `top_p`, `min_p` and `seed` are those of the sampled text.
    """

    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    step: _Count
    context_length: _Count
    prompt_tokens: _Count
    new_tokens: _Count
    temperature: _Measured
    top_k: _Count | None
    top_p: _Measured
    min_p: _Measured
    seed: _Count
    human: TextMeasures
    greedy: TextMeasures
    sampled: TextMeasures
    texts: Annotated[list[Continuation], Field(max_length=10_000)]


def write_samples(path: Path, samples: Samples) -> None:
    """Replace `samples.json`; raises StorageError."""
    write_atomic(path, samples.model_dump_json(indent=1).encode() + b"\n")


def read_samples(folder: Path) -> Samples | None:
    """Read the `samples.json` in the folder of a run; None where there is none.

    Raises RecordError where it is damaged, newer than this version, or larger than MAX_BYTES.
    """
    path = folder / SAMPLES_NAME
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RecordError(cannot_read(path, error)) from error
    if len(content) > MAX_BYTES:
        raise RecordError(f"{path}: larger than samples may be ({MAX_BYTES // 2**20} MiB)")
    try:
        samples = Samples.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise RecordError(f"{path}: damaged: {where}: {one_line(first['msg'])}") from error
    if samples.schema_version > SCHEMA_VERSION:
        raise RecordError(f"{path}: written by a newer bitnetctl (schema {samples.schema_version}); update it")
    return samples
