"""What a step on the CPU does for speed changes nothing: batches of several steps at once, inference mode."""

import contextlib
from typing import Any

import pytest
import torch
from configs import TinyConfig

from bitnetctl.config import parse_arm
from bitnetctl.data import Batches, TokenData
from bitnetctl.engine import pack as engine_pack
from bitnetctl.engine.pack import Pack
from bitnetctl.plugins.composition import Composition
from bitnetctl.plugins.registry import compose

CPU = torch.device("cpu")


def test_batches_fetched_for_several_steps_are_those_of_each_step(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [tiny_config(seed=seed, data__order="shuffled") for seed in (0, 1)]
    # three steps of both runs at once
    monkeypatch.setattr(
        engine_pack, "_ROWS_AT_ONCE", 2 * 3 * configs[0].data.batch_size * configs[0].data.sequence_length
    )
    pack = Pack(configs, [Composition(), Composition()], tiny_tokens, CPU)
    batches = [Batches(tiny_tokens, config.data, config.seed) for config in configs]
    # forward, over the end of what was fetched, and back to an earlier step, as after a rollback
    for step in (1, 2, 3, 4, 5, 9, 2):
        rows_RBT1 = pack._rows(step)
        assert len(pack._fetched_SRBT1) == 3
        for run, each in enumerate(batches):
            assert torch.equal(rows_RBT1[run], torch.from_numpy(each.rows_BT1(step)))


def test_a_step_without_autograd_is_the_same_and_leaves_ordinary_tensors(
    tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    fast, plain = (Pack([tiny_config()], [Composition()], tiny_tokens, CPU) for _ in range(2))
    assert fast._without_autograd is torch.inference_mode
    plain._without_autograd = contextlib.nullcontext
    for step in (1, 2):
        for each in (fast, plain):
            each.step(step)
    for key, packed in plain.model.packed.items():
        assert torch.equal(fast.model.packed[key], packed), key
    kept = [fast.loss_R, *fast.model.packed.values(), *fast.model.gradients.values()]
    kept += fast.replicas[0].optimizer.state().values()
    # torch refuses to change others, or to differentiate through them, later
    assert not any(tensor.is_inference() for tensor in kept)


@pytest.mark.parametrize(
    ("fields", "arm"),
    [({"data__sequence_length": 80}, ""), ({"model__num_key_value_heads": 1}, ""), ({}, "label-smoothing")],
)
def test_a_step_with_autograd_in_it_keeps_it(
    fields: dict[str, Any], arm: str, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    pack = Pack([tiny_config(**fields)], [compose(parse_arm(arm))], tiny_tokens, CPU)
    pack.step(1)
    assert pack.loss_R.isfinite().all()
    assert pack._without_autograd is contextlib.nullcontext
