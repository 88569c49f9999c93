"""The data path: tokenizing, loading cached tokens, fetching a batch.

    python -m benchmarks.data [--recipe quick] [--rounds N] [--quick] [--json FILE]

The text is that of the Python standard library. `plain library` is `tokenizers` alone, on documents in memory, without
writing; `prepare` also splits, checks, hashes and writes, and a second call reads and hashes text and tokens. A fetch
is the mean over the first 2,000 steps, the permutation of the epoch included; `plain slices` takes the next tokens of
an array in memory.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from benchmarks import harness
from benchmarks.step import VOCABULARIES
from benchmarks.worker import Job
from bitnetctl.config import DataConfig, build_config
from bitnetctl.data import Batches, TokenData, prepare
from bitnetctl.data.sources import open_source

_FETCHES = 2000
_QUICK_CHARACTERS, _QUICK_TOKENIZER = 500_000, "bpe:2048"
_LIMIT = 0.01


def main() -> int:
    """Measure and print; 1 if the trainer's own step broke."""
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--recipe", choices=sorted(VOCABULARIES), default="quick")
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    config = build_config(arguments.recipe)
    documents = _documents(_QUICK_CHARACTERS if arguments.quick else None)
    megabytes = sum(len(document.encode()) for document in documents) / 1e6

    with tempfile.TemporaryDirectory() as folder:
        data_config = config.data
        if arguments.quick:
            text = Path(folder) / "text.txt"
            text.write_text("".join(documents), encoding="utf-8")
            data_config = data_config.model_copy(update={"source": f"file:{text}", "tokenizer": _QUICK_TOKENIZER})
        racing, tokens = _tokenizing(data_config, documents, Path(folder))
        harness.alternate(racing, rounds=rounds, warm_up=0)
        fetching = _fetching(data_config, tokens)
        with harness.contenders({"step": _step_job(arguments.recipe)}) as (step,):
            harness.alternate([*fetching, step], rounds=rounds, steps=2 if arguments.quick else 50)

    plain = {one.name: one.median("seconds", skip=0) for one in racing}
    rows = [
        {
            "text": one.name,
            "seconds": seconds,
            "MB/s": harness.ratio(megabytes, seconds),
            "times the plain library's speed": harness.ratio(plain[reference], seconds) if reference else None,
        }
        for one, reference in zip(racing, (None, None, _TRAIN, _ENCODE, None), strict=True)
        for seconds in [plain[one.name]]
    ]
    fetch_us, slice_us = (None if ms is None else 1000 * ms for ms in (one.milliseconds() for one in fetching))
    step_ms = step.milliseconds()
    fraction = None if fetch_us is None or step_ms is None else fetch_us / 1000 / step_ms
    metadata = {
        **harness.machine(torch.device("cpu")),
        "text": f"{megabytes:.1f} MB, {len(documents)} documents, tokenizer {data_config.tokenizer}",
        "batch fetch, µs": fetch_us,
        "plain slices, µs": slice_us,
        f"step of {arguments.recipe}, ms": step_ms,
        "batch fetch, fraction of a step": fraction,
        "limit of the fraction": _LIMIT,
        "measured": f"median of {rounds} turns",
        **harness.notes([*racing, *fetching, step]),
    }
    harness.report("data", rows, metadata, arguments.json)
    return int(step.failed)


_TRAIN, _ENCODE = "plain library, train the tokenizer and encode", "plain library, encode"


def _documents(characters: int | None) -> list[str]:
    """Return the documents of the standard library; with `characters`, the first ones that have as many together."""
    documents, open_parts, taken = [], [], 0
    for piece in open_source("stdlib").pieces():
        open_parts.append(piece.text)
        if piece.ends:
            documents.append("".join(open_parts))
            taken, open_parts = taken + len(documents[-1]), []
        if characters is not None and taken >= characters:
            break
    return documents


def _tokenizing(config: DataConfig, documents: list[str], folder: Path) -> tuple[list[harness.Contender], TokenData]:
    """Return the contenders that tokenize, and the tokens."""
    count = itertools.count()
    _enter_cache(folder / "warm")
    tokens = prepare(config)
    tokenizer = Tokenizer.from_file(str(tokens.tokenizer_path))
    ready = config.model_copy(update={"tokenizer": f"file:{tokens.tokenizer_path}"})

    def encode(with_tokenizer: Tokenizer) -> None:
        for encoding in with_tokenizer.encode_batch_fast(documents, add_special_tokens=False):
            np.array(encoding.ids, dtype=np.uint16)

    def train_and_encode() -> None:
        plain = Tokenizer(models.BPE())
        plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        size = int(config.tokenizer.partition(":")[2])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        plain.train_from_iterator(documents, trainer)
        encode(plain)

    def cold(requested: DataConfig) -> None:
        _enter_cache(folder / f"cold-{next(count)}")
        prepare(requested)

    def warm() -> None:
        _enter_cache(folder / "warm")
        prepare(config)

    racing = [
        _timed(_TRAIN, train_and_encode),
        _timed(_ENCODE, lambda: encode(tokenizer)),
        _timed("prepare, from nothing", lambda: cold(config)),
        _timed("prepare, tokenizer ready", lambda: cold(ready)),
        _timed("prepare, again", warm),
    ]
    return racing, tokens


def _enter_cache(folder: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder)


def _fetching(config: DataConfig, tokens: TokenData) -> list[harness.Contender]:
    in_memory = np.array(tokens.train_N)
    length = config.batch_size * config.sequence_length

    def fetch() -> None:
        batches = Batches(tokens, config, seed=0)
        for step in range(1, _FETCHES + 1):
            torch.from_numpy(np.stack([batches.rows_BT1(step)]))

    def slices() -> None:
        for step in range(_FETCHES):
            start = step * length % (len(in_memory) - length - 1)
            torch.from_numpy(in_memory[start : start + length + 1].astype(np.int64))

    return [_timed("fetch", fetch, _FETCHES), _timed("slices", slices, _FETCHES)]


def _timed(name: str, work: Callable[[], None], times: int = 1) -> harness.Contender:
    """Return a contender whose turn is one call of `work`, counted as `times` steps."""

    def take(steps: int) -> harness.Turn:
        start = time.perf_counter()
        work()
        return {"steps": times, "seconds": time.perf_counter() - start}

    return harness.Contender(name, take)


def _step_job(recipe: str) -> Job:
    return Job(kind="ours", recipe=recipe, vocab_size=VOCABULARIES[recipe])


if __name__ == "__main__":
    raise SystemExit(main())
