"""Errors in the code of a plug-in, named by plug-in, hook, file and line."""

import contextlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from bitnetctl.errors import BitnetctlError, PluginError, one_line

_OWN = str(Path(__file__).parents[1])


def blamed(plugin: str, what: str, function: Callable[..., object] | None = None) -> PluginError:
    """Return the error of a plug-in that broke a rule; `what` is a clause, `function` its hook."""
    return PluginError(f"{plugin}: {what}{_in_parentheses(_definition(function))}")


@contextlib.contextmanager
def errors_blamed(plugin: str, hook: str, function: Callable[..., object] | None = None) -> Iterator[None]:
    """Raise PluginError for what the code of a plug-in raises.

    An error of bitnetctl, lack of memory and an interrupt pass, and during the capture of a CUDA graph everything does.
    """
    try:
        yield
    except (BitnetctlError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        if _is_of_torch(error):
            raise
        where = _in_parentheses(location(error, function) or _definition(function))
        raise PluginError(f"{plugin}: {hook} raised {described(error)}{where}") from error
    except BaseException as error:
        where = _in_parentheses(location(error, function) or _definition(function))
        raise PluginError(f"{plugin}: {hook} raised {error!r}; no hook may end the process{where}") from error


def described(error: BaseException, limit: int = 300) -> str:
    """Return the type and text of an error on one line."""
    text = one_line(error, limit)
    name = type(error).__name__
    return text if text == name else f"{name}: {text}"


def location(error: BaseException, function: Callable[..., object] | None = None) -> str | None:
    """Return `file:line` of the plug-in's code that an error comes from, None where it comes from elsewhere.

    That is the last line in the file of `function`, or without one in the first file that is not bitnetctl's.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    if function is not None:
        file = (_definition(function) or "").rpartition(":")[0]
    else:
        # importlib's own frames name no real file
        foreign = [frame.filename for frame in frames if not frame.filename.startswith(("<", _OWN + os.sep))]
        file = next((name for name in foreign if f"{os.sep}importlib{os.sep}" not in name), "")
    line = [frame.lineno for frame in frames if frame.filename == file][-1:]
    return f"{file}:{line[0]}" if line else None


def _definition(function: Callable[..., object] | None) -> str | None:
    try:
        code = inspect.unwrap(function).__code__ if function is not None else None
    except (AttributeError, ValueError):
        return None
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else None


def _in_parentheses(where: str | None) -> str:
    return f" ({where})" if where else ""


def _is_of_torch(error: Exception) -> bool:
    """Whether memory of the device is short, or a capture is going on, which torch ends by an error of its own."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return torch.cuda.is_initialized() and bool(torch.cuda.is_current_stream_capturing())
