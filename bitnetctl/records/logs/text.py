"""What programs print while they train: nanoGPT, nanochat, modded-nanogpt, llm.c, torchtitan, Megatron and alike.

A line counts if it has a step and then names with numbers:
`step 2000: train loss 1.9, val loss 2.1` · `iter 10: loss 3.2, time 12ms` ·
`step 00010/21400 (0.05%) | loss: 9.01 | …` · `step:125/1480 val_loss:4.3 train_time:…` ·
`step    1/19560 | loss 10.98 (+nanz)| norm 22.1 | lr 8.57e-07` ·
`s:250 tel:4.1` · `250 val 4.1` · `iteration 26/ 500000 | … | lm loss: 1.03E+01 |` ·
`validation loss at iteration 1000 | lm loss value: 3.1E+00`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitnetctl.errors import RecordError, cannot_read
from bitnetctl.records.logs.base import Format, Log, lines, log_name, opened, planned_steps
from bitnetctl.records.logs.columns import Columns, normalized
from bitnetctl.records.logs.curves import Curves
from bitnetctl.units import plural

_SEARCHED = 1 << 22
"""Bytes in which a first line is looked for: some programs print their source before."""

_LONGEST = 1 << 12
"""Characters of a line that are looked at."""

_VALUE = rb"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|[+-]?nan|[+-]?inf(?:inity)?"
# in lower case; nothing but the prefix of a logger before it: not "warmup_step"
_STEP = re.compile(
    rb"(?<![^\s\]|,(])(?P<what>validate |validation loss at )?(?:step|iter(?:ation)?)\b\s*[:=]?\s*"
    rb"(?P<step>\d+)(?:\s*/\s*(?P<total>\d[\d,]*))?(?![\w.])"
)
_BARE = re.compile(rb"(?P<step>\d+) (?P<name>train|val) (?P<value>" + _VALUE + rb")\s*")
_LLM_C = re.compile(rb"s:(?P<step>\d+) ")
_PAIR = re.compile(
    rb"(?<![a-z_/])(?P<name>[a-z][a-z_/]*(?: (?!nan\b|inf\b)[a-z_/]+){0,4})\s*[:=]?\s*"
    rb"(?P<value>" + _VALUE + rb")(?![\w.%])"
)
_ONLY_VALUE = re.compile(rb"\s*:\s*(?P<value>" + _VALUE + rb")\s*")
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
# names that mean a loss in lines of this kind only
_NAMES = {
    "train": "train loss",
    "val": "val loss",
    "trl": "train loss",
    "tel": "val loss",
    "lm loss value": "val loss",
    "norm": "grad norm",
}
_COUNTERS = ("step", "iter", "iteration", "epoch")
_DIGITS = 18
_BITS = re.compile(r"\bbpb\b")
_OF_EVALUATION = re.compile(rb"step \d+: train loss \S+, val loss ")
# of llm.c and build-nanogpt
_VALIDATION = re.compile(rb"val(?:idation)? loss:? " + _VALUE + rb"\s*")
_SMOOTHED = re.compile(rb"step \d+/\d+ \([\d.]+%\) \| loss: ")


@dataclass(frozen=True)
class _Line:
    """What a line tells: the step, the total of steps if it has one, values by name."""

    step: int
    total: int | None
    values: Mapping[str, float]


def _recognise(head: bytes, path: Path, columns: Columns) -> bool:
    if b"\0" in head:
        return False
    try:
        with opened(path) as file:
            beginning = file.read(_SEARCHED)
    except (OSError, RecordError):
        return False
    found = map(_parse, beginning.splitlines())
    return any(line is not None and any(map(columns.wants, line.values)) for line in found)


def _read(paths: Sequence[Path], columns: Columns) -> list[Log]:
    (path,) = paths
    curves = Curves(path, columns)
    curves.refuse_other_steps(_COUNTERS)
    total: int | None = None
    is_smoothed = is_mean = False
    without_step = 0
    try:
        with opened(path) as file:
            for number, content, whole in lines(file, path):
                line = _parse(content)
                if line is None:
                    without_step += _VALIDATION.fullmatch(content) is not None
                    continue
                curves.add(line.step, line.values, number)
                total = line.total or total
                is_mean = is_mean or _OF_EVALUATION.match(content) is not None
                is_smoothed = is_smoothed or _SMOOTHED.search(content) is not None
                if not whole:
                    curves.torn = f"line {number}: the last line has no newline; its values may be cut short"
    except OSError as error:
        raise RecordError(cannot_read(path, error)) from error
    if is_mean and "loss" not in curves.names:
        curves.remarks.append("the train loss is a mean over batches of the training text, as of the held-out text")
    if without_step:
        curves.remarks.append(f"held-out losses in {plural(without_step, 'line')} without a step are left out")
    if is_smoothed:
        curves.remarks.append("nanochat's loss is a moving average over about ten steps")
    if any(_BITS.search(normalized(name)) for name in curves.names):
        curves.remarks.append("bits per byte (bpb) are no loss per token and not taken as one")
    records = curves.records("log of a training as text")
    planned = planned_steps(records.frame["Step"].tolist(), total)
    return [Log(name=log_name(path), path=path, records=records, planned_steps=planned)]


def _parse(content: bytes) -> _Line | None:
    """Return what a line tells; None for one without a step."""
    text = content[:_LONGEST]
    if b"\x1b" in text:
        text = _ANSI.sub(b"", text)
    lower = text.lower()
    bare = _BARE.fullmatch(lower)
    if bare is not None:
        return _Line(_step(bare), None, {_NAMES[bare["name"].decode()]: float(bare["value"])})
    # of "iter 40 step 10" the step counts updates of the weights
    found = list(_STEP.finditer(lower)) if b"step" in lower or b"iter" in lower else list(_LLM_C.finditer(lower))
    if not found:
        return None
    match = next((one for one in found if b"step" in one[0]), found[0])
    groups = match.groupdict()
    values: dict[str, float] = {}
    for pair in _PAIR.finditer(lower, found[-1].end()):
        name = _name(text[pair.start("name") : pair.end("name")], of_validation=bool(groups.get("what")))
        if name is not None:
            values.setdefault(name, float(pair["value"]))
    alone = _ONLY_VALUE.fullmatch(lower, match.end()) if groups.get("what") else None
    if alone is not None:
        values["val loss"] = float(alone["value"])
    total = (groups.get("total") or b"").replace(b",", b"")
    return _Line(_step(match), int(total) if 0 < len(total) < _DIGITS else None, values)


def _step(match: re.Match[bytes]) -> int:
    return int(match["step"][:_DIGITS])


@functools.lru_cache(maxsize=1024)
def _name(text: bytes, *, of_validation: bool) -> str | None:
    """Return the name of a value as its program means it; None for a counter."""
    name = text.decode("utf-8", "replace")
    key = normalized(name)
    if key in _COUNTERS:
        return None
    return "val loss" if of_validation and key in ("loss", "lm loss") else _NAMES.get(key, name)


FORMAT = Format(title="text logs of trainings", recognise=_recognise, read=_read)
