"""Every built-in intervention: it keeps the contract, and does what an independent reference says."""

import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl.config import InterventionSpec, RunConfig, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.engine import schedule
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Intervention
from bitnetctl.model import matmul
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import Composition
from bitnetctl.plugins.registry import changed_hooks
from bitnetctl.testing import check_contract

TinyConfig = Callable[..., RunConfig]
PackOf = Callable[..., Pack]

# name → the settings that every built-in is tested with; each setting of each is set at least once
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "adaptive-clipping": [{}, {"clipping": 0.1}, {"clipping": 1e-4, "eps": 1.0}],
    "aggressive-clipping": [{}, {"max_norm": 1e-3}],
    "decoupled-decay": [{}, {"decayed": "all"}, {"decayed": "matrices"}],
    "fp-first": [{}, {"fraction": 0.5, "ramp": 0.0}, {"fraction": 0.0, "ramp": 1.0}, {"fraction": 1.0}],
    "full-precision": [{}],
    "init-scale": [{}, {"std": 0.1}],
    "label-smoothing": [{}, {"epsilon": 0.0}, {"epsilon": 0.5}],
    "lr-drop": [{}, {"stage2_peak": 2e-4}],
    "momentum-reset": [{}, {"every": 1}],
    "no-decay": [{}],
    "reduced-lr": [{}, {"peak": 1e-4}, {"factor": 0.1}, {"peak": 1.0, "factor": 2.0}],
    "wd-schedule": [
        {},
        {"preset": "stage1-only"},
        {"preset": "before-fix"},
        {"preset": "fix", "stage1": 0.3},
        {"stage1": 0.0, "stage2": 0.2, "boundary": 0.25},
    ],
}
CASES = [
    pytest.param(name, settings, id=str(InterventionSpec(name=name, settings=settings)))
    for name, entries in SETTINGS.items()
    for settings in entries
]


def built_in(name: str) -> type[Intervention]:
    kind = registry.load(name).intervention
    assert kind is not None
    return kind


def compose(arm: str) -> Composition:
    return registry.compose(parse_arm(arm))


@pytest.fixture
def pack(tiny_tokens: TokenData) -> PackOf:
    """Build a pack of one config under several arms, with each arm's own config."""

    def build(config: RunConfig, *arms: str) -> Pack:
        compositions = [compose(arm) for arm in arms]
        configs = [composition.configure(config) for composition in compositions]
        return Pack(configs, compositions, tiny_tokens, torch.device("cpu"))

    return build


def weights(pack: Pack, run: int = 0) -> dict[str, Tensor]:
    return {key: packed[run].clone() for key, packed in pack.model.packed.items()}


def gradients(pack: Pack, run: int = 0) -> dict[str, Tensor]:
    """What the optimizer of a run was handed in the last step."""
    return {key: gradient[run].clone() for key, gradient in pack.model.gradients.items()}


def batch(pack: Pack, step: int) -> tuple[Tensor, Tensor]:
    """Inputs [R, B, T] and targets [R, N] of a step."""
    rows_RBT1 = pack._rows(step)
    return rows_RBT1[..., :-1], rows_RBT1[..., 1:].flatten(1)


def first_moments(pack: Pack) -> dict[str, Tensor]:
    """The first moments of run 0 by storage."""
    state = pack.replicas[0].optimizer.state()
    return pack.model._spec_views({flat: state[f"{flat}/exp_avg"].clone() for flat in pack.replicas[0].flat_parameters})


def counted_steps(pack: Pack) -> float:
    """What the optimizer of run 0 holds for the number of its steps."""
    (count,) = {value.item() for key, value in pack.replicas[0].optimizer.state().items() if key.endswith("/step")}
    return count


