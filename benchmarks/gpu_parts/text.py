"""Tokenize the text that later parts train on, once; later commands find it in the cache."""

import time

from benchmarks.gpu_parts.commands import data_options
from benchmarks.gpu_parts.report import Options, Report
from bitnetctl.config import build_config
from bitnetctl.data import prepare


def run(report: Report, options: Options) -> None:
    """Tokenize and count."""
    overrides = [text for text in data_options(options) if text != "--set"]
    config = build_config("origin", overrides=overrides)
    report.values(source=config.data.source, tokenizer=config.data.tokenizer)
    start = time.perf_counter()
    tokens = prepare(config.data)
    report.values(
        seconds=time.perf_counter() - start,
        tokens=len(tokens.train_N),
        held_out_tokens=len(tokens.held_out_N),
        vocabulary=tokens.vocab_size,
    )
