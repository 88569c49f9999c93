"""`bitnetctl generate`: text that trained runs continue."""

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitnetctl.cli import options
from bitnetctl.cli.generation_output import GenerationPrinter, generation_json, interactive_session
from bitnetctl.cli.options import STDIN, print_json, print_message, read_text
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.inference.sampling import Sampling
from bitnetctl.units import plural

if TYPE_CHECKING:
    from bitnetctl.inference.generation import Generation, GenerationOptions
    from bitnetctl.inference.run_health import HealthAtStep

_DEFAULT = Sampling()
# the KV cache of a row takes megabytes, and a mistyped number must not take all memory
_MOST_SAMPLES = 1000


def generate(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            parser=options.user_text,
            help="Names of runs, or their folders or CSVs; several side by side.",
        ),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="Text to continue; may be repeated. Unset: stdin."),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            parser=options.user_text,
            help="Read a prompt; - is stdin; may be repeated.",
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Most tokens of a sample.")] = 50,
    num_samples: Annotated[
        int, typer.Option("--num-samples", min=1, max=_MOST_SAMPLES, help="Samples of every prompt.")
    ] = 1,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "--temp", help=f"0: the most probable token; unset: {_DEFAULT.temperature}."),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", min=0, help="Draw from the K most probable tokens; 0: all.")
    ] = _DEFAULT.top_k or 0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Draw from the fewest tokens of this probability together; 1: all.")
    ] = _DEFAULT.top_p,
    min_p: Annotated[
        float,
        typer.Option("--min-p", help="Draw from tokens this probable, relative to the most probable one; 0: all."),
    ] = _DEFAULT.min_p,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the most probable token: --temperature 0.")] = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the random numbers, the same ones for every run.")
    ] = _DEFAULT.seed,
    ignore_end: Annotated[
        bool, typer.Option("--ignore-eos", help="Never choose the end of a text, which ends a sample otherwise.")
    ] = False,
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", help="Step of the checkpoint; unset: the newest.")
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N or auto.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print text and warnings, no speed.")] = False,
    as_json: options.Json = False,
) -> int:
    """Continue text with trained runs; without a prompt, lines typed at a terminal are continued."""
    if greedy and temperature:
        raise ConfigError(f"--greedy is --temperature 0; leave one out: --temperature {temperature:g} was given")
    if temperature is None:
        temperature = 0.0 if greedy else _DEFAULT.temperature
    is_interactive = not prompts and not files and sys.stdin.isatty()
    if is_interactive and as_json:
        raise ConfigError("--json needs a prompt: give one with -p, -f or on stdin")
    if (files or []).count(STDIN) > 1:
        raise ConfigError("--file - is given twice; stdin can be read once")
    import torch

    from bitnetctl.inference.decoding import threads_for
    from bitnetctl.inference.generation import Generation, GenerationOptions
    from bitnetctl.inference.run_health import health_at_step
    from bitnetctl.inference.trained import open_run

    sampling = Sampling(temperature=temperature, top_k=top_k or None, top_p=top_p, min_p=min_p, seed=seed)
    chosen = GenerationOptions(sampling=sampling, new_tokens=new_tokens, num_samples=num_samples, ignore_end=ignore_end)
    opened = [health_at_step(open_run(run, runs_dir, device=device, step=step)) for run in runs]
    torch.set_num_threads(max(threads_for(one.run.model) for one in opened))
    if is_interactive:

        def generate_after(of: "HealthAtStep", text: str, count: int) -> "Generation":
            # a text that is typed again is continued in another way
            seeded = replace(chosen, sampling=replace(sampling, seed=seed + count))
            return _noted(Generation(of.run, text, seeded))

        return interactive_session(opened, generate_after, quiet=quiet)
    texts = [_argument(text) for text in prompts or ()]
    texts += [_read(file) for file in files or ([] if prompts else [STDIN])]
    # a prompt that cannot be continued by one of them is refused before anything is printed
    generations = [[_noted(Generation(one.run, text, chosen)) for one in opened] for text in texts]
    if as_json:
        _print_json(generations, opened, chosen)
        return ExitCode.SUPPORTED
    printer = GenerationPrinter(quiet=quiet)
    for number, of_text in enumerate(generations, 1):
        for one, generation in zip(opened, of_text, strict=True):
            headings = [f"prompt {number}"] * (len(texts) > 1) + [one.line] * (len(opened) > 1)
            if headings:
                printer.heading(": ".join(headings))
            printer.show(generation, prompt=generation.text)
    return ExitCode.SUPPORTED


def _noted(generation: "Generation") -> "Generation":
    """Return a generation; say where its prompt does not fit."""
    given, used = len(generation.prompt), generation.used
    if used < given:
        print_message(
            f"warning: {generation.run.name}: of the prompt's {plural(given, 'token')} only the last {used} are used, "
            "the context of its training"
        )
    return generation


def _print_json(
    generations: "list[list[Generation]]", opened: "list[HealthAtStep]", chosen: "GenerationOptions"
) -> None:
    trees = []
    for generation in (one for of_text in generations for one in of_text):
        start = time.perf_counter()
        for _ in generation:
            pass
        trees.append(generation_json(generation, time.perf_counter() - start))
    print_json(
        {
            "sampling": asdict(chosen.sampling),
            "max_new_tokens": chosen.new_tokens,
            "num_samples": chosen.num_samples,
            "ignore_eos": chosen.ignore_end,
            "runs": [one.to_json() for one in opened],
            "continuations": trees,
        }
    )


def _argument(text: str) -> str:
    """Return a text of the command line, given in UTF-8 whatever the locale; raises ConfigError."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise ConfigError("the prompt is not UTF-8 text") from error


def _read(file: str) -> str:
    """Return the prompt in a file or on stdin, without the line end that an editor puts behind it."""
    return read_text(file, "--file").removesuffix("\n").removesuffix("\r")
