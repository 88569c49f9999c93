"""The columns of a run's CSV are a contract with every file that exists."""

import subprocess
import sys

from bitnetctl import records
from bitnetctl.records import NAMES, REQUIRED
from bitnetctl.records.schema import HEADER, NAMES_BY_VERSION

DESIGN_ORDER = (
    "Step,Loss,UniquePredictions,LR,WD,HeldOutLoss,UniqueTargets,ProbePositions,TopShare,EffectiveVocab,"
    "ContextInformation,UnigramLoss,BigramLoss,BigramUnique,RandomPromptUnique,Objective,GradNorm,"
    "ZeroFraction,FlipRate,HeldOutBitsPerByte,TokensPerSecond"
)


def test_columns_are_those_of_the_design() -> None:
    assert ",".join(NAMES) == DESIGN_ORDER
    assert REQUIRED == ("Step", "Loss", "UniquePredictions", "LR", "WD")
    assert HEADER.decode() == DESIGN_ORDER + "\n"
    assert records.SCHEMA_VERSION == 2


def test_the_columns_of_older_versions_do_not_change() -> None:
    assert sorted(NAMES_BY_VERSION) == [1, 2]
    assert ",".join(NAMES_BY_VERSION[1]) == DESIGN_ORDER.replace("HeldOutBitsPerByte,", "")
    assert NAMES_BY_VERSION[2] == NAMES


def test_every_column_says_what_it_is() -> None:
    for column in records.COLUMNS:
        assert column.unit
        assert len(column.description) > 20
        assert column.dtype in ("int", "float")


def test_import_is_light() -> None:
    code = "import sys, bitnetctl.records; print([m for m in ('numpy', 'pandas', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
