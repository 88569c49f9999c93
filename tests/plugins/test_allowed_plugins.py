"""Plug-ins that are not allowed, or have an unusable name, are never imported."""

import sys

import pytest
from calling import call
from configs import TinyConfig
from distributions import Distribution, built_ins, forget_plugins

from bitnetctl import __version__
from bitnetctl.plugins import registry

pytestmark = pytest.mark.usefixtures("fresh_registry")


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
    plugins = {plugin.name: plugin for plugin in registry.load_all()}
    assert {name for name, plugin in plugins.items() if plugin.intervention is not None} == ours | allowed
    assert {name for name, plugin in plugins.items() if not plugin.allowed} == {"halved", "thirded"} - allowed
    imported = {"halved": "made_up_halved" in sys.modules, "thirded": "made_up_my_plugins" in sys.modules}
    assert imported == {name: name in allowed for name in imported}


def test_a_refused_plugin_is_listed_and_using_it_is_an_error(
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


def test_a_refused_plugin_does_not_conflict(distribution: Distribution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNETCTL_ALLOWED_PLUGINS", "good")
    for name in ("good", "evil"):
        distribution(name, points={"no-decay": f"made_up_{name}:Halved", "halved": f"made_up_{name}:Halved"})
    monkeypatch.setenv("BITNETCTL_ALLOWED_PLUGINS", "nobody")
    forget_plugins()
    assert registry.load("no-decay").distribution == "bitnetctl"
    assert registry.load("no-decay").problem is None
    monkeypatch.setenv("BITNETCTL_ALLOWED_PLUGINS", "good")
    forget_plugins()
    assert registry.load("halved").problem is None
    assert registry.load("halved").distribution == "good"
    assert registry.load("no-decay").problem == f"name conflict: registered by bitnetctl {__version__} and good 1.2"


NAMES = ("../x", "/x", "CON", "Halved", "halved_too", "a" * 65, "[/red]", "\x1b[31m", "half\u202edev")


@pytest.mark.parametrize("name", NAMES)
def test_plugins_with_an_unusable_name_are_never_imported(
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
