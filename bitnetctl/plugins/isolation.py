"""Keeps the code of a plug-in from changing the process that it shares with other runs.

Around its import, its constructor and every hook, what code can change by accident is compared before and after:
torch's default dtype and device, threads, flags, precisions, autocast and grad mode, the global generators, numpy's
error state, warnings filters, signal handlers and timer, environment, working directory, umask, search path, recursion
limit, root logger, `sys.stdout`. What was changed is put back and named once for each plug-in: on stderr, in run.json
and by `interventions check`. What a plug-in prints goes to stderr, and it cannot end the process.

Nothing here imports torch: its state is compared where it is loaded, or from the moment a plug-in loads it.
"""

import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import sys
import threading
import types
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NoReturn, TextIO, cast

from bitnetctl.plugins.aspects import FILTERS, GENERAL, SEARCH_PATH, Aspect, of_numpy

_found: dict[str, dict[str, None]] = {}


def intrusions_of(plugin: str) -> list[str]:
    """Return what a plug-in changed in this process, in order, each as a clause such as `set … at import; put back`."""
    return list(_found.get(plugin, ()))


def forget_intrusions(plugin: str | None = None) -> None:
    """Forget what a plug-in changed, or all of them, so that it is named again."""
    if plugin is None:
        _found.clear()
    else:
        _found.pop(plugin, None)


@contextlib.contextmanager
def isolated(
    plugin: str, where: str, *, seed: str | None = None, kind: type | None = None, at_import: bool = False
) -> Iterator[None]:
    """Run code of a plug-in; put back and name what it changes in the process.

    `where` completes the message, such as `at import` or `in training_loss`. With `seed`, a text, the code may draw
    from the global generators: they are seeded from it, and afterwards continue where they were. Attributes of the
    class `kind`, which all runs share, are not put back if they change, only named.
    """
    attributes = {} if kind is None else _class_attributes(kind)
    before = [(aspect, aspect.read()) for aspect in _aspects()]
    watcher = _watch_import_of_torch(before) if "torch" not in sys.modules else None
    if seed is not None:
        _seed(seed)
    initial_seed = _initial_seed() if seed is not None else None
    out, err = sys.stdout, sys.stderr
    with _output_to_stderr():
        # Python can be without a stderr
        sys.stdout = printed = None if err is None else cast(TextIO, _Noticed(err))
        try:
            with _process_goes_on():
                yield
        finally:
            replaced = [name for name, own in (("stdout", printed), ("stderr", err)) if getattr(sys, name) is not own]
            if watcher in sys.meta_path:
                sys.meta_path.remove(watcher)
            changes = [f"replaced sys.{name}" for name in replaced]
            if initial_seed != (_initial_seed() if seed is not None else None):
                changes.append("seeded torch's global generator")
            changes += _put_back(before, own_generators=seed is not None, at_import=at_import)
            # after the warnings filters: a stream that a plug-in opened is closed here
            sys.stdout, sys.stderr = out, err
            if printed is not None and cast(Any, printed).is_written:
                _name(plugin, f"printed to stdout {where}, where results go; shown on stderr")
            for change in changes:
                _name(plugin, f"{change} {where}; put back")
            now = {} if kind is None else _class_attributes(kind)
            for name in [name for name in now if now[name] != attributes.get(name)]:
                _name(plugin, f"changed {name} {where}, which all runs share: keep state on self")


