"""What differs between the provenance of runs: data, config, plug-in code, how they were computed. No torch here."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitnetctl.config import RunConfig
from bitnetctl.config.load import flatten
from bitnetctl.records.manifest import ExternalRun, Manifest, Session
from bitnetctl.records.run import Run
from bitnetctl.units import listed, plural, shortened

MAY_DIFFER = frozenset({"recipe", "steps", "seed", "interventions", "model.hidden_size", "probe.eval_every_steps"})
"""Config fields in which runs may differ and still be seeds of one arm, arms of one experiment, or twins."""

_MOST_NAMES = 6
_MOST_VALUES = 4
_HASH = re.compile("[0-9a-f]{32,}")


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What differs between runs, as texts such as `torch 2.13.0 (seeds 0, 1) and 2.9.0 (seed 2)`.

    With a `breaking` difference the runs are no repetitions of one experiment; a `minor` one changes their values by
    rounding only.
    """

    breaking: tuple[str, ...] = ()
    minor: tuple[str, ...] = ()


@dataclass
class _RunsByValue:
    """Runs by their values of every aspect, such as `torch` or a config field."""

    values: dict[str, dict[str, list[Run]]] = field(default_factory=dict)

    def add(self, aspect: str, value: str | None, run: Run) -> None:
        """Note a value of a run; None is unknown and differs from nothing."""
        if value is not None:
            of_value = self.values.setdefault(aspect, {}).setdefault(value, [])
            # several sessions of one run
            if not of_value or of_value[-1] is not run:
                of_value.append(run)

    def differences(self) -> Iterator[tuple[str, str]]:
        """Yield every aspect that has several values, with its text."""
        for aspect, values in self.values.items():
            if len(values) > 1:
                yield aspect, f"{aspect} {_labelled(values)}"


def provenance_differences(runs: Sequence[Run], *, same_arm: bool, same_settings: bool = True) -> Differences:
    """Return what differs between runs that are compared, as far as their manifests tell.

    Breaking: the text, the tokenizer, the probe of runs that other programs trained, the code of a plug-in, and with
    `same_settings` the requested config apart from `MAY_DIFFER`; with `same_arm` also the settings of the plug-ins, the
    program that trained and its settings, and the effective config of the runs of one size and length. Minor:
    version of that program, precision, engine, torch, kind of device, in any session of a run. What is unknown differs
    from nothing.
    """
    breaking, effective, minor = _RunsByValue(), _RunsByValue(), _RunsByValue()
    for run in runs:
        if run.manifest is not None:
            _add_breaking(breaking, run, run.manifest)
            _add_minor(minor, run, run.manifest)
    if same_settings:
        _add_requested(breaking, runs)
    if same_arm:
        _add_plugin_settings(breaking, runs)
        _add_external(breaking, runs)
        _add_effective(effective, runs)
    texts = dict(breaking.differences())
    # a field that was requested differently is named once
    known = {f"effective {aspect}" for aspect in texts}
    texts |= {aspect: text for aspect, text in effective.differences() if aspect.partition(" at ")[0] not in known}
    return Differences(breaking=tuple(texts.values()), minor=tuple(text for _, text in minor.differences()))


