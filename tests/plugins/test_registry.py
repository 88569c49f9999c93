"""Discovering and loading plug-ins: sorted, without importing others, broken ones isolated."""

import os
import sys

import pytest
from configs import TinyConfig
from distributions import Distribution, built_ins, forget_plugins

from bitnetctl import __version__
from bitnetctl.config import parse_arm
from bitnetctl.errors import ConfigError
from bitnetctl.plugins import registry

pytestmark = pytest.mark.usefixtures("fresh_registry")


def test_discovery_is_sorted_and_mixes_built_ins_and_others(distribution: Distribution) -> None:
    ours = built_ins()
    assert {"adaptive-clipping", "z-loss"} <= ours
    distribution("zebra")
    distribution("aardvark", version="3.4")
    registrations = registry.discover()
    names = [each.name for each in registrations]
    assert names == sorted(ours | {"zebra", "aardvark"})
    first = registrations[0]
    assert (first.name, first.distribution, first.version) == ("aardvark", "aardvark", "3.4")
    assert first.target == "made_up_aardvark:Halved"
    assert [plugin.name for plugin in registry.load_all()] == names
    assert "made_up_zebra" in sys.modules


def test_discovery_imports_nothing(distribution: Distribution) -> None:
    distribution()
    assert "halved" in {each.name for each in registry.discover()}
    assert "made_up_halved" not in sys.modules
    registry.load("reduced-lr")
    assert "made_up_halved" not in sys.modules


def test_entry_points_of_other_groups_are_ignored(distribution: Distribution) -> None:
    distribution(points="\n[bitnetctl.other]\nhalved = made_up_halved:Halved\n")
    assert "halved" not in {each.name for each in registry.discover()}


@pytest.mark.parametrize(("value", "seen"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_plugins_can_be_turned_off(
    value: str, seen: bool, distribution: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = built_ins()
    distribution()
    monkeypatch.setenv("BITNETCTL_DISABLE_PLUGINS", value)
    forget_plugins()
    assert {each.name for each in registry.discover()} == ours | ({"halved"} if seen else set())
    assert ("halved" in {plugin.name for plugin in registry.load_all()}) is seen
    if not seen:
        with pytest.raises(ConfigError, match="unknown intervention 'halved'"):
            registry.load("halved")


def test_a_loaded_plugin_names_its_distribution(distribution: Distribution) -> None:
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
        ("xyzzy", "known: adaptive-clipping, aggressive-clipping"),
        ("", "known: adaptive-clipping"),
    ],
)
def test_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.load(name)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


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
def test_a_broken_plugin_is_one_line_and_leaves_others_usable(
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
    assert "\n" not in broken.error_message

    registry.compose(parse_arm("reduced-lr+no-decay"))
    for ask in (registry.compose, registry.plugin_infos):
        with pytest.raises(ConfigError) as caught:
            ask(parse_arm(f"reduced-lr+{name}"))
        assert str(caught.value) == broken.error_message
        assert name in broken.error_message
    with pytest.raises(ConfigError):
        registry.normalize(tiny_config(arm=name))


@pytest.mark.parametrize(
    "points", [{"halved": "!!"}, {"halved": "made_up_halved"}, {"halved": "made_up_halved:No.Such"}]
)
def test_an_entry_point_whose_target_does_not_exist(points: dict[str, str], distribution: Distribution) -> None:
    distribution(points=points)
    assert registry.load("halved").problem
    assert registry.load("reduced-lr").problem is None


def test_entry_points_that_cannot_be_read(distribution: Distribution) -> None:
    ours = built_ins()
    distribution(points="no equals sign\n")
    assert {each.name for each in registry.discover()} >= ours


def test_two_distributions_with_one_name_conflict(distribution: Distribution) -> None:
    distribution("one", points={"shared": "made_up_one:Halved", "one": "made_up_one:Halved"})
    distribution("two", version="7", points={"shared": "made_up_two:Halved"})
    shared = registry.load("shared")
    assert shared.problem == "name conflict: registered by one 1.2 and two 7"
    assert not {"made_up_one", "made_up_two"} & set(sys.modules)
    with pytest.raises(ConfigError, match=r"name conflict: registered by one 1\.2 and two 7"):
        registry.compose(parse_arm("shared"))
    assert registry.load("one").problem is None
    assert [plugin.name for plugin in registry.load_all()].count("shared") == 1


def test_a_plugin_with_the_name_of_a_built_in_conflicts(
    distribution: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution("rival", points={"reduced-lr": "made_up_rival:Halved"})
    assert registry.load("reduced-lr").problem == f"name conflict: registered by bitnetctl {__version__} and rival 1.2"
    assert registry.load("no-decay").problem is None
    monkeypatch.setenv("BITNETCTL_DISABLE_PLUGINS", "1")
    forget_plugins()
    assert registry.load("reduced-lr").problem is None


def test_a_distribution_found_twice_counts_once(distribution: Distribution) -> None:
    site = distribution()
    sys.path.append(f"{site}{os.sep}.")
    forget_plugins()
    assert registry.load("halved").problem is None
    assert len([each for each in registry.discover() if each.name == "halved"]) == 1


@pytest.mark.parametrize("target", ["made_up_halved:Halved", "made_up_halved:Renamed"])
def test_a_distribution_shadowed_by_another_version_of_itself(target: str, distribution: Distribution) -> None:
    distribution(version="2.0", folder="front")
    distribution(version="1.0", folder="behind", points={"halved": target, "retired": "made_up_halved:Retired"})
    plugin = registry.load("halved")
    assert (plugin.problem, plugin.version) == (None, "2.0")
    assert "retired" not in {each.name for each in registry.discover()}
