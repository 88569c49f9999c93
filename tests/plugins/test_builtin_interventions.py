"""Every built-in intervention: one table of settings, the contract, training in packs, and their order in an arm."""

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import TinyConfig
from packs import PackArms, compose

from bitnetctl.config import InterventionSpec
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Intervention
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import overridden_hooks
from bitnetctl.testing import check_contract

# name → the settings that every built-in is tested with; each setting of each is set at least once
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "adaptive-clipping": [{}, {"clipping": 0.1}, {"clipping": 1e-4, "eps": 1.0}],
    "aggressive-clipping": [{}, {"max_norm": 1e-3}],
    "batch-growth": [
        {},
        {"start": 0.0, "factor": 1},
        {"start": 0.0, "factor": 2, "learning_rate": "linear"},
        {"start": 0.0, "factor": 2, "learning_rate": "sqrt"},
    ],
    "decay-to-zero": [{}, {"initial": 0.3}, {"begin": 0.5, "end": 0.75}],
    "decoupled-decay": [{}, {"decayed": "all"}, {"decayed": "matrices"}],
    "fp-first": [{}, {"fraction": 0.5, "ramp": 0.0}, {"fraction": 0.0, "ramp": 1.0}, {"fraction": 1.0}],
    "full-precision": [{}],
    "group-scale": [{}, {"size": 16}, {"size": 16, "half": True}],
    "higher-rate": [{}, {"factor": 5.0}],
    "init-scale": [{}, {"std": 0.1}],
    "label-smoothing": [{}, {"epsilon": 0.0}, {"epsilon": 0.5}],
    "lion": [{}, {"beta1": 0.95, "beta2": 0.98}, {"lr_factor": 0.1, "weight_decay_factor": 1.0}],
    "lr-drop": [{}, {"stage2_peak": 2e-4}],
    "median-scale": [{}],
    "momentum-reset": [{}, {"every": 1}],
    "muon": [{}, {"momentum": 0.9, "nesterov": False, "ns_steps": 3}, {"adjust_lr": "original", "lr_factor": 10.0}],
    "no-decay": [{}],
    "reduced-lr": [{}, {"peak": 1e-4}, {"factor": 0.1}, {"peak": 1.0, "factor": 2.0}],
    "stable-spam": [{}, {"gamma1": 0.8, "gamma2": 0.99, "gamma3": 0.9, "reset_every": 2}],
    "wd-schedule": [
        {},
        {"preset": "stage1-only"},
        {"preset": "before-fix"},
        {"preset": "fix", "stage1": 0.3},
        {"stage1": 0.0, "stage2": 0.2, "boundary": 0.25},
    ],
    "z-loss": [{}, {"coefficient": 1.0}],
}
# their runs train in packs of their own: tests/plugins/test_builtin_quantizers.py
OWN_QUANTIZER = {"group-scale", "median-scale"}
# name → the package of an extra that it needs
NEEDED = {"stable-spam": "pytorch_optimizer"}
MISSING = {name: package for name, package in NEEDED.items() if importlib.util.find_spec(package) is None}
CASES = [
    pytest.param(
        name,
        settings,
        id=str(InterventionSpec(name=name, settings=settings)),
        marks=pytest.mark.skipif(name in MISSING, reason=f"needs {MISSING.get(name)}"),
    )
    for name, entries in SETTINGS.items()
    for settings in entries
]


def built_in(name: str) -> type[Intervention]:
    kind = registry.load(name).intervention
    assert kind is not None
    return kind


def test_the_table_covers_every_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["bitnetctl.interventions"]
    discovered = {each.name: each.target for each in registry.discover() if each.distribution == project["name"]}
    assert discovered == points
    assert set(SETTINGS) == set(points)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_table_covers_every_setting(name: str) -> None:
    named = {key for settings in SETTINGS[name] for key in settings}
    assert named == set(built_in(name).Settings.model_fields)
    assert {} in SETTINGS[name]


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_documented(name: str) -> None:
    kind = built_in(name)
    assert kind.summary
    assert "\n" not in kind.summary
    assert kind.source
    assert kind.__doc__
    assert overridden_hooks(kind)
    assert all(field.description for field in kind.Settings.model_fields.values())


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_it_keeps_the_contract(name: str, settings: dict[str, Any]) -> None:
    check_contract(built_in(name), settings)


