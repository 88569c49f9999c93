"""Discovery, loading and checking of interventions, with distributions made up for the test; the contract's check."""

import hashlib
import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import call
from torch import Tensor

from bitnetctl import __version__
from bitnetctl.config import InterventionSpec, RunConfig, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.plugins import registry
from bitnetctl.records import PluginInfo, read_manifest
from bitnetctl.testing import check_contract
from bitnetctl.trainer.events import Event

TinyConfig = Callable[..., RunConfig]
Distribution = Callable[..., Path]

HALVED = """
    from bitnetctl.intervention import Intervention, InterventionSettings

    class Halved(Intervention):
        summary = "half the rate"
        source = "a test"

        class Settings(InterventionSettings):
            factor: float = 0.5
            label: str = "none given"

        def learning_rate(self, base, step, steps):
            return base * self.settings.factor
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing remembered from before, nothing left behind: caches, modules, sys.path."""
    for name in ("BITNETCTL_DISABLE_PLUGINS", "BITNETCTL_ALLOWED_PLUGINS", "BITNETCTL_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    modules, path = set(sys.modules), list(sys.path)
    forget()
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("made_up_"):
            del sys.modules[name]
    forget()


def forget() -> None:
    registry.discover.cache_clear()
    registry.load.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def distribution(tmp_path: Path) -> Distribution:
    """Install a distribution: `points` are its entry points, the module is `made_up_NAME`."""

    def install(
        name: str = "halved",
        code: str = HALVED,
        *,
        version: str = "1.2",
        points: Mapping[str, str] | str | None = None,
        folder: str = "site",
    ) -> Path:
        site = tmp_path / folder
        module = f"made_up_{name.replace('-', '_')}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        points = {name: f"{module}:Halved"} if points is None else points
        lines = points if isinstance(points, str) else "".join(f"{key} = {value}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[bitnetctl.interventions]\n{lines}", encoding="utf-8")
        (site / f"{module}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        if str(site) not in sys.path:
            sys.path.append(str(site))
        forget()
        return site

    return install


def built_ins() -> set[str]:
    return {found.name for found in registry.discover() if found.distribution == "bitnetctl"}


# discovery


def test_discovery_is_sorted_and_mixes_built_ins_and_others(distribution: Distribution) -> None:
    ours = built_ins()
    assert len(ours) == 12
    distribution("zebra")
    distribution("aardvark", version="3.4")
    found = registry.discover()
    names = [each.name for each in found]
    assert names == sorted(ours | {"zebra", "aardvark"})
    first = found[0]
    assert (first.name, first.distribution, first.version) == ("aardvark", "aardvark", "3.4")
    assert first.target == "made_up_aardvark:Halved"
    assert [plugin.name for plugin in registry.load_all()] == names
    assert "made_up_zebra" in sys.modules


def test_discovery_imports_nothing(distribution: Distribution) -> None:
    distribution()
    assert "halved" in {found.name for found in registry.discover()}
    assert "made_up_halved" not in sys.modules
    registry.load("reduced-lr")
    assert "made_up_halved" not in sys.modules


def test_other_groups_are_left_alone(distribution: Distribution) -> None:
    distribution(points="\n[bitnetctl.other]\nhalved = made_up_halved:Halved\n")
    assert "halved" not in {found.name for found in registry.discover()}


@pytest.mark.parametrize(("value", "seen"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_plugins_can_be_turned_off(
    value: str, seen: bool, distribution: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = built_ins()
    distribution()
    monkeypatch.setenv("BITNETCTL_DISABLE_PLUGINS", value)
    forget()
    assert {found.name for found in registry.discover()} == ours | ({"halved"} if seen else set())
    assert ("halved" in {plugin.name for plugin in registry.load_all()}) is seen
    if not seen:
        with pytest.raises(ConfigError, match="unknown intervention 'halved'"):
            registry.load("halved")


def test_a_loaded_plugin_says_where_it_is_from(distribution: Distribution) -> None:
    distribution()
    plugin = registry.load("halved")
    assert plugin.problem is None
    assert plugin.intervention is not None
    assert plugin.intervention.summary == "half the rate"
    assert (plugin.distribution, plugin.version, plugin.target) == ("halved", "1.2", "made_up_halved:Halved")
    assert plugin.hooks == ["learning_rate"]
    ours = registry.load("wd-schedule")
    assert (ours.distribution, ours.version, ours.hooks) == ("bitnetctl", __version__, ["configure"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("reduced-rl", "did you mean 'reduced-lr'?"),
        ("label_smoothing", "did you mean 'label-smoothing'?"),
        ("xyzzy", "there are: adaptive-clipping, aggressive-clipping"),
        ("", "there are: adaptive-clipping"),
    ],
)
def test_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.load(name)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


# the refused


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (None, {"halved", "thirded"}),
        ("", set()),
        (" , ", set()),
        ("halved", {"halved"}),
        ("my-plugins", {"thirded"}),
        ("My.Plugins", {"thirded"}),
        ("thirded , halved,", {"halved", "thirded"}),
        ("third", set()),
        ("no-decay", set()),
        ("*", set()),
    ],
)
def test_plugins_can_be_allowed_by_name(
    value: str | None, allowed: set[str], distribution: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = built_ins()
    if value is not None:
        monkeypatch.setenv("BITNETCTL_ALLOWED_PLUGINS", value)
    distribution()
    distribution("my_plugins", points={"thirded": "made_up_my_plugins:Halved"})
    found = {plugin.name: plugin for plugin in registry.load_all()}
    assert {name for name, plugin in found.items() if plugin.intervention is not None} == ours | allowed
    assert {name for name, plugin in found.items() if plugin.refused} == {"halved", "thirded"} - allowed
    imported = {"halved": "made_up_halved" in sys.modules, "thirded": "made_up_my_plugins" in sys.modules}
    assert imported == {name: name in allowed for name in imported}


def test_a_refused_plugin_is_listed_and_named_when_asked_for(
    distribution: Distribution, monkeypatch: pytest.MonkeyPatch, tiny_config: TinyConfig
) -> None:
    monkeypatch.setenv("BITNETCTL_ALLOWED_PLUGINS", "others")
    monkeypatch.setenv("COLUMNS", "200")
    distribution("my_plugins", points={"thirded": "made_up_my_plugins:Halved"})
    distribution()
    listed = call("interventions", "list")
    assert (listed.code, listed.err) == (0, "")
    assert "refused: not allowed; add halved to BITNETCTL_ALLOWED_PLUGINS" in listed.out
    hint = "add my-plugins, or thirded for this one alone, to BITNETCTL_ALLOWED_PLUGINS"
    for command in (("interventions", "show", "thirded"), ("train", "-i", "thirded", "--dry-run")):
        done = call(*command)
        assert (done.code, done.out) == (2, "")
        assert done.err == f"error: intervention 'thirded' of my_plugins 1.2 cannot be used: not allowed; {hint}\n"
    assert not {"made_up_halved", "made_up_my_plugins"} & sys.modules.keys()


def test_a_refused_plugin_takes_no_name_away(distribution: Distribution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNETCTL_ALLOWED_PLUGINS", "good")
    for name in ("good", "evil"):
        distribution(name, points={"no-decay": f"made_up_{name}:Halved", "halved": f"made_up_{name}:Halved"})
    monkeypatch.setenv("BITNETCTL_ALLOWED_PLUGINS", "nobody")
    forget()
    assert registry.load("no-decay").distribution == "bitnetctl"
    assert registry.load("no-decay").problem is None
    monkeypatch.setenv("BITNETCTL_ALLOWED_PLUGINS", "good")
    forget()
    assert registry.load("halved").problem is None
    assert registry.load("halved").distribution == "good"
    assert registry.load("no-decay").problem == f"claimed by bitnetctl {__version__} and good 1.2"


NAMES = ("../x", "/x", "CON", "Halved", "halved_too", "a" * 65, "[/red]", "\x1b[31m", "half\u202edev")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_command_line_takes_are_never_imported(
    name: str, distribution: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    distribution(points={name: "made_up_halved:Halved"})
    listed = call("interventions", "list")
    assert (listed.code, listed.err) == (0, "")
    assert "broken: its name is not one that -i takes" in listed.out
    assert "\x1b" not in listed.out
    assert "\u202e" not in listed.out
    assert call("interventions", "list", "--json").code == 0
    for command in (("interventions", "show", name), ("train", "--dry-run", "-i", name)):
        done = call(*command)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "made_up_halved" not in sys.modules


# the broken

BASE = "from bitnetctl.intervention import Intervention, InterventionSettings\n"
BROKEN = {
    "import-error": ("import no_such_module_anywhere\n", "no_such_module_anywhere"),
    "raises": ("raise ValueError('several\\n   lines')\n", "ValueError: several lines"),
    "syntax-error": ("def broken(:\n", "SyntaxError"),
    "system-exit": ("import sys\nsys.exit('goodbye')\n", "goodbye"),
    "attribute": (BASE, "Halved"),
    "not-a-class": ("Halved = 5\n", "5 is not a subclass of bitnetctl.intervention.Intervention"),
    "not-a-subclass": ("class Halved: summary = 'x'\n", "is not a subclass of bitnetctl.intervention.Intervention"),
    "the-base": (BASE + "Halved = Intervention\n", "is not a subclass"),
    "instance": (BASE + "Halved = Intervention(Intervention.Settings())\n", "is not a subclass"),
    "api": (BASE + "class Halved(Intervention):\n api_version = 2\n summary = 'x'\n", "API 2; this bitnetctl has 1"),
    "no-summary": (BASE + "class Halved(Intervention): pass\n", "it has no summary"),
    "no-default": (
        BASE + "class Halved(Intervention):\n summary = 'x'\n class Settings(InterventionSettings):\n"
        "  first: float\n  second: int = 1\n  third: str\n",
        "its settings have no default: first, third",
    ),
    "other-settings": (
        "from pydantic import BaseModel\n" + BASE + "class Halved(Intervention):\n summary = 'x'\n"
        " class Settings(BaseModel): pass\n",
        "its Settings is not a subclass of bitnetctl.intervention.InterventionSettings",
    ),
    "settings-instance": (
        BASE + "class Halved(Intervention):\n summary = 'x'\n Settings = InterventionSettings()\n",
        "its Settings is not a subclass",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_one_line_and_kills_nothing(
    name: str, distribution: Distribution, tiny_config: TinyConfig
) -> None:
    code, problem = BROKEN[name]
    ours = built_ins()
    distribution(name, code)
    everything = {plugin.name: plugin for plugin in registry.load_all()}
    assert set(everything) == ours | {name}
    assert {each for each, plugin in everything.items() if plugin.problem} == {name}
    broken = everything[name]
    assert broken.intervention is None
    assert broken.hooks == []
    assert broken.problem is not None
    assert problem in broken.problem
    assert "\n" not in broken.refusal

    registry.compose(parse_arm("reduced-lr+no-decay"))
    for ask in (registry.compose, registry.plugin_infos):
        with pytest.raises(ConfigError) as caught:
            ask(parse_arm(f"reduced-lr+{name}"))
        assert str(caught.value) == broken.refusal
        assert name in broken.refusal
    with pytest.raises(ConfigError):
        registry.normalize(tiny_config(arm=name))


@pytest.mark.parametrize(
    "points", [{"halved": "!!"}, {"halved": "made_up_halved"}, {"halved": "made_up_halved:No.Such"}]
)
def test_an_entry_point_to_nothing(points: dict[str, str], distribution: Distribution) -> None:
    distribution(points=points)
    assert registry.load("halved").problem
    assert registry.load("reduced-lr").problem is None


def test_entry_points_that_cannot_be_read(distribution: Distribution) -> None:
    ours = built_ins()
    distribution(points="no equals sign\n")
    assert {found.name for found in registry.discover()} >= ours


def test_two_distributions_of_one_name(distribution: Distribution) -> None:
    distribution("one", points={"shared": "made_up_one:Halved", "one": "made_up_one:Halved"})
    distribution("two", version="7", points={"shared": "made_up_two:Halved"})
    shared = registry.load("shared")
    assert shared.problem == "claimed by one 1.2 and two 7"
    assert not {"made_up_one", "made_up_two"} & set(sys.modules)
    with pytest.raises(ConfigError, match=r"claimed by one 1\.2 and two 7"):
        registry.compose(parse_arm("shared"))
    assert registry.load("one").problem is None
    assert [plugin.name for plugin in registry.load_all()].count("shared") == 1


def test_the_name_of_a_built_in_is_taken(distribution: Distribution, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution("rival", points={"reduced-lr": "made_up_rival:Halved"})
    assert registry.load("reduced-lr").problem == f"claimed by bitnetctl {__version__} and rival 1.2"
    assert registry.load("no-decay").problem is None
    monkeypatch.setenv("BITNETCTL_DISABLE_PLUGINS", "1")
    forget()
    assert registry.load("reduced-lr").problem is None


def test_one_distribution_seen_twice_is_one(distribution: Distribution) -> None:
    site = distribution()
    sys.path.append(f"{site}{os.sep}.")
    forget()
    assert registry.load("halved").problem is None
    assert len([found for found in registry.discover() if found.name == "halved"]) == 1


@pytest.mark.parametrize("target", ["made_up_halved:Halved", "made_up_halved:Renamed"])
def test_a_distribution_shadowed_by_another_version_of_itself(target: str, distribution: Distribution) -> None:
    distribution(version="2.0", folder="front")
    distribution(version="1.0", folder="behind", points={"halved": target, "retired": "made_up_halved:Retired"})
    plugin = registry.load("halved")
    assert (plugin.problem, plugin.version) == (None, "2.0")
    assert "retired" not in {found.name for found in registry.discover()}


# settings and hashes


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


def test_normalizing_touches_nothing_else(tiny_config: TinyConfig) -> None:
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


def test_records_name_code_and_settings(distribution: Distribution) -> None:
    distribution()
    records = registry.plugin_infos(parse_arm("reduced-lr:peak=1e-3+halved:factor=2+no-decay"))
    places = {"reduced-lr": "bitnetctl_interventions.reduced_lr", "no-decay": "bitnetctl_interventions.no_decay"}

    def record(name: str, **fields: Any) -> PluginInfo:
        module = places.get(name, "made_up_halved")
        content = Path(str(sys.modules[module].__file__)).read_bytes()
        return PluginInfo(name=name, module=module, source_sha256=hashlib.sha256(content).hexdigest(), **fields)

    ours = {"version": __version__, "distribution": "bitnetctl"}
    assert records == [
        record("reduced-lr", settings={"peak": 1e-3, "factor": None}, **ours),
        record("halved", version="1.2", distribution="halved", settings={"factor": 2.0, "label": "none given"}),
        record("no-decay", settings={}, **ours),
    ]
    assert registry.plugin_infos(()) == []


def test_code_from_elsewhere_is_hashed_where_it_is_defined(distribution: Distribution, tmp_path: Path) -> None:
    distribution(code="from made_up_inner import Halved\n")
    inner = tmp_path / "site" / "made_up_inner.py"
    inner.write_text(textwrap.dedent(HALVED), encoding="utf-8")
    [record] = registry.plugin_infos(parse_arm("halved"))
    assert record.module == "made_up_inner"
    assert record.source_sha256 == hashlib.sha256(inner.read_bytes()).hexdigest()


def test_code_from_no_file_has_no_hash(distribution: Distribution) -> None:
    distribution(code=textwrap.dedent(HALVED) + "Halved.__module__ = 'nowhere'\n")
    assert registry.load("halved").problem is None
    assert registry.load("halved").source_sha256 is None


def test_composing_gives_every_run_its_own(distribution: Distribution) -> None:
    distribution()
    one, two = (registry.compose(parse_arm("halved:factor=2+reduced-lr")) for _ in range(2))
    assert [type(each).__name__ for each in one.interventions] == ["Halved", "ReducedLearningRate"]
    assert one.interventions[0].settings.model_dump() == {"factor": 2.0, "label": "none given"}
    assert one.interventions[0] is not two.interventions[0]


# a third-party plug-in at work

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


def test_a_third_party_plugin_trains_beside_a_built_in(
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
    assert manifest.config["interventions"] == [
        {"name": "counting", "settings": {}},
        {"name": "reduced-lr", "settings": {"peak": 1e-3}},
    ]
    assert manifest.effective_config is not None
    assert manifest.effective_config["schedule"]["peak_learning_rate"] == pytest.approx(1e-3)


# the contract's check finds what it is for


class Sound(Intervention):
    """Keeps the contract."""

    summary = "sound"

    class Settings(InterventionSettings):
        factor: float = 0.5

    settings: Settings

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        return base * self.settings.factor


class LooseSettings(Sound):
    class Settings(InterventionSettings, extra="ignore"):
        factor: float = 0.5


class Impure(Sound):
    calls = 0

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        self.calls += 1
        return base / self.calls


class Negative(Sound):
    def weight_decay(self, base: float, step: int, steps: int) -> float:
        return base - 1.0 * (step > 30)


class NotFinite(Sound):
    def learning_rate(self, base: float, step: int, steps: int) -> float:
        return float("nan") if step == steps else base


class Infinite(Sound):
    def weight_decay(self, base: float, step: int, steps: int) -> float:
        return float("inf") if step == steps else base


class NoConfig(Sound):
    def configure(self, config: RunConfig) -> RunConfig:
        return config.model_dump()  # type: ignore[return-value]


class BadConfig(Sound):
    def configure(self, config: RunConfig) -> RunConfig:
        return config.model_copy(update={"steps": -1})


class Unsteady(Sound):
    calls = 0

    def configure(self, config: RunConfig) -> RunConfig:
        type(self).calls += 1
        return config.model_copy(update={"seed": self.calls})


class Diverging(Sound):
    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        return logits_TV.sum() * torch.nan


class Random(Sound):
    generator = torch.Generator()

    def transform_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.copy_(torch.randn(parameter.shape, generator=self.generator))


class Overreaching(Sound):
    """Writes beyond its own run."""

    def transform_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        weight = parameters["model.norm.weight"]
        whole = torch.tensor([], dtype=weight.dtype).set_(weight.untyped_storage())
        whole.mul_(1.5)


class Unsaveable(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {"sizes": (1, 2)}


class Unrestorable(Sound):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise KeyError("steps")


def test_a_sound_intervention_passes() -> None:
    check_contract(Sound)
    check_contract(Sound, {"factor": 2.0})


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        (LooseSettings, "takes unknown keys"),
        (Impure, "learning_rate is not a pure function of the step"),
        (Negative, "weight_decay is negative or not finite"),
        (NotFinite, "learning_rate is negative or not finite"),
        (Infinite, "weight_decay is negative or not finite"),
        (NoConfig, "configure returned dict"),
        (BadConfig, "steps"),
        (Unsteady, "configure is not the same"),
        (Diverging, "do not end in finite numbers"),
        (Random, "gives two results"),
        (Overreaching, "the baseline run beside it changed"),
        (Unsaveable, "state_dict returned .*, which is not made of finite JSON values"),
        (Unrestorable, "steps"),
        (Intervention, "is not a subclass"),
    ],
)
def test_a_broken_contract_is_found(kind: type[Intervention], finding: str) -> None:
    with pytest.raises((AssertionError, ConfigError, ValueError, KeyError), match=finding):
        check_contract(kind)


def test_settings_are_checked_too() -> None:
    with pytest.raises(ValueError, match="factor"):
        check_contract(Sound, {"factor": "much"})
    with pytest.raises(AssertionError, match="negative"):
        check_contract(Sound, {"factor": -1.0})


def test_an_arm_of_the_command_line_is_a_spec() -> None:
    assert parse_arm("reduced-lr:peak=1e+3+no-decay") == (
        InterventionSpec(name="reduced-lr", settings={"peak": 1000.0}),
        InterventionSpec(name="no-decay"),
    )
