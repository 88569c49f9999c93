"""Tiny runs to export, of every recipe and of own quantizers; loaded as a pytest plugin by conftest.py."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from training import train_runs

from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.inference.trained import TrainedRun, open_run
from bitnetctl.trainer.options import TrainOptions

# recipe, arm and fields of each; at the default initialisation of torch even a model that has not learned anything is
# far from uniform, so that a wrong export shows
RUNS: Mapping[str, tuple[str, str, Mapping[str, object]]] = {
    "portable": ("portable", "", {}),
    "grouped": ("portable", "", {"model.num_key_value_heads": 2, "model.rope_theta": 500.0}),
    "b158": ("b158", "", {}),
    "origin": ("origin", "", {}),
    "inner": ("origin", "", {"model.scale_group": "projection"}),
    "fused": ("b158", "", {"model.scale_group": "fused"}),
    "full": ("portable", "full-precision", {}),
    "full-inner": ("origin", "full-precision", {}),
    "median": ("portable", "median-scale", {}),
    "groups": ("portable", "group-scale:size=16", {}),
    "half": ("portable", "", {"model.quantization": "0.5"}),
    "capped": ("portable", "", {"model.logit_soft_cap": "30"}),
}
# of the widths of blocks of ternary types; large weights, for the same reason
_WIDE = {
    "model.hidden_size": 256,
    "model.intermediate_ratio": 2,
    "model.initialization": "normal",
    "model.init_std": 0.02,
}
WIDE: Mapping[str, tuple[str, str, Mapping[str, object]]] = {
    "wide": ("portable", "", {**_WIDE, "model.num_key_value_heads": 2, "model.rope_theta": 500.0}),
    "wide-fused": ("portable", "", {**_WIDE, "model.scale_group": "fused"}),
    "wide-blocks": ("portable", "group-scale:size=256,half=true", _WIDE),
    "wide-relu2": ("portable", "", {**_WIDE, "model.activation": "relu2"}),
    "wide-rows": ("portable", "group-scale:size=256", _WIDE),
}


def config(name: str, text: Path) -> RunConfig:
    recipe, arm, fields = {**RUNS, **WIDE}[name]
    known = {
        "steps": 4,
        "model.hidden_size": 32,
        "model.num_layers": 2,
        "model.num_attention_heads": 4,
        "model.initialization": "default",
        "data.source": f"file:{text}",
        "data.tokenizer": "bpe:300",
        "data.batch_size": 2,
        "data.sequence_length": 32,
        "schedule.warmup_steps": 2,
        "probe.positions": 128,
        "probe.eval_every_steps": 2,
    }
    texts = [f"{key}={value}" for key, value in {**known, **fields}.items()]
    return build_config(recipe, overrides=texts, interventions=parse_arm(arm))


def train_tiny(names: Iterable[str], text: Path, runs_dir: Path) -> dict[str, TrainedRun]:
    """Train runs and open them; their norms are moved off 1, where a swapped or missing one would not show."""
    names = list(names)
    with pytest.MonkeyPatch.context() as patch:
        # fsync takes half of the time of a tiny run
        patch.setattr(os, "fsync", lambda descriptor: None)
        for name in names:
            list(train_runs([config(name, text)], TrainOptions(runs_dir=runs_dir, device="cpu"), names=[name]))
    opened = {name: open_run(name, runs_dir) for name in names}
    for run in opened.values():
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for key, packed in run.model.packed.items():
                if run.model.parameter_specs[key].group == "norms":
                    packed.add_(torch.rand(packed.shape, generator=generator) - 0.5)
    return opened


@pytest.fixture(scope="session")
def export_runs(tiny_text: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedRun]:
    """One tiny run of each kind; never changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        return train_tiny(RUNS, tiny_text, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def wide_runs(tiny_text: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedRun]:
    """Runs of `WIDE`, whose projections have scales that differ as after a long training; never changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        runs = train_tiny(WIDE, tiny_text, tmp_path_factory.mktemp("runs"))
    for run in runs.values():
        for name, weight in run.weights().items():
            if "q_proj" in name or "up_proj" in name:
                weight.mul_(2 if "q_proj" in name else 1.5)
    return runs
