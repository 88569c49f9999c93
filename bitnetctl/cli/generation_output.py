"""Output of `bitnetctl generate`: samples streamed to stdout, a session of prompts at a terminal, JSON."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bitnetctl.cli.options import print_message
from bitnetctl.errors import BitnetctlError, ExitCode, one_line
from bitnetctl.escape import visible
from bitnetctl.units import plural

if TYPE_CHECKING:
    from bitnetctl.inference.generation import Generation
    from bitnetctl.inference.run_health import HealthAtStep

_PROMPT = "> "
# tab, spaces and joiners are text; other controls could reconfigure a terminal or turn the direction of a line
_KEPT = "\t\u00a0\u202f\u3000\u200c\u200d"


class GenerationPrinter:
    """Prints continuations to stdout as their tokens arrive."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._quiet = quiet
        self._has_begun = False

    def heading(self, text: str) -> None:
        """Print the heading of what follows, after an empty line where something stands above it."""
        self._write(f"\n== {text}\n" if self._has_begun else f"== {text}\n")
        self._has_begun = True

    def show(self, generation: "Generation", *, prompt: str) -> None:
        """Print the samples one below the other, each after `prompt`: the first that goes on as it grows."""
        several, shown, waiting = len(generation.samples) > 1, 0, [""] * len(generation.samples)
        start = time.perf_counter()
        self._begin_sample(0, several, prompt)
        try:
            for new in generation:
                waiting = [text + more for text, more in zip(waiting, new, strict=True)]
                self._write(waiting[shown])
                waiting[shown] = ""
                while generation.samples[shown].finish and shown + 1 < len(waiting):
                    self._write("\n")
                    shown += 1
                    self._begin_sample(shown, several, prompt)
                    self._write(waiting[shown])
                    waiting[shown] = ""
        finally:
            # what stands there stays, also after Ctrl-C
            with contextlib.suppress(OSError, ValueError):
                self._write("\n")
        if not self._quiet:
            print_message(f"{generation.run.name}: {rate_text(generation, time.perf_counter() - start)}")

    def _begin_sample(self, index: int, several: bool, prompt: str) -> None:
        if several:
            self._write(f"{'-- ' if index == 0 else chr(10) + '-- '}sample {index + 1}\n")
        self._write(prompt)
        self._has_begun = True

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(visible(text, keep=_KEPT) if self._is_terminal else text)
            sys.stdout.flush()


def rate_text(generation: "Generation", seconds: float) -> str:
    """Return how many tokens were generated and how fast."""
    tokens = sum(len(sample.tokens) for sample in generation.samples)
    return f"{plural(tokens, 'token')} in {seconds:.1f} s, {tokens / seconds:.0f} tokens/s"


def interactive_session(
    opened: "Sequence[HealthAtStep]", generate: "Callable[[HealthAtStep, str, int], Generation]", *, quiet: bool
) -> int:
    """Continue the lines that are typed at a terminal until Ctrl-D; Ctrl-C ends a continuation, or at a prompt all.

    `generate` returns the generation of a run for a text and the number of texts before it.
    """
    with contextlib.suppress(ImportError):
        # lines can be edited and called up again
        import readline  # noqa: F401
    if not quiet:
        names = ", ".join(one.line for one in opened)
        print_message(f"{names}\ntype the beginning of a text; Ctrl-D ends, Ctrl-C ends a continuation")
    printer, count = GenerationPrinter(quiet=True), 0
    while True:
        try:
            text = _typed()
        except EOFError:
            print_message("")
            return ExitCode.SUPPORTED
        except KeyboardInterrupt:
            print_message("")
            raise
        try:
            for one in opened:
                if len(opened) > 1:
                    printer.heading(one.line)
                printer.show(generate(one, text, count), prompt="")
        except KeyboardInterrupt:
            print_message("(ended)")
        except BitnetctlError as error:
            print_message(f"error: {one_line(error, None)}")
        count += 1


def _typed() -> str:
    if sys.stdout.isatty():
        return input(_PROMPT)
    # stdout holds continuations only
    sys.stderr.write(_PROMPT)
    sys.stderr.flush()
    return input()


def generation_json(generation: "Generation", seconds: float) -> dict[str, Any]:
    """Return a generation as a tree of JSON; but for its speed, the same command gives the same one again."""
    tokens = sum(len(sample.tokens) for sample in generation.samples)
    return {
        "run": generation.run.name,
        "prompt": generation.text,
        "prompt_token_ids": generation.prompt,
        "num_prompt_tokens_used": generation.used,
        "samples": [
            {"text": sample.text, "tokens": sample.tokens, "finish": sample.finish} for sample in generation.samples
        ],
        "tokens_per_second": round(tokens / seconds, 1),
    }
