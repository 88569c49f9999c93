"""The configs of runs that are compared, in which the same tokens have one name. No torch here."""

from collections.abc import Callable, Sequence

from bitnetctl.config import RunConfig
from bitnetctl.records.run import Run

_NAMING = ("source", "held_out_source", "held_out_fraction", "text_field", "on_bad_document", "tokenizer")
"""Fields of `data` that say where tokens come from: the paths of a text differ from machine to machine."""


def requested_configs(runs: Sequence[Run]) -> list[RunConfig | None]:
    """Return the requested config of every run, with the text and the tokenizer of the first run on the same tokens.

    The same are tokens of one fingerprint in the manifests, which is of training and held-out tokens and the tokenizer.
    """
    return _with_one_name(runs, lambda run: run.config)


def effective_configs(runs: Sequence[Run]) -> list[RunConfig | None]:
    """Return the configs after interventions, with text and tokenizer as in `requested_configs`."""
    return _with_one_name(runs, lambda run: run.effective)


def _with_one_name(runs: Sequence[Run], config_of: Callable[[Run], RunConfig | None]) -> list[RunConfig | None]:
    names: dict[str, dict[str, object]] = {}
    configs: list[RunConfig | None] = []
    for run in runs:
        config = config_of(run)
        tokens = None if run.manifest is None else run.manifest.data.get("fingerprint")
        if config is not None and isinstance(tokens, str):
            name = names.setdefault(tokens, {field: getattr(config.data, field) for field in _NAMING})
            config = config.model_copy(update={"data": config.data.model_copy(update=name)})
        configs.append(config)
    return configs
