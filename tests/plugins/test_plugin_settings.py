"""Settings and hashes of an arm, the code that the manifest names, and a third-party plug-in in training."""

import hashlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import TinyConfig
from distributions import HALVED, Distribution

from bitnetctl import __version__
from bitnetctl.config import RunConfig, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import ConfigError
from bitnetctl.plugins import registry
from bitnetctl.records import PluginInfo, read_manifest
from bitnetctl.trainer.events import Event

pytestmark = pytest.mark.usefixtures("fresh_registry")


def normal(config: RunConfig) -> dict[str, Any]:
    [spec] = registry.normalize(config).interventions
    return spec.settings


@pytest.mark.parametrize(
    ("arm", "other"),
    [
        ("reduced-lr", "reduced-lr:peak=5e-4"),
        ("reduced-lr", "reduced-lr:factor=none"),
        ("reduced-lr:peak=1", "reduced-lr:peak=1.0"),
        ("reduced-lr:peak=1e-3,factor=2", "reduced-lr:factor=2.0,peak=0.001"),
        ("momentum-reset:every=500+no-decay", "momentum-reset+no-decay"),
        ("wd-schedule:preset=none,stage2=0", "wd-schedule:stage2=0.0"),
        ("decoupled-decay:decayed=matrices", "decoupled-decay"),
    ],
)
def test_the_same_settings_are_the_same_run(arm: str, other: str, tiny_config: TinyConfig) -> None:
    one, two = (registry.normalize(tiny_config(arm=each)) for each in (arm, other))
    assert one == two
    assert one.hash == two.hash
    assert one.run_name == two.run_name
    assert registry.normalize(one) == one
    assert RunConfig.model_validate_json(one.model_dump_json()).hash == one.hash


def test_other_settings_are_another_run(tiny_config: TinyConfig) -> None:
    arms = ("", "reduced-lr", "reduced-lr:peak=6e-4", "reduced-lr:factor=1", "no-decay", "reduced-lr+no-decay")
    assert len({registry.normalize(tiny_config(arm=arm)).hash for arm in arms}) == len(arms)
    assert normal(tiny_config(arm="reduced-lr:peak=5e-4,factor=2")) == {"factor": 2.0}


def test_normalizing_changes_nothing_else(tiny_config: TinyConfig) -> None:
    config = tiny_config(arm="reduced-lr:peak=5e-4")
    normalized = registry.normalize(config)
    assert normalized.model_copy(update={"interventions": config.interventions}) == config
    assert registry.normalize(tiny_config()) == tiny_config()


@pytest.mark.parametrize(
    ("arm", "parts"),
    [
        ("reduced-lr:peek=1", ["reduced-lr", "unknown field 'peek'", "did you mean 'peak'?"]),
        ("no-decay:x=1", ["no-decay", "'x'"]),
        ("reduced-lr:peak=0", ["reduced-lr", "peak: ", "greater than 0"]),
        ("reduced-lr:peak=high", ["reduced-lr", "peak: ", "'high'"]),
        ("reduced-lr:peak=none", ["reduced-lr", "peak: ", "None"]),
        ("momentum-reset:every=1.5", ["momentum-reset", "every: ", "1.5"]),
        ("wd-schedule:preset=fixed", ["wd-schedule", "preset: ", "'fixed'", "stage1-only"]),
        ("no-decay+label-smoothing:epsilon=1", ["label-smoothing", "epsilon: ", "less than 1"]),
        ("reducedlr", ["'reducedlr'", "did you mean 'reduced-lr'?"]),
    ],
)
def test_a_bad_setting_is_one_line(arm: str, parts: list[str], tiny_config: TinyConfig) -> None:
    for ask in (
        lambda: registry.normalize(tiny_config(arm=arm)),
        lambda: registry.compose(parse_arm(arm)),
        lambda: registry.plugin_infos(parse_arm(arm)),
    ):
        with pytest.raises(ConfigError) as caught:
            ask()
        message = str(caught.value)
        assert "\n" not in message
        for part in parts:
            assert part in message


def test_plugin_infos_name_code_and_settings(distribution: Distribution) -> None:
    distribution()
    infos = registry.plugin_infos(parse_arm("reduced-lr:peak=1e-3+halved:factor=2+no-decay"))
    modules = {"reduced-lr": "bitnetctl_interventions.reduced_lr", "no-decay": "bitnetctl_interventions.no_decay"}

    def info(name: str, **fields: Any) -> PluginInfo:
        module = modules.get(name, "made_up_halved")
        content = Path(str(sys.modules[module].__file__)).read_bytes()
        return PluginInfo(name=name, module=module, source_sha256=hashlib.sha256(content).hexdigest(), **fields)

    ours = {"version": __version__, "distribution": "bitnetctl"}
    assert infos == [
        info("reduced-lr", settings={"peak": 1e-3, "factor": None}, **ours),
        info("halved", version="1.2", distribution="halved", settings={"factor": 2.0, "label": "none given"}),
        info("no-decay", settings={}, **ours),
    ]
    assert registry.plugin_infos(()) == []