@pytest.mark.parametrize(("name", "settings"), [case for case in CASES if case.values[0] not in OWN_QUANTIZER])
def test_it_trains_in_a_pack_with_a_baseline(
    name: str, settings: dict[str, Any], tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    base = tiny_config()
    together, alone = pack_arms(base, str(InterventionSpec(name=name, settings=settings)), ""), pack_arms(base, "")
    assert together.replicas[0].config.pack_key == base.pack_key
    for step in (1, 2):
        together.step(step)
        alone.step(step)
    assert together.replicas[0].diverged_at is None
    assert torch.isfinite(together.loss_R).all()
    # rel 1e-3: one int8 rounding may differ in a pack
    assert together.loss_R[1].item() == pytest.approx(alone.loss_R[0].item(), rel=1e-3)
    assert together.grad_norm_R[1].item() == pytest.approx(alone.grad_norm_R[0].item(), rel=0.05)


def test_all_of_them_train_in_one_pack(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    packed = {name: entries for name, entries in SETTINGS.items() if name not in OWN_QUANTIZER | MISSING.keys()}
    arms = [str(InterventionSpec(name=name, settings=settings)) for name, all_ in packed.items() for settings in all_]
    together = pack_arms(tiny_config(), "", *arms)
    for step in (1, 2, 3):
        together.step(step)
    assert [replica.diverged_at for replica in together.replicas] == [None] * (len(arms) + 1)
    assert together.loss_R.isfinite().all()


@pytest.mark.parametrize(
    ("first", "second", "field"),
    [
        ("no-decay", "wd-schedule:stage2=0.05", ("schedule", "stage2_weight_decay")),
        ("lr-drop:stage2_peak=1e-3", "reduced-lr", ("schedule", "stage2_peak_learning_rate")),
        ("decoupled-decay", "decoupled-decay:decayed=all", ("optimizer", "exempt")),
        ("reduced-lr:peak=1e-3", "reduced-lr:factor=0.5", ("schedule", "peak_learning_rate")),
        ("init-scale", "init-scale:std=0.5", ("model", "init_std")),
        ("no-decay", "decay-to-zero:initial=0.2", ("schedule", "stage1_weight_decay")),
    ],
)
def test_order_matters_where_two_set_the_same_field(
    first: str, second: str, field: tuple[str, str], tiny_config: TinyConfig
) -> None:
    section, name = field
    values = [
        getattr(getattr(compose(arm).configure(tiny_config()), section), name)
        for arm in (f"{first}+{second}", f"{second}+{first}")
    ]
    assert values[0] != values[1]
    # the order is part of the hash
    assert len({tiny_config(arm=arm).hash for arm in (f"{first}+{second}", f"{second}+{first}")}) == 2


def test_order_does_not_matter_where_they_set_different_fields(tiny_config: TinyConfig) -> None:
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
        ("batch-growth+adaptive-clipping", "transform_gradients"),
        ("muon+lion", "make_optimizer"),
        ("batch-growth+muon", "make_optimizer"),
        ("stable-spam+decoupled-decay+batch-growth", "make_optimizer"),
    ],
)
def test_only_one_may_override_a_hook(arm: str, hook: str) -> None:
    with pytest.raises(ConfigError, match=f"both override {hook}"):
        compose(arm)
    both = compose("label-smoothing+adaptive-clipping")
    assert both.overrides_loss
    assert both.overrides_gradients


@pytest.mark.parametrize("arm", ["reduced-lr:peak=1e308", "reduced-lr:factor=1e300+reduced-lr:factor=1e300"])
def test_an_invalid_effective_config_is_refused(arm: str, tiny_config: TinyConfig) -> None:
    with pytest.raises(ConfigError):
        compose(arm).configure(tiny_config())
