"""Steps that a GPU captures and replays, by engine: the same bits every time, and what the steps of the host train."""

import pytest
import torch
from configs import TinyConfig
from on_gpu import CAPTURED, ENGINES, MARKS, assert_close, assert_same_bits, build, captured, mean_difference, train

from bitnetctl.data import TokenData
from bitnetctl.model.matmul import Precision

pytestmark = MARKS


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.compile compile, which other tests prevent."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_replays_are_fifty_steps_of_the_host(
    tiny_config: TinyConfig, tiny_tokens: TokenData, precision: Precision
) -> None:
    configs = [tiny_config(seed=seed, steps=50) for seed in range(2)]
    replayed, host = (build(engine, configs, tiny_tokens, precision=precision) for engine in ("graph", "eager"))
    losses = [train(pack, range(1, 51)) for pack in (replayed, host)]
    captured(replayed)
    assert_close(losses[0], losses[1], relative=1e-3)
    assert max(mean_difference(replayed, host).values()) <= 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_trains_as_the_host(tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str) -> None:
    configs = [tiny_config(seed=seed, steps=50) for seed in range(3)]
    ours, host = (build(each, configs, tiny_tokens) for each in (engine, "eager"))
    losses, expected = (train(pack, range(1, 51)) for pack in (ours, host))
    captured(ours)
    # sums in another order flip a rounding to int8 now and then
    assert_close(losses[0], expected[0], relative=2e-3)
    assert_close(losses, expected, relative=2e-2)
    # both have learned
    assert (losses[-10:].mean() < losses[:5].mean() - 0.1).item()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("positions", [32, 512])
def test_captured_steps_repeat_bit_for_bit(
    tiny_config: TinyConfig, tiny_tokens: TokenData, positions: int, engine: str
) -> None:
    configs = [tiny_config(seed=seed, steps=40, data__sequence_length=positions) for seed in range(2)]
    first, again = (build(engine, configs, tiny_tokens) for _ in range(2))
    losses = [train(pack, range(1, 41)) for pack in (first, again)]
    captured(first)
    assert torch.equal(*losses)
    assert_same_bits(first, again)


@pytest.mark.parametrize("engine", CAPTURED)
def test_steps_are_right_where_a_table_ends(tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str) -> None:
    # 256 steps fill a table; nothing waits for the GPU here, so that many replays are queued when it is filled again
    configs = [tiny_config(seed=seed, steps=600) for seed in range(3)]
    queued, waiting = (build(engine, configs, tiny_tokens) for _ in range(2))
    for step in range(1, 271):
        queued.step(step)
    losses = []
    for step in range(1, 271):
        losses.append(train(waiting, [step])[0])
        waiting.wait()
    captured(queued)
    assert torch.equal(queued.loss_R, waiting.loss_R)
    assert_same_bits(queued, waiting)
    # other batches would have other losses
    expected = train(build("eager", configs, tiny_tokens), range(1, 271))
    assert_close(torch.stack(losses)[250:], expected[250:], relative=3e-2)


@pytest.mark.parametrize("engine", CAPTURED)
@pytest.mark.parametrize("arm", ["label-smoothing", "fp-first:fraction=0.25,ramp=0.25", "momentum-reset:every=7"])
def test_interventions_are_captured(tiny_config: TinyConfig, tiny_tokens: TokenData, arm: str, engine: str) -> None:
    # fp-first: full precision to step 10, λ between 0 and 1 to step 20, then ternary
    configs = [tiny_config(seed=seed, steps=40) for seed in range(2)]
    ours, host, plain = (
        build(each, configs, tiny_tokens, arms, precision="fp32")
        for each, arms in ((engine, [arm, ""]), ("eager", [arm, ""]), (engine, ["", ""]))
    )
    losses = [train(pack, range(1, 41)) for pack in (ours, host, plain)]
    captured(ours)
    assert_close(losses[0], losses[1], relative=5e-3 if engine == "graph" else 2e-2)
    # only the run that has it differs from one without
    assert not torch.equal(losses[0][:, 0], losses[2][:, 0])
    assert_close(losses[0][:, 1], losses[2][:, 1], relative=2e-2)