def test_a_class_from_another_module_is_hashed_where_it_is_defined(distribution: Distribution, tmp_path: Path) -> None:
    distribution(code="from made_up_inner import Halved\n")
    inner = tmp_path / "site" / "made_up_inner.py"
    inner.write_text(textwrap.dedent(HALVED), encoding="utf-8")
    [info] = registry.plugin_infos(parse_arm("halved"))
    assert info.module == "made_up_inner"
    assert info.source_sha256 == hashlib.sha256(inner.read_bytes()).hexdigest()


def test_a_class_without_a_file_has_no_hash(distribution: Distribution) -> None:
    distribution(code=textwrap.dedent(HALVED) + "Halved.__module__ = 'nowhere'\n")
    assert registry.load("halved").problem is None
    assert registry.load("halved").source_sha256 is None


def test_every_composition_has_its_own_instances(distribution: Distribution) -> None:
    distribution()
    one, two = (registry.compose(parse_arm("halved:factor=2+reduced-lr")) for _ in range(2))
    assert [type(each).__name__ for each in one.interventions] == ["Halved", "ReducedLearningRate"]
    assert one.interventions[0].settings.model_dump() == {"factor": 2.0, "label": "none given"}
    assert one.interventions[0] is not two.interventions[0]


COUNTING = """
    import torch
    from bitnetctl.intervention import Intervention, InterventionSettings

    class Halved(Intervention):
        summary = "stop the embedding, count the steps"

        class Settings(InterventionSettings):
            factor: float = 0.0

        def __init__(self, settings):
            super().__init__(settings)
            self.steps = 0

        def learning_rate(self, base, step, steps):
            return base * 2

        def transform_gradients(self, parameters):
            self.steps += 1
            parameters["model.embed_tokens.weight"].grad.mul_(self.settings.factor)

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]
"""


def test_a_third_party_plugin_trains_in_a_pack_with_a_built_in(
    distribution: Distribution, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    distribution("counting", COUNTING)
    config = tiny_config(schedule__stage1_weight_decay=0.0)
    compositions = [registry.compose(parse_arm(arm)) for arm in ("counting+reduced-lr", "reduced-lr", "")]
    configs = [composition.configure(config) for composition in compositions]
    pack = Pack(configs, compositions, tiny_tokens, torch.device("cpu"))
    before = {key: packed.detach().clone() for key, packed in pack.model.packed.items()}
    for step in (1, 2, 3):
        pack.step(step)
    moved = {
        key: [not torch.equal(packed[run], before[key][run]) for run in range(3)]
        for key, packed in pack.model.packed.items()
    }
    assert moved.pop("embed") == [False, True, True]
    assert all(all(each) for each in moved.values())
    assert [replica.learning_rate(2) for replica in pack.replicas] == pytest.approx([1e-3, 5e-4, 1.5e-3])
    assert compositions[0].state_dict() == [{"steps": 3}, {}]


def test_the_manifest_names_the_plugins(
    distribution: Distribution, tiny_config: TinyConfig, train: Callable[..., list[Event]], tmp_path: Path
) -> None:
    distribution("counting", COUNTING)
    config = registry.normalize(tiny_config(arm="counting+reduced-lr:peak=1e-3", steps=4))
    train([config], names=["run"])
    manifest = read_manifest(tmp_path / "runs" / "run")
    assert manifest is not None
    assert manifest.status == "finished"
    assert [(each.name, each.distribution, each.version, each.settings) for each in manifest.plugins] == [
        ("counting", "counting", "1.2", {"factor": 0.0}),
        ("reduced-lr", "bitnetctl", __version__, {"peak": 1e-3, "factor": None}),
    ]
    source = tmp_path / "site" / "made_up_counting.py"
    assert manifest.plugins[0].module == "made_up_counting"
    assert manifest.plugins[0].source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest.requested()["interventions"] == [
        {"name": "counting", "settings": {}, "defaults": {"factor": 0.0}, "file": None},
        {"name": "reduced-lr", "settings": {"peak": 1e-3}, "defaults": {"factor": None}, "file": None},
    ]
    assert manifest.effective_config is not None
    assert manifest.effective_config["schedule"]["peak_learning_rate"] == pytest.approx(1e-3)