class _Noticed:
    """A stream that knows whether anything was written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_written = False

    def write(self, text: str) -> int:
        self.is_written = True
        return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _class_attributes(kind: type) -> dict[str, object]:
    """Return what tells a change of the attributes of a class: identities, and the content of containers."""
    found: dict[str, object] = {}
    for one in kind.__mro__:
        if one.__module__ == "bitnetctl.intervention":
            break
        for name, value in vars(one).items():
            if not name.startswith("__") and not callable(value):
                content = list(value) if isinstance(value, list | set | dict) else getattr(value, "_version", None)
                values = list(map(id, value.values())) if isinstance(value, dict) else None
                found[f"{one.__name__}.{name}"] = (id(value), content, values)
    return found


def _name(plugin: str, text: str) -> None:
    known = _found.setdefault(plugin, {})
    if text not in known:
        known[text] = None
        if sys.stderr is not None:
            # a lost terminal must not end a training
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"warning: {plugin} {text}\n")


def _put_back(before: Sequence[tuple[Aspect, Any]], *, own_generators: bool, at_import: bool) -> list[str]:
    """Restore what differs from `before`; return what was changed, as clauses."""
    changes = []
    for aspect, value in before:
        if aspect.is_generator and own_generators:
            aspect.write(value)
            continue
        now = aspect.read()
        if now is value or now == value:
            continue
        if aspect.what == FILTERS:
            added = [one for one in now if one not in value]
            if at_import and not any(map(_is_broad, added)):
                # a library that the plug-in imports silences warnings of its own
                continue
            if not any(map(_is_broad, added)) and not [one for one in value if one not in now]:
                aspect.write(value)
                continue
        if aspect.what == SEARCH_PATH and set(value) <= set(now):
            # modules beside the plug-in, which it may import later
            continue
        aspect.write(value)
        if aspect.is_generator:
            changes.append(f"drew from or seeded {aspect.what}")
        else:
            changes.append(f"{'set' if aspect.shows else 'changed'} {_difference(aspect, value, now)}")
    return changes


def _difference(aspect: Aspect, value: Any, now: Any) -> str:
    if aspect.shows:
        return f"{aspect.what} to {now}"
    if isinstance(value, dict):
        names = sorted(
            str(os.fsdecode(key) if isinstance(key, bytes) else getattr(key, "name", key))
            for key in value.keys() | now.keys()
            if value.get(key) != now.get(key)
        )
        return f"{aspect.what} {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
    return aspect.what


def _is_broad(one: tuple[Any, ...]) -> bool:
    """Whether a warnings filter turns warnings into errors, or takes all warnings whatever their text and module."""
    action, message, category, module, _ = one
    return action == "error" or (message is None and module is None and category is Warning)


def _aspects() -> list[Aspect]:
    return [
        *GENERAL,
        *(of_numpy() if "numpy.random" in sys.modules else ()),
        *(_of_torch() if _is_loaded("torch") else ()),
    ]


def _is_loaded(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


@cache
def _of_torch() -> tuple[Aspect, ...]:
    from bitnetctl.plugins.torch_aspects import TORCH

    return TORCH


def _initial_seed() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.initial_seed())


def _seed(text: str) -> None:
    """Seed the global generators from a text."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())
    random.seed(number)
    if "numpy.random" in sys.modules:
        import numpy as np

        np.random.seed(number)  # noqa: NPY002
    if _is_loaded("torch"):
        import torch

        torch.default_generator.manual_seed(number)
        if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
            torch.cuda.manual_seed_all(number)


class _TorchWatcher(importlib.abc.MetaPathFinder):
    """Reads the state of torch as soon as it is loaded: a plug-in may change it in the line after its import."""

    def __init__(self, before: list[tuple[Aspect, Any]]) -> None:
        self._before = before

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of torch, with a loader that reads its state at the end."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load, before = spec.loader.exec_module, self._before

            def exec_module(module: types.ModuleType) -> None:
                load(module)
                # torch itself may set these
                loaded = {aspect.what: aspect for aspect in GENERAL}
                before[:] = [
                    (aspect, loaded[aspect.what].read() if aspect.what == FILTERS else value)
                    for aspect, value in before
                ]
                before.extend((aspect, aspect.read()) for aspect in _of_torch())

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _watch_import_of_torch(before: list[tuple[Aspect, Any]]) -> _TorchWatcher:
    watcher = _TorchWatcher(before)
    sys.meta_path.insert(0, watcher)
    return watcher


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[None]:
    """Send what is written to file descriptor 1, by C code or a child process too, to stderr."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):
        # closed, or without a file descriptor
        yield
        return
    try:
        yield
    finally:
        # what it left in the buffer of Python's own stream
        with contextlib.suppress(OSError, ValueError):
            if sys.__stdout__ is not None:
                sys.__stdout__.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _process_goes_on() -> Iterator[None]:
    """Make os._exit raise SystemExit, and end a child process that the code forked and did not end."""
    process, leave = os.getpid(), os._exit

    def end(status: int = 0) -> NoReturn:
        if os.getpid() != process or threading.current_thread() is not threading.main_thread():
            leave(status)
        raise SystemExit(status)

    os._exit = end
    try:
        yield
    finally:
        os._exit = leave
        if os.getpid() != process:
            leave(1)
