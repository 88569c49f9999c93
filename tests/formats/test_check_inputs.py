"""Rows that an export is checked on."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.data import ProbeData, TokenData
from bitnetctl.formats.check_inputs import check_rows
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.model.packed import PackedModel
from bitnetctl.records import Manifest, RunPaths

Rows = Callable[..., Tensor]


@pytest.fixture
def rows(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> Rows:
    """Return the rows of an untrained run of a context of 16 tokens whose text has a fingerprint."""

    def of(fingerprint: str, positions: int, seed: int = 0) -> Tensor:
        config = tiny_config(seed=seed)
        run = TrainedRun(
            name="tiny",
            paths=RunPaths(tmp_path, "tiny"),
            step=1,
            config=config,
            manifest=cast(Manifest, SimpleNamespace(data={"fingerprint": fingerprint})),
            tokenizer=Tokenizer(models.BPE()),
            end_of_text=None,
            quant_lambda=1.0,
            model=PackedModel([config.model], 300, [seed], torch.device("cpu")),
        )
        return check_rows(run, positions)

    return of


def test_rows_are_held_out_text_where_the_cache_has_it(
    rows: Rows, tiny_tokens: TokenData, tiny_probe: ProbeData
) -> None:
    rows_PT = rows(tiny_tokens.fingerprint, 120)
    # the rows of the probe are as evenly spaced
    assert torch.equal(rows_PT, torch.from_numpy(tiny_probe.inputs_PT))


def test_rows_are_sampled_where_the_text_is_gone(rows: Rows, token_cache: Path) -> None:
    rows_PT = rows("0" * 64, 100)
    assert rows_PT.shape == (7, 16)
    assert torch.equal(rows_PT, rows("0" * 64, 100))
    assert not torch.equal(rows_PT, rows("0" * 64, 100, seed=1))
    assert rows_PT.min() >= 0
    assert rows_PT.max() < 300


def test_rows_are_sampled_where_the_text_is_too_short(rows: Rows, tiny_tokens: TokenData) -> None:
    rows_PT = rows(tiny_tokens.fingerprint, len(tiny_tokens.held_out_N) + 16)
    assert rows_PT.numel() > len(tiny_tokens.held_out_N)
