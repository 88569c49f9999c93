"""The benchmark of generated text: what it times, on a tiny model."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import generate, harness
from bitnetctl.config import build_config
from bitnetctl.model.matmul import Operand
from bitnetctl.model.packed import PackedModel


def test_every_contender_computes_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config("portable", overrides=["model.hidden_size=32", "model.num_layers=1"])
    model = PackedModel([config.model], 64, [0], torch.device("cpu"))
    tokens: list[int] = []
    multiply = model.matmul.multiply

    def counted(x: Operand, weight: Operand) -> torch.Tensor:
        tokens.append(x.values.shape[1])
        return multiply(x, weight)

    monkeypatch.setattr(model.matmul, "multiply", counted)
    matrices = 4
    for name, expected in {
        "uncached": [1, 3, 5, 7, 9, 11, 13, 15],
        # a prompt of one token, and 15 steps of a block of rows
        "cached": [1] + [8] * 15,
        "cached, sampled": [1] + [8] * 15,
        "cached, 8 samples": [1] + [8] * 15,
        "floor": [],
    }.items():
        tokens.clear()
        contender = generate.contenders(model, 16)[name]
        contender.take_turn(1)
        assert tokens[::matrices] == expected, name
        seconds = contender.median("seconds", skip=0)
        assert seconds is not None
        assert seconds > 0


def test_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "enter_cli_environment", lambda: None)
    arguments = ["--quick", "--vocabulary", "64", "--json", str(tmp_path / "r.json"), "model.hidden_size=32"]
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    assert generate.main() == 0
    shown = capsys.readouterr().out
    assert "times uncached" in shown
    assert "cached, 8 samples" in shown
