"""Files that are damaged between two trainings: cut, a bit flipped, blocks lost, deleted."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bitnetctl import checkpoint
from bitnetctl.errors import CheckpointError

from .bench import RUN, STEPS, Bench, Ended, Tally, Truth, each, files_below, resumes
from .hook import NONE, Fault, Mode

Content = dict[str, bytes]
_NAMES = ("model.safetensors", "optimizer.safetensors", "codes.safetensors", "state.json", "records.csv")


def _flip(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 1 << offset % 8]) + content[offset + 1 :]


def _cut(content: bytes, offset: int) -> bytes:
    return content[:offset]


def _blank(content: bytes, offset: int) -> bytes:
    # what a power cut can leave of blocks that were never written
    return content[:offset] + bytes(len(content) - offset)


DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "a bit flipped": _flip,
    "cut": _cut,
    "zeros from there on": _blank,
}


def stopped_late(bench: Bench, truth: Truth) -> Path:
    """Train until the last checkpoint is about to be put in place, and keep that: the last two are of steps 6 and 9."""
    at = truth.put_in_place(STEPS)
    bench.clear()
    bench.call(bench.train, Fault(Mode.KILL_BEFORE, at))
    assert truth.saved(RUN, at)[-2:] == checkpoint.steps(bench.runs / RUN / "checkpoints") == [6, 9]
    return bench.keep("late")


def of_checkpoints(
    bench: Bench, truth: Truth, late: Path, offsets: int, stride: int = 1, seed: int = 0
) -> Iterator[Tally]:
    """Damage each file of the newest checkpoint at offsets of its header and its body, then of all checkpoints."""
    rng = random.Random(seed)
    newest, before = (checkpoint.path_of(Path(RUN, "checkpoints"), step) for step in (9, 6))
    for number, name in enumerate(_NAMES):
        content = (late / newest / name).read_bytes()
        one, all_bad = Tally(f"{name} of the newest checkpoint damaged"), Tally(f"{name} of all checkpoints damaged")
        for what, offset, damaged in _damaged(content, name, offsets, stride, rng, least=1):
            bench.put(late)
            (bench.runs / newest / name).write_bytes(damaged)
            one.count(f"{what} at {offset}", _gives_way(bench, truth, name))
        for what, damage in each(list(DAMAGES.items()), stride, seed + number, least=1):
            bench.put(late)
            for folder in (newest, before):
                old = (bench.runs / folder / name).read_bytes()
                (bench.runs / folder / name).write_bytes(damage(old, len(old) // 2))
            all_bad.count(what, _refused(bench, f"no checkpoint of run {RUN} can be used"))
        bench.put(late)
        (bench.runs / newest / name).unlink()
        one.count("deleted", _gives_way(bench, truth, name))
        yield one
        yield all_bad


def when_read(late: Path, stride: int) -> Iterator[Tally]:
    """Flip a bit in every `stride`-th byte of every file of a checkpoint, and read it."""
    for name in _NAMES:
        path = checkpoint.path_of(late / RUN / "checkpoints", 9)
        intact = checkpoint.verify(path)
        content = (path / name).read_bytes()
        tally = Tally(f"a bit flipped in every byte of {name}" if stride == 1 else f"a bit flipped in {name}")
        for offset in each(range(len(content)), stride):
            (path / name).write_bytes(_flip(content, offset))
            loss = None
            with contextlib.suppress(CheckpointError):
                # a flip between the tokens of JSON may change nothing
                is_same = checkpoint.verify(path) == intact and name == "state.json"
                loss = None if is_same else "not noticed"
            tally.count(f"byte {offset}", loss)
        (path / name).write_bytes(content)
        yield tally


def of_csv_and_manifest(
    bench: Bench, truth: Truth, late: Path, offsets: int, stride: int = 1, seed: int = 0
) -> Iterator[Tally]:
    """Damage run.json and the CSV, of a run in training and of a finished one."""
    rng = random.Random(seed)
    for file in (Path(RUN, "run.json"), Path(f"{RUN}.csv")):
        for state, kept in (("in training", late), ("finished", truth.folder)):
            content = (kept / file).read_bytes()
            tally = Tally(f"{file.name.replace(RUN + '.csv', 'the CSV')} of a run {state} damaged")
            for what, offset, damaged in _damaged(content, file.name, offsets, stride, rng):
                bench.put(kept)
                (bench.runs / file).write_bytes(damaged)
                tally.count(f"{what} at {offset}", _reported_or_repaired(bench, truth, file, offset))
            yield tally


def killed_while_falling_back(bench: Bench, truth: Truth, late: Path, stride: int) -> Iterator[Tally]:
    """Kill, at every `stride`-th write call, a training that falls back to the checkpoint before a damaged one."""
    tally = Tally("killed while falling back from a damaged checkpoint")
    damaged = checkpoint.path_of(Path(RUN, "checkpoints"), 9) / "optimizer.safetensors"

    def begin(fault: Fault) -> Ended:
        bench.put(late)
        (bench.runs / damaged).write_bytes(b"")
        return bench.call(bench.train, fault)

    for at in each(range(1, len(begin(NONE).calls) + 1), stride):
        begin(Fault(Mode.KILL_BEFORE, at))
        tally.count(f"at {at}", resumes(bench, truth))
    yield tally


def _damaged(
    content: bytes, name: str, count: int, stride: int, rng: random.Random, least: int = 2
) -> Sequence[tuple[str, int, bytes]]:
    """Return what, where and result of every damage at the first, the last and `count` offsets of header and body each.

    Of these, every `stride`-th. A safetensors file says how long its header is; of other files it is the first half.
    """
    header = 8 + int.from_bytes(content[:8], "little")
    border = header if header < len(content) else len(content) // 2
    drawn = [rng.randrange(border) for _ in range(count)] + [rng.randrange(border, len(content)) for _ in range(count)]
    damaged = [
        (what, offset, damage(content, offset))
        for what, damage in DAMAGES.items()
        for offset in sorted({0, *drawn, len(content) - 1})
        # white space means nothing in JSON
        if not (name.endswith(".json") and content[offset : offset + 1].isspace())
    ]
    return each([one for one in damaged if one[2] != content], stride, rng.randrange(2**32), least)


def _gives_way(bench: Bench, truth: Truth, name: str) -> str | None:
    """Say what is wrong unless the newest checkpoint is refused with a message and the one before it is used."""
    ended = bench.call(bench.train)
    if ended.code:
        return f"ended with {ended.code}: {ended.said[-300:]}"
    if f"{checkpoint.path_of(Path('checkpoints'), 9).name}: {name}" not in ended.said:
        return f"the damage is not reported: {ended.said[:300]}"
    if "resumed after step 6\n" not in ended.said:
        return f"it did not resume from the checkpoint before: {ended.said[:300]}"
    return truth.finished(bench.runs)


def _refused(bench: Bench, message: str) -> str | None:
    """Say what is wrong if the training is not refused with one line, and every file left as it is."""
    before = _contents(bench.runs)
    return _left_alone(bench, bench.call(bench.train), before, message)


def _left_alone(bench: Bench, ended: Ended, before: Content, message: str) -> str | None:
    if ended.code not in (2, 3):
        return f"ended with {ended.code}: {ended.said[-300:]}"
    if len(ended.errors) != 1 or message not in ended.said:
        return f"not reported: {ended.said[-300:]}"
    return None if _contents(bench.runs) == before else "files were changed"


def _reported_or_repaired(bench: Bench, truth: Truth, file: Path, offset: int) -> str | None:
    """Say what is wrong if damage is neither refused nor repaired; damaged rows of a checkpoint must be reported."""
    before = _contents(bench.runs)
    records = bench.runs / checkpoint.path_of(Path(RUN, "checkpoints"), 9) / "records.csv"
    counted = not records.exists() or offset < records.stat().st_size
    ended = bench.call(bench.train)
    if ended.code:
        return _left_alone(bench, ended, before, str(bench.runs / file))
    if file.suffix == ".csv" and counted and f"the rows of {bench.runs / file}" not in ended.said:
        return f"the damage is not reported: {ended.said[:300]}"
    return truth.finished(bench.runs)


def _contents(folder: Path) -> Content:
    return {name: (folder / name).read_bytes() for name in files_below(folder)}
