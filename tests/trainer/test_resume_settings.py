"""A run goes on only with the config that its interventions gave before."""

import pytest

from bitnetctl.config import RunConfig
from bitnetctl.errors import CheckpointError
from bitnetctl.records import Manifest
from bitnetctl.trainer.resume import refuse_other_config


def manifest_of(config: RunConfig, effective: RunConfig | None) -> Manifest:
    now = "2026-01-01T00:00:00+00:00"
    return Manifest(
        run="h64-s0",
        status="stopped",
        config=config.model_dump(mode="json"),
        config_hash=config.hash,
        effective_config=None if effective is None else effective.model_dump(mode="json"),
        created_at=now,
        updated_at=now,
    )


def test_another_effective_config_is_refused_with_both_values() -> None:
    config = RunConfig(steps=100)
    before = config.model_copy(update={"steps": 50})
    with pytest.raises(CheckpointError, match=r"run h64-s0: its interventions give another config.* 60 now, was 50"):
        refuse_other_config(manifest_of(config, before), config.model_copy(update={"steps": 60}))


def test_the_same_and_an_unknown_config_go_on() -> None:
    config = RunConfig(steps=100)
    refuse_other_config(manifest_of(config, config), config)
    refuse_other_config(manifest_of(config, None), config)
    refuse_other_config(None, config)
