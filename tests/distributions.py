"""Plug-ins of distributions that a test makes up; the fixture `distribution` installs them."""

import importlib
from collections.abc import Callable
from pathlib import Path

from bitnetctl.plugins import registry
from bitnetctl.plugins.isolation import forget_intrusions

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


def forget_plugins() -> None:
    """Let the next look-up discover and import plug-ins again."""
    registry.discover.cache_clear()
    registry.load.cache_clear()
    registry.load_file.cache_clear()
    forget_intrusions()
    importlib.invalidate_caches()


def built_ins() -> set[str]:
    """Names of the interventions of bitnetctl itself."""
    return {each.name for each in registry.discover() if each.distribution == "bitnetctl"}
