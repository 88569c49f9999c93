"""What is worth measuring in a short GPU window, in order of worth, each part in a process of its own.

    python -m benchmarks.gpu [--out DIR] [--parts step,verify] [--limit SECONDS] [--again] [--device cuda] [--quick]
        [--text FILE] [--tokenizer SPEC] [--wheels DIR] [--work DIR] [--commit HASH]
    python -m benchmarks.gpu --list

A part has a time limit, after which it is killed with its children; what it had written by then stays. Results go to
the folder at once: PART.json, PART.md and its output PART.txt, and summary.md and summary.json after every part. The
same command goes on where it stopped: a part that has finished on this card with this torch is skipped. A part that no
longer fits into `--limit` is left out, and the summary names it. The exit code is 1 if a part failed.

The machine needs no network. `--parts missing` names the packages that it lacks and the line that fetches them
elsewhere; it runs with Python alone. `--quick` makes everything tiny: a trial of the programs, also without a GPU.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.report import NOT_MEASURED, Options, markdown_table, write_text

ROOT = Path(__file__).parents[1]
# ten minutes are the longest command of many machines
_LIMIT = 540.0
_SHOWN_LINES = 40
# quick, and other packages may be there the next time
_ALWAYS = ("facts", "missing")


@dataclass(frozen=True)
class Part:
    """A part: seconds that it needs on an H100 by estimate, and after how many it is killed."""

    name: str
    needs: float
    limit: float
    about: str


PARTS = (
    Part("facts", 8, 30, "card, driver, versions, clocks"),
    Part("missing", 2, 20, "packages that this machine lacks"),
    Part("checks", 100, 150, "our own kernels, and compiled layers, against plain operations on this card"),
    Part("tests", 150, 240, "pytest -m gpu, the tests that compile last"),
    Part("text", 25, 75, "the text of the parts below, tokenized once"),
    Part("step", 320, 400, "time of a step and of its start, by engine; its kernels"),
    Part("bandwidth", 15, 40, "what the GPU can do: memory, matmuls of the head, empty kernels"),
    Part("verify", 60, 90, "bitnetctl verify, 2 x 4,000 steps, and what 20,000 would take"),
    Part("resume", 45, 90, "a run stopped at a checkpoint and resumed, against an undisturbed one"),
    Part("mixed", 45, 80, "a sweep of 16 runs with four arms: the engine of each"),
    Part("large", 70, 120, "a model above 100 M parameters beside torchao and compiled bf16"),
    Part("start", 35, 80, "first row of a training, with empty and filled caches"),
    Part("verify-20000", 100, 180, "bitnetctl verify, 2 x 20,000 steps"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; return 1 if one failed."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    known = {part.name: part for part in PARTS}
    chosen = arguments.parts.split(",") if arguments.parts else list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"--parts {','.join(unknown)}: unknown; there are {', '.join(known)}")
    if arguments.list:
        print(markdown_table([asdict(part) for part in PARTS]))
        return 0
    options = Options(
        device=arguments.device,
        quick=arguments.quick,
        work=str(arguments.work.absolute()),
        wheels=str(arguments.wheels),
        text=None if arguments.text is None else str(arguments.text.absolute()),
        tokenizer=arguments.tokenizer,
    )
    # always: it says whether the results in the folder belong to this card
    parts = [part for part in PARTS if part.name in {"facts", *chosen}]
    window = Window(arguments.out, options, limit=arguments.limit, again=arguments.again, commit=arguments.commit)
    # a time limit around this command ends it with its parts
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return window.run(parts)


class Window:
    """Runs parts one after the other and keeps the summary of their folder."""

    def __init__(
        self,
        folder: Path,
        options: Options,
        *,
        limit: float = _LIMIT,
        again: bool = False,
        commit: str | None = None,
    ) -> None:
        self._folder, self._options, self._again = folder.absolute(), options, again
        self._started, self._limit = time.monotonic(), limit
        self._folder.mkdir(parents=True, exist_ok=True)
        self._commit = commit or _commit()
        before = _read(self._folder / "summary.json")
        self._parts: dict[str, dict[str, Any]] = before.get("parts", {})
        self._facts: dict[str, Any] = {}

    def run(self, parts: Sequence[Part]) -> int:
        """Run the parts, the facts of this machine first; return 1 if one failed."""
        failed = False
        try:
            for part in parts:
                outcome = self._run(part)
                failed |= outcome in ("failed", "over its limit")
        finally:
            for each in self._parts.values():
                if each["outcome"] == "running":
                    each["outcome"] = "interrupted"
            self._write_summary()
        print(f"\n{self._folder / 'summary.md'}\n{self._table()}", flush=True)
        return int(failed)

    @property
    def _left(self) -> float:
        """Seconds until the deadline."""
        return self._limit - (time.monotonic() - self._started)

    def _identity(self) -> dict[str, Any]:
        facts = {key: self._facts.get(key) for key in ("card", "torch")}
        return {**facts, "quick": self._options.quick}

    def _run(self, part: Part) -> str:
        """Run one part, or say why not; return its outcome."""
        before = self._parts.get(part.name, {})
        is_same = before.get("identity") == self._identity() and self._identity()["card"] is not None
        if part.name not in _ALWAYS and before.get("outcome") == "finished" and is_same and not self._again:
            self._parts[part.name]["note"] = "from an earlier command"
            print(f"===== {part.name}: finished before", flush=True)
            return "skipped"
        left = self._left
        if left < (1 if self._options.quick else part.needs):
            note = f"it needs about {part.needs:.0f} s, {max(0.0, left):.0f} s were left"
            if before.get("outcome") != "finished":
                self._parts[part.name] = {"outcome": "left out", "note": note, "about": part.about}
            print(f"===== {part.name}: left out: {note}", flush=True)
            return "left out"
        limit = min(part.limit, left)
        print(f"===== {part.name}: at most {limit:.0f} s, {left:.0f} s left", flush=True)
        self._parts[part.name] = {"outcome": "running", "limit": round(limit, 1), "about": part.about}
        self._write_summary()
        start = time.monotonic()
        outcome = self._outcome(self._process(part, limit))
        seconds = round(time.monotonic() - start, 1)
        report = _read(self._folder / f"{part.name}.json")
        if part.name == "facts":
            self._facts = report.get("values", {})
        self._parts[part.name] |= {
            "outcome": outcome,
            "seconds": seconds,
            "note": "; ".join(report.get("failures", [])) or report.get("not_measured", ""),
            "commit": self._commit,
            "identity": self._identity(),
        }
        self._write_summary()
        self._show(part, outcome, seconds)
        return outcome

    def command(self, part: Part) -> list[str]:
        """Return the command of a part."""
        arguments = [part.name, str(self._folder), json.dumps(asdict(self._options))]
        return [sys.executable, "-m", "benchmarks.gpu_parts", *arguments]

    def _process(self, part: Part, limit: float) -> int | None:
        """Run a part in a session of its own; return its exit code, None where it was killed at its limit."""
        for suffix in ("json", "md"):
            # of an earlier try
            (self._folder / f"{part.name}.{suffix}").unlink(missing_ok=True)
        with (self._folder / f"{part.name}.txt").open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                self.command(part),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self._environment(),
                start_new_session=True,
            )
            try:
                return process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                return None
            finally:
                _kill(process)

    def _environment(self) -> dict[str, str]:
        paths = [str(ROOT), str(ROOT / "interventions"), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "XDG_CACHE_HOME": str(Path(self._options.work) / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }

    @staticmethod
    def _outcome(code: int | None) -> str:
        return {0: "finished", NOT_MEASURED: "not measured", None: "over its limit"}.get(code, "failed")

    def _show(self, part: Part, outcome: str, seconds: float) -> None:
        """Print a part's results, and the end of its output where it failed."""
        for suffix, count in (("md", _SHOWN_LINES), ("txt", 0 if outcome == "finished" else _SHOWN_LINES // 2)):
            path = self._folder / f"{part.name}.{suffix}"
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
            print("\n".join(line[:200] for line in lines[len(lines) - min(count, len(lines)) :]))
        print(f"----- {part.name}: {outcome} after {seconds} s", flush=True)

    def _write_summary(self) -> None:
        """Write summary.json and summary.md anew."""
        order = [part.name for part in PARTS]
        ranks = {name: order.index(name) if name in order else len(order) for name in self._parts}
        self._parts = dict(sorted(self._parts.items(), key=lambda item: ranks[item[0]]))
        command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
        head = {
            "card": self._facts.get("card"),
            "driver": self._facts.get("driver"),
            "torch": self._facts.get("torch"),
            "triton": self._facts.get("triton"),
            "python": self._facts.get("python"),
            "commit": self._commit,
            "command": command,
            "quick": self._options.quick,
            "seconds": round(time.monotonic() - self._started, 1),
            "limit": self._limit,
        }
        content = {**head, "parts": self._parts}
        write_text(self._folder / "summary.json", json.dumps(content, indent=1) + "\n")
        lines = [f"- {name}: {'unknown' if value is None else value}" for name, value in head.items()]
        title = "# GPU window, tiny: a trial, not a measurement" if self._options.quick else "# GPU window"
        write_text(self._folder / "summary.md", "\n".join([title, "", *lines, "", self._table(), ""]))

    def _table(self) -> str:
        rows = [
            {
                "part": f"[{name}]({name}.md)" if (self._folder / f"{name}.md").exists() else name,
                "outcome": each["outcome"],
                "seconds": each.get("seconds"),
                "limit": each.get("limit"),
                "what": each.get("about", ""),
                "note": each.get("note", ""),
            }
            for name, each in self._parts.items()
        ]
        return markdown_table(rows)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a part's process group, and wait for its first process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(content) if isinstance(content, Mapping) else {}


def _commit() -> str | None:
    """Return the commit of this checkout, with a plus where it has changes; None where git does not know it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")), metavar="DIR", help="unset: $OUT")
    add("--parts", metavar="LIST", help="some of the parts; their order is fixed")
    add("--limit", type=float, default=_LIMIT, metavar="SECONDS", help=f"of all parts together; unset: {_LIMIT:.0f}")
    add("--again", action="store_true", help="also the parts that have finished on this card")
    add("--list", action="store_true", help="list the parts and their times")
    add("--device", default="cuda", help="cuda or cpu")
    add("--quick", action="store_true", help="everything tiny: a trial of the programs")
    add("--text", type=Path, metavar="FILE", help="text to train on; unset: the standard library of Python")
    add("--tokenizer", metavar="SPEC", help="such as file:tokenizer.json; unset: the recipe's, trained on the text")
    add("--wheels", type=Path, default=Path(".wheels"), metavar="DIR", help="where `missing` looks for carried wheels")
    work = Path(tempfile.gettempdir()) / f"bitnetctl-gpu-{os.getuid()}"
    add("--work", type=Path, default=work, metavar="DIR", help=f"runs and caches; unset: {work}")
    add("--commit", metavar="HASH", help="commit of this copy, where git does not know it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
