"""What a hook returned, as a number or as text."""

import numbers


def as_float(value: object) -> float | None:
    """Return a number of Python or numpy, or in a tensor without dimensions, as a float; None for anything else."""
    item = getattr(value, "item", None)
    if callable(item) and tuple(getattr(value, "shape", (None,))) == ():
        value = item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except (OverflowError, ValueError):
        return None


def kind_of(value: object) -> str:
    """Return what a value is, for a message: None, or its type with the shape of a tensor or array."""
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    of_shape = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}{of_shape}".removeprefix("builtins.")
