"""What a class must have to be an intervention."""

import difflib
from typing import Any

from bitnetctl.errors import ConfigError
from bitnetctl.intervention import API_VERSION, Intervention, InterventionSettings
from bitnetctl.plugins.composition import HOOKS

_METHODS = (*HOOKS, "state_dict", "load_state_dict")
# as similar as a hook with one wrong letter, or one too many
_SIMILAR = 0.91


def check_class(candidate: Any) -> type[Intervention]:
    """Return `candidate` if it is an intervention class of this API; raises ConfigError that says what is wrong."""
    if not (isinstance(candidate, type) and issubclass(candidate, Intervention)) or candidate is Intervention:
        raise ConfigError(f"{candidate!r} is not a subclass of bitnetctl.intervention.Intervention")
    if candidate.api_version != API_VERSION:
        raise ConfigError(f"made for intervention API {candidate.api_version}; this bitnetctl has {API_VERSION}")
    settings = getattr(candidate, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, InterventionSettings)):
        raise ConfigError("its Settings is not a subclass of bitnetctl.intervention.InterventionSettings")
    required = [name for name, field in settings.model_fields.items() if field.is_required()]
    if required:
        raise ConfigError(f"its settings have no default: {', '.join(required)}")
    if not candidate.summary:
        raise ConfigError("it has no summary")
    misspelt = _misspelt_hook(candidate)
    if misspelt is not None:
        method, hook = misspelt
        raise ConfigError(
            f"{method} is no hook and is never called; did you mean {hook}? (start the name of a helper with _)"
        )
    return candidate


def _misspelt_hook(intervention: type[Intervention]) -> tuple[str, str] | None:
    """Return a method whose name is almost that of a hook, which its class does not define, and that hook."""
    for kind in intervention.__mro__:
        if kind is Intervention:
            break
        own = vars(kind)
        for name, value in own.items():
            is_method = callable(value) or isinstance(value, classmethod)
            if name in _METHODS or name.startswith("_") or not is_method:
                continue
            close = difflib.get_close_matches(name, _METHODS, 1, cutoff=_SIMILAR)
            if close and close[0] not in own:
                return name, close[0]
    return None
