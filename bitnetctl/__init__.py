"""A bench for training small ternary (BitNet b1.58) language models and judging claims about them.

    import bitnetctl

    config = bitnetctl.load_recipe("quick", arm="decoupled-decay", seed=1)
    run = bitnetctl.train(config)
    verdict = bitnetctl.judge(bitnetctl.load_runs("runs"))

The names of `__all__` are imported at first use, torch when something trains.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnetctl.api import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "Criteria",
    "Outcome",
    "Plan",
    "Run",
    "RunConfig",
    "Study",
    "TrainOptions",
    "Verdict",
    "__version__",
    "analyze",
    "judge",
    "load_plan",
    "load_recipe",
    "load_runs",
    "open_run",
    "sweep",
    "train",
]


def __getattr__(name: str) -> object:
    """Return a lazy attribute."""
    if name in __all__:
        from bitnetctl import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
