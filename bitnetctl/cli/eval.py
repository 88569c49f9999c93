"""`bitnetctl eval`: how well runs predict any text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnetctl.cli import options
from bitnetctl.cli.options import STDIN, print_json, print_message, read_text, stdout
from bitnetctl.errors import ConfigError, DataError, ExitCode

if TYPE_CHECKING:
    from bitnetctl.inference.evaluation import Score, TextTokens
    from bitnetctl.inference.trained import TrainedRun


def evaluate(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN", parser=options.user_text, help="Names in --runs-dir, folders or CSVs of runs."),
    ],
    texts: Annotated[
        list[str],
        typer.Option(
            "--text", metavar="FILE", parser=options.user_text, help="UTF-8 text; - is stdin; may be repeated."
        ),
    ],
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            min=1,
            help="Tokens between overlapping rows: each has at least context - stride before it. Unset: rows of the "
            "trained context that do not overlap, as in HeldOutBitsPerByte.",
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, metavar="N", help="Step of the checkpoint; unset: the newest.")
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> int:
    """Score any text by the weights of runs: bits per byte, cross-entropy, perplexity, beside n-gram predictors."""
    if texts.count(STDIN) > 1:
        raise ConfigError("--text - is given twice; stdin can be read once")
    contents = [(name, read_text(name, "--text")) for name in texts]
    for name, content in contents:
        if not content:
            raise DataError(f"--text {name}: is empty")
    from bitnetctl.inference.trained import open_run

    runs = [open_run(name, runs_dir, device=device, step=step) for name in names]
    notes: dict[str, None] = {}
    trees = [_scored(name, content, runs, stride, notes) for name, content in contents]
    if as_json:
        print_json({"texts": trees, "notes": list(notes)})
    else:
        _show(trees)
        for note in notes:
            print_message(f"note: {note}")
    return ExitCode.SUPPORTED


def _scored(
    name: str, content: str, runs: "list[TrainedRun]", stride: int | None, notes: dict[str, None]
) -> dict[str, Any]:
    """Return what is known of a text: the scores of every run, and of the n-gram predictors of its training text."""
    from bitnetctl.inference.evaluation import score, score_ngrams, tokenize

    rows: list[dict[str, Any]] = []
    ngrams: list[dict[str, Any]] = []
    seen: set[object] = set()
    for run in runs:
        tokens = tokenize(run, content, f"--text {name}")
        context = {"context": run.context_length, "stride": stride or run.context_length}
        row = {"run": run.name, "step": run.step, **context, **_tree(score(run, tokens, stride), tokens)}
        rows.append(row)
        _note(run, tokens, name, notes)
        fingerprint = run.manifest.data.get("fingerprint")
        if fingerprint in seen:
            continue
        seen.add(fingerprint)
        trained_on = run.training_tokens()
        if trained_on is None:
            notes[f"no n-gram scores for {run.name}: the token cache has not the text that it was trained on"] = None
            continue
        scores = score_ngrams(trained_on.train_N, tokens, trained_on.vocab_size)
        source = run.config.data.source
        ngrams += [{"predictor": kind, "source": source, **_tree(one, tokens)} for kind, one in scores.items()]
    return {"text": name, "bytes": len(content.encode()), "runs": rows, "ngrams": ngrams}


def _note(run: "TrainedRun", tokens: "TextTokens", name: str, notes: dict[str, None]) -> None:
    if tokens.no_bytes is not None:
        notes[f"{name}: bits per byte are unknown: {tokens.no_bytes}"] = None
    if tokens.first_unscored:
        notes[f"{name}: the tokenizer of {run.name} has no end-of-text token, so the first token is not scored"] = None


def _tree(score: "Score", tokens: "TextTokens") -> dict[str, Any]:
    """Return a score as JSON."""
    from bitnetctl.records.metrics import json_value

    values = {
        "bits_per_byte": score.bits_per_byte,
        "nats_per_token": score.nats,
        "perplexity": score.perplexity,
        "tokens": score.tokens,
        "bytes": tokens.num_bytes,
    }
    return {name: json_value(value) for name, value in values.items()}


def _show(trees: list[dict[str, Any]]) -> None:
    from bitnetctl.report.fitted import Column, FittedTable, Row, Span
    from bitnetctl.units import format_value

    columns = (
        Column("run"),
        Column("step", 2, number=True),
        Column("bits/byte", 7, number=True),
        Column("nats/token", 6, number=True),
        Column("perplexity", 5, number=True),
        Column("tokens", 4, number=True),
        Column("bytes", 3, number=True),
        Column("row", 1, number=True),
    )

    def cells(one: dict[str, Any]) -> tuple[str, ...]:
        return (
            format_value(one["bits_per_byte"], ".4f"),
            format_value(one["nats_per_token"], ".4f"),
            format_value(one["perplexity"], ",.1f"),
            format_value(one["tokens"], ","),
            format_value(one["bytes"], ","),
        )

    lines: list[Row | Span] = []
    for tree in trees:
        if len(trees) > 1:
            lines.append(Span(tree["text"], "bold"))
        for one in tree["runs"]:
            overlap = f"{one['context']}/{one['stride']}" if one["stride"] != one["context"] else str(one["context"])
            lines.append(Row((one["run"], f"{one['step']:,}", *cells(one), overlap)))
        lines += [Row((f"{one['predictor']} of {one['source']}", "", *cells(one), ""), "dim") for one in tree["ngrams"]]
    stdout().print(FittedTable(columns, lines, header_style="dim"))
