"""The columns of a run's CSV: one row at step 1, at every evaluation and at the end."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]
    Integers: TypeAlias = npt.NDArray[np.int64]
    Booleans: TypeAlias = npt.NDArray[np.bool_]

SCHEMA_VERSION = 2

Row: TypeAlias = Mapping[str, float | int | None]
"""Values by column name; None is unknown, NaN and infinity are known."""


@dataclass(frozen=True)
class Column:
    """Name, unit, type and meaning of one column, the range of its finite values, and its first schema version."""

    name: str
    unit: str
    dtype: Literal["int", "float"]
    description: str
    least: float = 0.0
    most: float = math.inf
    since: int = 1


COLUMNS = (
    Column("Step", "steps", "int", "optimizer steps done when the row was measured, from 1"),
    Column("Loss", "nats", "float", "plain cross-entropy of the training batch, whatever the arm minimises"),
    Column(
        "UniquePredictions",
        "tokens",
        "int",
        "distinct arg-max tokens over the probe positions, teacher-forced; in a file without ProbePositions "
        "the metric of the program that wrote it (the founding document: 20 random prompts, so at most 20)",
    ),
    Column("LR", "1", "float", "learning rate of the step, after interventions", least=-math.inf),
    Column("WD", "1", "float", "weight decay of the step, after interventions", least=-math.inf),
    Column("HeldOutLoss", "nats", "float", "mean cross-entropy over the probe positions"),
    Column("UniqueTargets", "tokens", "int", "distinct true next tokens at the probe positions"),
    Column("ProbePositions", "positions", "int", "fixed held-out positions measured"),
    Column(
        "TopShare",
        "1",
        "float",
        "fraction of the probe positions whose arg-max token is the most frequent one",
        most=1.0,
    ),
    Column("EffectiveVocab", "tokens", "float", "exp of the entropy of the arg-max histogram over the probe"),
    Column(
        "ContextInformation",
        "nats",
        "float",
        "mutual information of context and prediction: H(mean softmax) - mean H(softmax) over the probe",
        least=-math.inf,
    ),
    Column("UnigramLoss", "nats", "float", "probe loss of a unigram predictor counted on the training tokens"),
    Column("BigramLoss", "nats", "float", "probe loss of a bigram predictor counted on the training tokens"),
    Column("BigramUnique", "tokens", "int", "distinct tokens that the bigram predictor predicts on the probe"),
    Column(
        "RandomPromptUnique",
        "tokens",
        "int",
        "distinct arg-max tokens after the founding document's random prompts; at most their number (20)",
    ),
    Column(
        "Objective",
        "nats",
        "float",
        "the loss that the step minimised; differs from Loss where an intervention changes it",
        least=-math.inf,
    ),
    Column("GradNorm", "1", "float", "global L2 norm of the step's gradients before clipping"),
    Column(
        "ZeroFraction",
        "1",
        "float",
        "fraction of the ternary weights that are 0; about 0.31 for Gaussian latent weights",
        most=1.0,
    ),
    Column(
        "FlipRate",
        "1",
        "float",
        "fraction of the ternary weights that changed since the previous evaluation",
        most=1.0,
    ),
    Column(
        "HeldOutBitsPerByte",
        "bits/byte",
        "float",
        "HeldOutLoss / ln 2 x probe positions / UTF-8 bytes of their true next tokens; comparable between tokenizers. "
        "Special tokens, such as the end of a text, count no bytes, but their loss counts; unknown where the tokens "
        "do not give the text back byte for byte",
        since=2,
    ),
    Column(
        "TokensPerSecond",
        "tokens/s",
        "float",
        "training tokens of this run over wall-clock time, since the previous row",
    ),
)
NAMES = tuple(column.name for column in COLUMNS)
REQUIRED = NAMES[:5]
NAMES_BY_VERSION = {
    version: tuple(column.name for column in COLUMNS if column.since <= version)
    for version in range(1, SCHEMA_VERSION + 1)
}
HEADERS = {(",".join(names) + "\n").encode(): names for names in NAMES_BY_VERSION.values()}
"""Columns by the header line of each schema version, the newest last."""
HEADER = (",".join(NAMES) + "\n").encode()