def adam(
    weight: Tensor,
    gradients: list[Tensor],
    *,
    rate: float,
    decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the weight after steps of Adam with decoupled decay, by the formulas of Kingma & Ba and Loshchilov."""
    w = weight.double().numpy().copy()
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, gradient in enumerate(gradients, 1):
        g = gradient.double().numpy()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
        w = w - rate * decay * w - rate * m_hat / (np.sqrt(v_hat) + eps)
    return w


def assert_close(actual: Mapping[str, Tensor], expected: Mapping[str, Any], atol: float) -> None:
    assert set(actual) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key].double().numpy(), value, rtol=1e-5, atol=atol, err_msg=key)


# all of them


def test_the_table_covers_every_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["bitnetctl.interventions"]
    discovered = {found.name: found.target for found in registry.discover() if found.distribution == project["name"]}
    assert discovered == points
    assert set(SETTINGS) == set(points)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_table_covers_every_setting(name: str) -> None:
    named = {key for settings in SETTINGS[name] for key in settings}
    assert named == set(built_in(name).Settings.model_fields)
    assert {} in SETTINGS[name]


@pytest.mark.parametrize("name", SETTINGS)
def test_it_says_what_it_is(name: str) -> None:
    kind = built_in(name)
    assert kind.summary
    assert "\n" not in kind.summary
    assert kind.source
    assert kind.__doc__
    assert changed_hooks(kind)
    assert all(field.description for field in kind.Settings.model_fields.values())


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_it_keeps_the_contract(name: str, settings: dict[str, Any]) -> None:
    check_contract(built_in(name), settings)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_it_trains_packed_beside_a_baseline(
    name: str, settings: dict[str, Any], tiny_config: TinyConfig, pack: PackOf
) -> None:
    base = tiny_config()
    together, alone = pack(base, str(InterventionSpec(name=name, settings=settings)), ""), pack(base, "")
    assert together.replicas[0].config.pack_key == base.pack_key
    for step in (1, 2):
        together.step(step)
        alone.step(step)
    assert together.replicas[0].diverged_at is None
    assert torch.isfinite(together.loss_R).all()
    # a part of a thousandth: one int8 rounding may fall the other way in a pack
    assert together.loss_R[1].item() == pytest.approx(alone.loss_R[0].item(), rel=1e-3)
    assert together.grad_norm_R[1].item() == pytest.approx(alone.grad_norm_R[0].item(), rel=0.05)


def test_all_of_them_train_in_one_pack(tiny_config: TinyConfig, pack: PackOf) -> None:
    arms = [str(InterventionSpec(name=name, settings=settings)) for name, all_ in SETTINGS.items() for settings in all_]
    together = pack(tiny_config(), "", *arms)
    for step in (1, 2, 3):
        together.step(step)
    assert [replica.diverged_at for replica in together.replicas] == [None] * (len(arms) + 1)
    assert together.loss_R.isfinite().all()


# one by one


@pytest.mark.parametrize("kind", ["two-stage", "paper", "cosine", "constant"])
@pytest.mark.parametrize(("arm", "peak"), [("reduced-lr", 5e-4), ("reduced-lr:peak=2e-4", 2e-4)])
def test_reduced_lr_keeps_the_shape_of_the_schedule(kind: str, arm: str, peak: float, tiny_config: TinyConfig) -> None:
    base = tiny_config(steps=40, schedule__kind=kind, schedule__warmup_steps=4).schedule
    reduced = compose(arm).configure(tiny_config(steps=40, schedule__kind=kind, schedule__warmup_steps=4)).schedule
    before = [schedule.learning_rate(base, step, 40) for step in range(1, 41)]
    after = [schedule.learning_rate(reduced, step, 40) for step in range(1, 41)]
    assert max(before) == 1.5e-3
    assert max(after) == pytest.approx(peak)
    np.testing.assert_allclose(after, np.array(before) * (peak / 1.5e-3), rtol=1e-12)


def test_reduced_lr_by_a_factor_scales_both_peaks(tiny_config: TinyConfig) -> None:
    config = tiny_config(schedule__peak_learning_rate=4e-3, schedule__stage2_peak_learning_rate=3e-3)
    for arm in ("reduced-lr:factor=0.25", "reduced-lr:peak=9,factor=0.25", "reduced-lr:peak=1e-3"):
        reduced = compose(arm).configure(config)
        assert reduced.schedule.peak_learning_rate == pytest.approx(1e-3)
        assert reduced.schedule.stage2_peak_learning_rate == pytest.approx(0.75e-3)
    untouched = {"schedule": {"peak_learning_rate", "stage2_peak_learning_rate"}}
    assert reduced.model_dump(exclude=untouched) == config.model_dump(exclude=untouched)


def test_reduced_lr_of_a_run_that_stands_still(tiny_config: TinyConfig) -> None:
    config = tiny_config(schedule__peak_learning_rate=0)
    with pytest.raises(ConfigError, match="reduced-lr"):
        compose("reduced-lr").configure(config)
    assert compose("reduced-lr:factor=0.5").configure(config).schedule.peak_learning_rate == 0.0


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_label_smoothing_is_its_formula(epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = (3 * torch.randn(7, 11, generator=generator, dtype=torch.float64)).requires_grad_()
    targets_T = torch.randint(11, (7,), generator=generator)
    loss = compose(f"label-smoothing:epsilon={epsilon}").training_loss(logits_TV, targets_T)
    loss.backward()

    scores_TV = logits_TV.detach().numpy()
    log_p_TV = scores_TV - np.log(np.exp(scores_TV).sum(-1, keepdims=True))
    one_hot_TV = np.eye(11)[targets_T.numpy()]
    mixed_TV = (1 - epsilon) * one_hot_TV + epsilon / 11
    assert loss.item() == pytest.approx(-(mixed_TV * log_p_TV).sum(-1).mean(), rel=1e-12)
    assert logits_TV.grad is not None
    np.testing.assert_allclose(logits_TV.grad.numpy(), (np.exp(log_p_TV) - mixed_TV) / 7, rtol=1e-9, atol=1e-15)


def test_label_smoothing_leaves_the_measured_loss_alone(tiny_config: TinyConfig, pack: PackOf) -> None:
    both = pack(tiny_config(), "", "label-smoothing:epsilon=0.5")
    inputs_RBT, targets_RN = batch(both, 1)
    with torch.no_grad():
        log_p_NV = both.model.forward(inputs_RBT, [1.0, 1.0])[0].log_softmax(-1)
    nll = -log_p_NV.gather(-1, targets_RN[0][:, None]).mean().item()
    both.step(1)
    assert both.loss_R.tolist() == pytest.approx([nll, nll], rel=1e-6)
    smoothed = 0.5 * nll - 0.5 * log_p_NV.mean().item()
    assert abs(smoothed - nll) > 1e-3
    assert both.objective_R.tolist() == pytest.approx([nll, smoothed], rel=1e-6)
    both.step(2)
    assert both.loss_R[0].item() != pytest.approx(both.loss_R[1].item(), rel=1e-7)


def test_label_smoothing_trains_on_the_smoothed_loss(tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config(optimizer__max_norm="none")
    both = pack(config, "label-smoothing:epsilon=0.3", "")
    inputs_RBT, targets_RN = batch(both, 1)
    hidden_NH = both.model.forward_for_backward(inputs_RBT, both.model.quantization([1.0, 1.0])).hidden_RNH[0]
    head_VH = both.model.packed["head"][0].clone().requires_grad_()
    log_p_NV = (hidden_NH @ head_VH.T).log_softmax(-1)
    nll = -log_p_NV.gather(-1, targets_RN[0][:, None]).mean()
    (expected,) = torch.autograd.grad(0.7 * nll - 0.3 * log_p_NV.mean(), head_VH)
    both.step(1)
    torch.testing.assert_close(gradients(both, 0)["head"], expected, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(gradients(both, 1)["head"], expected, rtol=1e-2, atol=1e-5)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("arm", "norm"), [("aggressive-clipping", 0.1), ("aggressive-clipping:max_norm=0.02", 0.02)])
def test_aggressive_clipping_is_what_the_optimizer_sees(
    arm: str, norm: float, tiny_config: TinyConfig, pack: PackOf
) -> None:
    both = pack(tiny_config(), arm, "")
    both.step(1)
    measured = both.grad_norm_R.tolist()
    assert measured[0] == pytest.approx(measured[1], rel=1e-9)
    assert measured[0] > 0.2
    clipped = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients(both).values()))
    assert clipped == pytest.approx(norm, rel=1e-5)
    for key, gradient in gradients(both, 1).items():
        scale = norm / min(measured[1], 1.0)
        torch.testing.assert_close(gradients(both)[key], gradient * scale, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("arm", "decays"),
    [
        ("baseline", (0.1, 0.1, 0.0, 0.0)),
        ("wd-schedule", (0.1, 0.1, 0.0, 0.0)),
        ("wd-schedule:preset=fix", (0.1, 0.1, 0.0, 0.0)),
        ("wd-schedule:preset=before-fix", (0.1, 0.1, 0.05, 0.05)),
        ("wd-schedule:preset=stage1-only", (0.1, 0.1, 0.1, 0.1)),
        ("wd-schedule:stage1=0.3", (0.3, 0.3, 0.0, 0.0)),
        ("wd-schedule:stage1=0,stage2=0.2", (0.0, 0.0, 0.2, 0.2)),
        ("wd-schedule:preset=before-fix,stage2=0.01", (0.1, 0.1, 0.01, 0.01)),
        ("wd-schedule:preset=before-fix,stage1=0.2", (0.2, 0.2, 0.05, 0.05)),
        ("wd-schedule:boundary=0.25", (0.1, 0.0, 0.0, 0.0)),
        ("wd-schedule:boundary=0", (0.0, 0.0, 0.0, 0.0)),
        ("wd-schedule:boundary=1", (0.1, 0.1, 0.1, 0.1)),
        ("wd-schedule:preset=stage1-only,boundary=0.25", (0.1, 0.0, 0.0, 0.0)),
        ("no-decay", (0.0, 0.0, 0.0, 0.0)),
        ("wd-schedule:stage2=0.05+no-decay", (0.0, 0.0, 0.0, 0.0)),
        ("no-decay+wd-schedule:stage2=0.05", (0.0, 0.0, 0.05, 0.05)),
    ],
)
def test_decay_of_each_quarter(arm: str, decays: tuple[float, ...], tiny_config: TinyConfig, pack: PackOf) -> None:
    [replica] = pack(tiny_config(steps=8), arm).replicas
    assert [replica.weight_decay(step) for step in range(1, 9)] == [decay for decay in decays for _ in range(2)]


def test_the_boundary_of_the_decay_is_not_that_of_the_rate(tiny_config: TinyConfig, pack: PackOf) -> None:
    moved, base = pack(tiny_config(steps=40), "wd-schedule:boundary=0.2", "").replicas
    assert [moved.learning_rate(step) for step in range(1, 41)] == [base.learning_rate(step) for step in range(1, 41)]
    assert [step for step in range(1, 41) if moved.weight_decay(step)] == list(range(1, 9))
    assert [step for step in range(1, 41) if base.weight_decay(step)] == list(range(1, 21))


def test_stage1_only_never_enters_stage_2(tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config(steps=40, schedule__warmup_steps=4, schedule__stage2_weight_decay=0.7)
    [replica] = pack(config, "wd-schedule:preset=stage1-only").replicas
    assert {replica.weight_decay(step) for step in range(1, 41)} == {0.1}
    # the line of stage 1 takes the whole run: from the peak at step 4 to two thirds of it at step 40
    assert replica.learning_rate(4) == pytest.approx(1.5e-3)
    assert replica.learning_rate(22) == pytest.approx(1.25e-3)
    assert replica.learning_rate(40) == pytest.approx(1e-3)
    assert replica.config.boundary_step == 40


def test_stage1_only_whatever_the_recipe_has(tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config(steps=40, schedule__weight_decay_boundary_fraction=0.5)
    [replica] = pack(config, "wd-schedule:preset=stage1-only").replicas
    assert {replica.weight_decay(step) for step in range(1, 41)} == {0.1}


@pytest.mark.parametrize("preset", ["stage1-only", "before-fix", "fix"])
def test_presets_touch_the_schedule_only(preset: str, tiny_config: TinyConfig) -> None:
    config = tiny_config()
    changed = compose(f"wd-schedule:preset={preset}").configure(config)
    assert changed.model_dump(exclude={"schedule"}) == config.model_dump(exclude={"schedule"})


@pytest.mark.parametrize("decayed", ["matrices", "all"])
def test_decoupled_decay_is_adamw(decayed: str, tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config(
        schedule__kind="constant",
        schedule__peak_learning_rate=0.01,
        schedule__warmup_steps=0,
        schedule__stage1_weight_decay=0.5,
    )
    run = pack(config, f"decoupled-decay:decayed={decayed}")
    start, seen = weights(run), []
    for step in (1, 2, 3):
        run.step(step)
        seen.append(gradients(run))
    exempt = ("embed", "head", "norm") if decayed == "matrices" else ()
    decays = {key: 0.0 if key.startswith(exempt) or key.endswith(exempt) else 0.5 for key in start}
    assert sum(decay > 0 for decay in decays.values()) == (4 if decayed == "matrices" else len(start))
    expected = {key: adam(start[key], [each[key] for each in seen], rate=0.01, decay=decays[key]) for key in start}
    assert_close(weights(run), expected, atol=3e-6)
    # where a tensor is decayed, decay is far more than the tolerance
    for key, weight in start.items():
        if decays[key]:
            undecayed = adam(weight, [each[key] for each in seen], rate=0.01)
            assert np.abs(undecayed - expected[key]).max() > 1e-3


def test_the_baseline_couples_its_decay(tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config(
        schedule__kind="constant",
        schedule__peak_learning_rate=0.01,
        schedule__warmup_steps=0,
        schedule__stage1_weight_decay=0.5,
    )
    both = pack(config, "", "decoupled-decay:decayed=all")
    start = weights(both)
    both.step(1)
    coupled = {key: adam(start[key], [grad + 0.5 * start[key]], rate=0.01) for key, grad in gradients(both).items()}
    assert_close(weights(both), coupled, atol=3e-6)
    assert np.abs(weights(both, 1)["embed"].double().numpy() - coupled["embed"]).max() > 1e-3


def test_no_decay_at_all(tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config(schedule__kind="constant", schedule__peak_learning_rate=0.01, schedule__warmup_steps=0)
    run = pack(config, "no-decay")
    start = weights(run)
    run.step(1)
    seen = gradients(run)
    assert_close(weights(run), {key: adam(start[key], [seen[key]], rate=0.01) for key in start}, atol=3e-6)
    never_seen = (seen["embed"] == 0).all(-1)
    assert never_seen.any()
    assert torch.equal(weights(run)["embed"][never_seen], start["embed"][never_seen])


# peak 1.5e-3, 20 steps of warm-up, 120 steps, to a thousandth: at step s both lines are at 1 - 0.999 (s - 20) / 100
@pytest.mark.parametrize(
    ("arm", "points"),
    [
        ("lr-drop", {10: 7.5e-4, 20: 1.5e-3, 60: 9.006e-4, 61: 5.9041e-4, 70: 5.005e-4, 120: 1e-6}),
        ("lr-drop:stage2_peak=2e-3", {20: 1.5e-3, 60: 9.006e-4, 61: 1.18082e-3, 120: 2e-6}),
        ("reduced-lr:factor=0.1+lr-drop", {20: 1.5e-4, 60: 9.006e-5, 61: 5.9041e-5}),
        ("reduced-lr:factor=0.1+lr-drop:stage2_peak=2e-3", {60: 9.006e-5, 61: 1.18082e-3}),
        ("lr-drop:stage2_peak=2e-3+reduced-lr:factor=0.1", {60: 9.006e-5, 61: 1.18082e-4}),
    ],
)
def test_lr_drop_at_points_worked_out_by_hand(
    arm: str, points: dict[int, float], tiny_config: TinyConfig, pack: PackOf
) -> None:
    config = tiny_config(steps=120, schedule__warmup_steps=20, schedule__stage2_peak_learning_rate=9e-3)
    [replica] = pack(config, arm).replicas
    assert {step: replica.learning_rate(step) for step in points} == pytest.approx(points, rel=1e-9)


@pytest.mark.parametrize(("arm", "std"), [("init-scale", 0.02), ("init-scale:std=0.1", 0.1)])
def test_init_scale_is_the_spread_of_the_weights(arm: str, std: float, tiny_config: TinyConfig, pack: PackOf) -> None:
    both = pack(tiny_config(), arm, "")
    for key, weight in weights(both).items():
        if key.endswith("norm"):
            assert (weight == 1.0).all()
            continue
        values = weight.double().numpy().ravel()
        # six standard errors of a mean and of a standard deviation
        assert abs(values.mean()) < 6 * std / math.sqrt(values.size)
        assert abs(values.std() / std - 1) < 6 / math.sqrt(2 * values.size)
        # Gaussian, not uniform: 4.55 % beyond two deviations
        assert (np.abs(values) > 2 * std).mean() == pytest.approx(0.0455, abs=0.02)
    assert weights(both, 1)["embed"].std().item() == pytest.approx(1.0, rel=0.05)
    assert weights(both, 1)["qkv"].abs().max().item() <= 32**-0.5


def test_full_precision_quantizes_nothing(
    tiny_config: TinyConfig, pack: PackOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: Any, **named: Any) -> Tensor:
        raise AssertionError("something is rounded")

    ternary = pack(tiny_config(), "")
    twin = pack(tiny_config(), "full-precision")
    assert twin.quant_lambdas(1) == twin.quant_lambdas(12) == [0.0]
    monkeypatch.setattr(matmul, "int8_activations", forbidden)
    monkeypatch.setattr(matmul, "ternary_weights", forbidden)
    twin.step(1)
    twin.step(2)
    with pytest.raises(AssertionError, match="rounded"):
        ternary.step(1)


@pytest.mark.parametrize("beside", [False, True])
def test_full_precision_is_the_plain_transformer(beside: bool, tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config(model__inner_norms=False, model__initialization="normal", model__init_std=0.2)
    run = pack(config, "full-precision", *([""] if beside else []))
    tokens_RBT = torch.arange(24).view(1, 24, 1).expand(1 + beside, -1, -1)
    with torch.no_grad():
        logits_RNV = run.model.forward(tokens_RBT, run.quant_lambdas(1))
        ternary_RNV = run.model.forward(tokens_RBT, [1.0] * (1 + beside))
    w = {name: weight.detach() for name, weight in run.model.parameters(0).items()}

    def norm(x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=1e-5)

    # one token a row: attention returns the value, and position 0 is not turned
    x = w["model.embed_tokens.weight"][:24]
    for layer in range(2):
        p = f"model.layers.{layer}."
        value = norm(x) @ w[f"{p}self_attn.v_proj.weight"].T
        x = x + norm(value) @ w[f"{p}self_attn.o_proj.weight"].T
        gate, up = (norm(x) @ w[f"{p}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + norm(F.relu(gate) ** 2 * up) @ w[f"{p}mlp.down_proj.weight"].T
    expected_NV = norm(x) @ w["lm_head.weight"].T
    torch.testing.assert_close(logits_RNV[0], expected_NV, rtol=1e-4, atol=1e-4)
    assert (ternary_RNV[0] - expected_NV).abs().max() > 0.1


@pytest.mark.parametrize(
    ("arm", "base", "points"),
    [
        ("fp-first", 1.0, {1: 0.0, 20: 0.0, 21: 0.1, 25: 0.5, 29: 0.9, 30: 1.0, 31: 1.0, 100: 1.0}),
        ("fp-first:fraction=0.5,ramp=0", 1.0, {1: 0.0, 50: 0.0, 51: 1.0, 100: 1.0}),
        ("fp-first:fraction=0.5,ramp=0.02", 1.0, {50: 0.0, 51: 0.5, 52: 1.0}),
        ("fp-first:fraction=0,ramp=0", 1.0, {1: 1.0, 100: 1.0}),
        ("fp-first:fraction=0,ramp=1", 1.0, {1: 0.01, 50: 0.5, 100: 1.0}),
        ("fp-first:fraction=1", 1.0, {1: 0.0, 99: 0.0, 100: 0.0}),
        ("fp-first", 0.5, {20: 0.0, 25: 0.25, 30: 0.5}),
        ("full-precision+fp-first", 1.0, {1: 0.0, 25: 0.0, 100: 0.0}),
        ("fp-first+fp-first:fraction=0.24,ramp=0.02", 1.0, {24: 0.0, 25: 0.25, 26: 0.6, 30: 1.0}),
    ],
)
def test_fp_first_at_points_worked_out_by_hand(
    arm: str, base: float, points: dict[int, float], tiny_config: TinyConfig, pack: PackOf
) -> None:
    [replica] = pack(tiny_config(steps=100, model__quantization=base), arm).replicas
    assert {step: replica.quant_lambda(step) for step in points} == pytest.approx(points, abs=1e-12)


def test_fp_first_is_the_twin_and_then_ternary(tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config()
    run, twin = pack(config, "fp-first:fraction=0.25,ramp=0"), pack(config, "full-precision")
    for step in (1, 2, 3):
        run.step(step)
        twin.step(step)
        assert run.loss_R.item() == twin.loss_R.item()
    before, moments = weights(run), first_moments(run)
    inputs_RBT, targets_RN = batch(run, 4)
    with torch.no_grad():
        ternary_NV = run.model.forward(inputs_RBT, [1.0])[0]
    run.step(4)
    twin.step(4)
    assert run.loss_R.item() == pytest.approx(F.cross_entropy(ternary_NV, targets_RN[0]).item(), rel=1e-6)
    assert run.loss_R.item() != twin.loss_R.item()

    # the moments go on from where they were
    after, seen = first_moments(run), gradients(run)
    assert counted_steps(run) == 4
    decay = run.replicas[0].weight_decay(4)
    for key, weight in before.items():
        coupled = seen[key] + decay * weight
        momentum = 0.9 * moments[key] + 0.1 * coupled
        torch.testing.assert_close(after[key], momentum, rtol=1e-4, atol=1e-7)
        assert moments[key].abs().max() > 1e-4


@pytest.mark.parametrize("every", [1, 2])
def test_momentum_reset_starts_afresh(every: int, tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config(optimizer__name="adamw", schedule__kind="constant", schedule__warmup_steps=0)
    both = pack(config, f"momentum-reset:every={every}", "")
    seen: list[list[dict[str, Tensor]]] = [[], []]
    for step in range(1, 6):
        before = weights(both), weights(both, 1)
        both.step(step)
        fresh = [step for step in range(1, 6) if (step - 1) % every == 0]
        for run in (0, 1):
            seen[run].append(gradients(both, run))
        if step not in fresh or step == 1:
            continue
        for run in (0, 1):
            first = {
                key: adam(weight, [seen[run][-1][key]], rate=1.5e-3, decay=0.1) for key, weight in before[run].items()
            }
            if run == 0:
                assert_close(weights(both), first, atol=1e-6)
                assert counted_steps(both) == 1
            else:
                assert np.abs(weights(both, 1)["qkv"].double().numpy() - first["qkv"]).max() > 1e-4


def test_momentum_is_kept_between_resets(tiny_config: TinyConfig, pack: PackOf) -> None:
    run = pack(tiny_config(optimizer__name="adamw", schedule__warmup_steps=0), "momentum-reset:every=3")
    counts = []
    for step in range(1, 9):
        run.step(step)
        counts.append(counted_steps(run))
    assert counts == [1, 2, 3, 1, 2, 3, 1, 2]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("clipping", "eps"), [(0.01, 1e-3), (0.05, 1e-3), (0.01, 2.0)])
def test_adaptive_clipping_row_by_row(clipping: float, eps: float, tiny_config: TinyConfig, pack: PackOf) -> None:
    config = tiny_config(optimizer__max_norm="none")
    both = pack(config, f"adaptive-clipping:clipping={clipping},eps={eps}", "")
    named = {name: w.detach().double().numpy().copy() for name, w in named_parameters(both, 0).items()}
    both.step(1)
    raw, clipped = named_gradients(both, 1), named_gradients(both, 0)
    assert set(raw) == set(clipped) == set(named)
    bound = 0
    for name, gradient in raw.items():
        expected = gradient.copy()
        if name != "lm_head.weight":
            # a vector is one unit
            for unit, weight in zip(np.atleast_2d(expected), np.atleast_2d(named[name]), strict=True):
                limit = clipping * max(float(np.sqrt((weight**2).sum())), eps)
                norm = float(np.sqrt((unit**2).sum()))
                if norm > limit:
                    unit *= limit / norm
                    bound += 1
        np.testing.assert_allclose(clipped[name], expected, rtol=1e-6, atol=1e-12, err_msg=name)
    assert bound > 10
    np.testing.assert_allclose(clipped["lm_head.weight"], raw["lm_head.weight"], rtol=1e-6, atol=1e-12)
    head_norms = np.linalg.norm(raw["lm_head.weight"], axis=-1)
    assert (head_norms > clipping * np.maximum(np.linalg.norm(named["lm_head.weight"], axis=-1), 1e-3)).any()


def named_parameters(pack: Pack, run: int) -> dict[str, Tensor]:
    return pack.model.parameters(run)


def named_gradients(pack: Pack, run: int) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    return {
        name: weight.grad.double().numpy().copy()
        for name, weight in named_parameters(pack, run).items()
        if weight.grad is not None
    }


def test_adaptive_clipping_by_hand() -> None:
    def parameter(values: list[Any], gradient: list[Any] | None) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.float64)
        tensor.grad = None if gradient is None else torch.tensor(gradient, dtype=torch.float64)
        return tensor

    parameters = {
        # norms of the rows 5, 5, 0, 5; limits 0.5, 0.5, 0.01 (the floor 0.1), 0.5
        "matrix": parameter([[3, 4], [3, 4], [0, 0], [3, 4]], [[6, 8], [0.3, 0.4], [0, 2], [0, 0]]),
        "vector": parameter([3, 4], [0, 50]),
        "lm_head.weight": parameter([[3, 4]], [[600, 800]]),
        "unused": parameter([1], None),
    }
    compose("adaptive-clipping:clipping=0.1,eps=0.1").transform_gradients(parameters)
    expected: dict[str, list[Any]] = {
        "matrix": [[0.3, 0.4], [0.3, 0.4], [0, 0.01], [0, 0]],
        "vector": [0, 0.5],
        "lm_head.weight": [[600, 800]],
    }
    for name, values in expected.items():
        gradient = parameters[name].grad
        assert gradient is not None
        np.testing.assert_allclose(gradient.numpy(), values, rtol=1e-12, atol=1e-15, err_msg=name)
    assert parameters["unused"].grad is None


def test_adaptive_clipping_comes_before_the_global_clip(tiny_config: TinyConfig, pack: PackOf) -> None:
    run = pack(tiny_config(), "adaptive-clipping:clipping=1e6+aggressive-clipping")
    run.step(1)
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients(run).values()))
    assert norm == pytest.approx(0.1, rel=1e-4)


# together


@pytest.mark.parametrize(
    ("first", "second", "field"),
    [
        ("no-decay", "wd-schedule:stage2=0.05", ("schedule", "stage2_weight_decay")),
        ("lr-drop:stage2_peak=1e-3", "reduced-lr", ("schedule", "stage2_peak_learning_rate")),
        ("decoupled-decay", "decoupled-decay:decayed=all", ("optimizer", "exempt")),
        ("reduced-lr:peak=1e-3", "reduced-lr:factor=0.5", ("schedule", "peak_learning_rate")),
        ("init-scale", "init-scale:std=0.5", ("model", "init_std")),
    ],
)
def test_order_matters_where_two_set_one_thing(
    first: str, second: str, field: tuple[str, str], tiny_config: TinyConfig
) -> None:
    section, name = field
    values = [
        getattr(getattr(compose(arm).configure(tiny_config()), section), name)
        for arm in (f"{first}+{second}", f"{second}+{first}")
    ]
    assert values[0] != values[1]
    # the order is part of what decides a run
    assert len({tiny_config(arm=arm).hash for arm in (f"{first}+{second}", f"{second}+{first}")}) == 2


def test_order_does_not_matter_where_they_set_different_things(tiny_config: TinyConfig) -> None:
    arms = ("full-precision+decoupled-decay+reduced-lr", "reduced-lr+full-precision+decoupled-decay")
    one, other = (compose(arm).configure(tiny_config()) for arm in arms)
    assert one == other
    assert one.model.quantization == 0.0
    assert one.optimizer.name == "adamw"
    assert one.schedule.peak_learning_rate == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("arm", "hook"),
    [
        ("label-smoothing+reduced-lr+label-smoothing:epsilon=0.2", "training_loss"),
        ("adaptive-clipping+adaptive-clipping", "transform_gradients"),
    ],
)
def test_one_claimant_of_a_seam(arm: str, hook: str) -> None:
    with pytest.raises(ConfigError, match=f"both claim {hook}"):
        compose(arm)
    both = compose("label-smoothing+adaptive-clipping")
    assert both.overrides_loss
    assert both.overrides_gradients


@pytest.mark.parametrize("arm", ["reduced-lr:peak=1e308", "reduced-lr:factor=1e300+reduced-lr:factor=1e300"])
def test_no_config_that_the_recipe_could_not_have(arm: str, tiny_config: TinyConfig) -> None:
    with pytest.raises(ConfigError):
        compose(arm).configure(tiny_config())