@pytest.mark.parametrize("engine", CAPTURED)
@pytest.mark.parametrize("arm", ["median-scale", "group-scale:size=8+fp-first:fraction=0.25,ramp=0.25"])
def test_own_quantizers_are_captured(tiny_config: TinyConfig, tiny_tokens: TokenData, arm: str, engine: str) -> None:
    configs = [tiny_config(seed=seed, steps=40) for seed in range(2)]
    ours, host, plain = (
        build(each, configs, tiny_tokens, arms, precision="fp32")
        for each, arms in ((engine, [arm, arm]), ("eager", [arm, arm]), (engine, ["", ""]))
    )
    losses = [train(pack, range(1, 41)) for pack in (ours, host, plain)]
    captured(ours)
    assert_close(losses[0], losses[1], relative=5e-3 if engine == "graph" else 2e-2)
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("engine", CAPTURED)
def test_weight_decay_changes_at_its_stage(tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str) -> None:
    def decayed(stage2: float, kind: str) -> dict[str, torch.Tensor]:
        decay = {"schedule__stage1_weight_decay": 5.0, "schedule__stage2_weight_decay": stage2}
        config = tiny_config(steps=24, optimizer__name="adamw", **decay)
        pack = build(kind, [config], tiny_tokens, precision="fp32")
        train(pack, range(1, 25))
        if kind != "eager":
            captured(pack)
        return {key: packed.norm() for key, packed in pack.model.packed.items()}

    ours, host, never = decayed(0.0, engine), decayed(0.0, "eager"), decayed(5.0, engine)
    for key in ("embed", "head", "final_norm"):
        assert_close(ours[key], host[key], relative=2e-3)
        assert never[key] < 0.995 * ours[key]


@pytest.mark.parametrize("engine", CAPTURED)
def test_moments_are_reset_between_replays(tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str) -> None:
    config = tiny_config(steps=40, optimizer__reset_moments_every_steps=7)
    ours, host = (build(each, [config], tiny_tokens, precision="fp32") for each in (engine, "eager"))
    losses = [train(pack, range(1, 17)) for pack in (ours, host)]
    captured(ours)
    assert_close(losses[0], losses[1], relative=1e-2)
    # reset before steps 8 and 15
    states = [pack.replicas[0].optimizer.state() for pack in (ours, host)]
    assert {float(value) for key, value in states[0].items() if key.endswith("/step")} == {2.0}
    for key, value in states[1].items():
        if key.endswith("/exp_avg"):
            assert ((states[0][key] - value).norm() / value.norm()).item() < 0.3, key


@pytest.mark.parametrize("engine", CAPTURED)
def test_a_diverged_run_freezes_and_its_neighbours_do_not_change(
    tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str
) -> None:
    absurd = tiny_config(seed=1, steps=40, schedule__peak_learning_rate=1e38, schedule__warmup_steps=0)
    calm = [tiny_config(seed=seed, steps=40) for seed in range(3)]
    disturbed = build(engine, [calm[0], absurd, calm[2]], tiny_tokens)
    undisturbed = build(engine, calm, tiny_tokens)
    train(disturbed, range(1, 21))
    frozen = {key: packed[1].clone() for key, packed in disturbed.model.packed.items()}
    train(disturbed, range(21, 41))
    train(undisturbed, range(1, 41))
    captured(disturbed).mark_diverged(40)
    assert [replica.diverged_at is None for replica in disturbed.replicas] == [True, False, True]
    for key, packed in disturbed.model.packed.items():
        assert torch.equal(packed[1], frozen[key]), key
        assert torch.equal(packed[[0, 2]], undisturbed.model.packed[key][[0, 2]]), key


@pytest.mark.parametrize("engine", CAPTURED)
def test_a_run_of_a_pack_of_sixteen_trains_as_it_does_alone(
    tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str
) -> None:
    configs = [tiny_config(seed=seed, steps=20) for seed in range(16)]
    together = train(build(engine, configs, tiny_tokens, precision="fp32"), range(1, 21))
    for seed in (0, 7, 15):
        alone = train(build(engine, [configs[seed]], tiny_tokens, precision="fp32"), range(1, 21))
        # a rounding to int8 that flips moves the loss in the fourth decimal
        assert_close(together[0, seed], alone[0, 0], relative=1e-3)
        assert_close(together[:, seed], alone[:, 0], relative=1e-2)
    # no run is another's copy
    assert together[0].unique().numel() == 16