def code_differences(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the plug-ins of which runs were trained with different code, as texts; what is unknown differs from none.

    Plug-ins that only some of the runs have differ from nothing either.
    """
    found = _RunsByValue()
    for run in runs:
        if run.manifest is not None:
            _add_code(found, run, run.manifest)
    return tuple(text for _, text in found.differences())


def _add_breaking(runs_of: _RunsByValue, run: Run, manifest: Manifest) -> None:
    for key in ("fingerprint", "tokenizer_fingerprint", "probe_fingerprint"):
        value = manifest.data.get(key)
        aspect = "data fingerprint" if key == "fingerprint" else key.replace("_", " ")
        runs_of.add(aspect, value if isinstance(value, str) else None, run)
    _add_code(runs_of, run, manifest)


def _add_code(runs_of: _RunsByValue, run: Run, manifest: Manifest) -> None:
    for plugin in (plugin for session in _sessions(run, manifest) for plugin in session.plugins):
        runs_of.add(f"code of {plugin.name}", plugin.source_sha256, run)


def _add_plugin_settings(runs_of: _RunsByValue, runs: Iterable[Run]) -> None:
    """Note the settings of every plug-in; one that only some runs have differs, too."""
    sessions = [(run, session) for run in runs if run.manifest for session in _sessions(run, run.manifest)]
    names: dict[str, dict[str, None]] = {}
    for _, session in sessions:
        for plugin in session.plugins:
            names.setdefault(plugin.name, {}).update(dict.fromkeys(plugin.settings))
    for run, session in sessions:
        for plugin in session.plugins:
            for name in names[plugin.name]:
                value = _text(plugin.settings[name]) if name in plugin.settings else "no such setting"
                runs_of.add(f"{plugin.name}:{name}", value, run)


def _add_external(runs_of: _RunsByValue, runs: Iterable[Run]) -> None:
    """Note program and settings of the runs that another one trained, and their stages at one length."""
    external = [(run, run.external) for run in runs if run.external is not None]
    programs = {_program(one) for _, one in external}
    names = dict.fromkeys(name for _, one in external for name in one.settings)
    # other programs have other settings
    shared = [name for name in names if len(programs) == 1 or all(name in one.settings for _, one in external)]
    for run, one in external:
        runs_of.add("trainer", _program(one), run)
        for name in shared:
            runs_of.add(name, _text(one.settings[name]) if name in one.settings else "no such setting", run)
        if one.steps is not None:
            for aspect, step in (("boundary step", one.boundary_step), ("warm-up steps", one.warmup_steps)):
                runs_of.add(f"{aspect} of {one.steps:,} steps", _text(step), run)


def _program(external: ExternalRun) -> str | None:
    """Return the program that trained a run, without its version."""
    return None if external.trainer is None else external.trainer.partition(" ")[0]


def _add_minor(runs_of: _RunsByValue, run: Run, manifest: Manifest) -> None:
    if manifest.external is not None:
        runs_of.add("version of the trainer", manifest.external.trainer, run)
    for session in _sessions(run, manifest):
        runs_of.add("precision", session.precision, run)
        runs_of.add("engine", session.engine, run)
        runs_of.add("torch", session.versions.get("torch"), run)
        runs_of.add("device", _device_kind(session.device), run)


def _add_requested(runs_of: _RunsByValue, runs: Iterable[Run]) -> None:
    for run in runs:
        if run.config is not None:
            for name, value in _settings(run.config):
                runs_of.add(name, _text(value), run)


def _add_effective(runs_of: _RunsByValue, runs: Iterable[Run]) -> None:
    """Note the effective configs; an intervention may compute fields from size or steps, so only equal ones compare."""
    shapes = {(run.size, run.planned_steps) for run in runs}
    for run in runs:
        if run.effective is not None and run.manifest is not None and run.manifest.effective_config is not None:
            shape = f" at hidden {run.size} and {run.planned_steps:,} steps" if len(shapes) > 1 else ""
            for name, value in _settings(run.effective):
                runs_of.add(f"effective {name}{shape}", _text(value), run)


def _settings(config: RunConfig) -> Iterator[tuple[str, Any]]:
    for name, value in flatten(config.but_for_seed.model_dump(mode="json")):
        if name not in MAY_DIFFER:
            yield name, value


def _sessions(run: Run, manifest: Manifest) -> Sequence[Session | Manifest]:
    """Return the sessions that trained the rows of a run; an older manifest has its last session only."""
    done = run.final_step
    return [one for one in manifest.sessions if one.from_step is None or one.from_step < done] or [manifest]


def _device_kind(device: str | None) -> str | None:
    """Return `cpu` for any CPU, and the model of a GPU."""
    return "cpu" if device is not None and device.startswith("cpu") else device


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: str) -> str:
    """Return a value for a text: the first digits of a hash, the beginning of anything else that is long."""
    longest = 12 if _HASH.fullmatch(value) else 60
    return value if len(value) <= longest else f"{value[:longest]}…"


def _labelled(values: Mapping[str, Sequence[Run]]) -> str:
    """Return the values, each with the runs that have it: named by what tells them apart, or counted."""
    name = _naming(list(values.values()))
    shown = [f"{_shown(value)} ({name(runs)})" for value, runs in values.items()]
    if len(shown) > _MOST_VALUES:
        shown[_MOST_VALUES - 1 :] = [f"{len(shown) - _MOST_VALUES + 1} other values"]
    return listed(shown)


def _naming(groups: Sequence[Sequence[Run]]) -> Callable[[Sequence[Run]], str]:
    """Return a function that names runs: by arm, seed or size if these differ between all groups, else it counts them.

    The runs of one arm and size are named by seed in any case: one of several sessions may be in several groups.
    """
    of_one_cell = len({(run.arm, run.size) for runs in groups for run in runs}) == 1
    for aspect, word in (("arm", ""), ("seed", "seed"), ("size", "hidden")):
        sets = [{getattr(run, aspect) for run in runs} for runs in groups]
        together = set().union(*sets)
        are_apart = sum(map(len, sets)) == len(together)
        if None not in together and (are_apart or (aspect == "seed" and of_one_cell)):
            return functools.partial(_named, aspect, word)
    return lambda runs: plural(len(runs), "run")


def _named(aspect: str, word: str, runs: Sequence[Run]) -> str:
    names = sorted({getattr(run, aspect) for run in runs})
    several = "s" if word == "seed" and len(names) > 1 else ""
    return f"{word}{several} {shortened([*map(str, names)], _MOST_NAMES)}".strip()
