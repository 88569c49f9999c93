"""`bitnetctl generate`: where prompts come from, what is printed, seeds, JSON, and what is refused."""

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import Done, call, training
from run_files import damage
from safetensors.torch import load_file, save_file

from bitnetctl import checkpoint
from bitnetctl.cli.generation_output import GenerationPrinter
from bitnetctl.config import canonical_hash
from bitnetctl.errors import ExitCode
from bitnetctl.inference.generation import Generation, GenerationOptions
from bitnetctl.inference.run_health import health_at_step
from bitnetctl.inference.sampling import Sampling
from bitnetctl.inference.trained import open_run
from bitnetctl.records import RunPaths
from bitnetctl.records.status import final_row

pytestmark = pytest.mark.usefixtures("plain_environment")
PROMPT = "Wen gofi"


class Terminal(io.StringIO):
    """Lines typed at a terminal, and then Ctrl-D."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, shared_cache: Path) -> Path:
    """The folder of two runs with tokenizers of their own."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        patch.chdir(folder)
        for name, tokenizer in (("one", "bpe:300"), ("two", "bpe:290")):
            assert (
                call(*training(tiny_text, "--name", name, data__tokenizer=tokenizer, schedule__warmup_steps=2)).code
                == ExitCode.SUPPORTED
            )
    return folder / "runs"


@pytest.fixture
def runs(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, in the folder of runs that a command looks in."""
    monkeypatch.setenv("BITNETCTL_RUNS_DIR", str(trained))
    return trained


@pytest.fixture
def changed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A copy of the first run that a test may change."""
    monkeypatch.setenv("BITNETCTL_RUNS_DIR", str(tmp_path / "runs"))
    shutil.copytree(trained, tmp_path / "runs")
    return RunPaths(tmp_path / "runs", "one")


def type_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def text_of(done: Done) -> str:
    assert done.code == ExitCode.SUPPORTED, done.err
    return done.out


def generated(*arguments: str) -> Any:
    done = call("generate", *arguments, "--json")
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
    return done.json


def test_a_prompt_is_printed_with_its_continuation(runs: Path) -> None:
    done = call("generate", "one", "-p", PROMPT, "-n", "20")
    tree = generated("one", "-p", PROMPT, "-n", "20")
    assert text_of(done) == f"{PROMPT}{tree['continuations'][0]['samples'][0]['text']}\n"
    assert done.err.startswith("one: 20 tokens in ")
    assert call("generate", "one", "-p", PROMPT, "-n", "20", "--quiet") == Done(0, done.out, "")
    # by folder and CSV, too
    for name in (runs / "one", runs / "one.csv"):
        assert text_of(call("generate", name, "-p", PROMPT, "-n", "20")) == done.out


def test_prompts_of_files_and_stdin(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = text_of(call("generate", "one", "-p", "Wen é\nfi"))
    for content in ("Wen é\nfi", "Wen é\nfi\n", "\ufeffWen é\nfi\r\n"):
        (tmp_path / "prompt.txt").write_bytes(content.encode())
        assert text_of(call("generate", "one", "-f", str(tmp_path / "prompt.txt"))) == expected
        for arguments in ([], ["-f", "-"]):
            type_in(monkeypatch, content.encode())
            assert text_of(call("generate", "one", *arguments)) == expected
    # stdin is left alone where there is a prompt
    type_in(monkeypatch, b"other")
    assert text_of(call("generate", "one", "-p", "Wen é\nfi")) == expected
    assert sys.stdin.read() == "other"
    (tmp_path / "other.txt").write_text("c\n\n", encoding="utf-8")
    files = ("-f", str(tmp_path / "prompt.txt"), "-f", str(tmp_path / "other.txt"))
    every = generated("one", "-p", "a", "-p", "b", *files)
    assert [tree["prompt"] for tree in every["continuations"]] == ["a", "b", "Wen é\nfi", "c\n"]
    type_in(monkeypatch, b"\xff")
    assert "error: stdin: not UTF-8 at byte 0" in call("generate", "one").err


def test_a_terminal_gets_text_and_no_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    GenerationPrinter().heading("a\x1b]0;b\x07\u202ec\u2066\t日本 \u00a0é \N{MAN}\u200d\N{ROCKET}")
    text = "a\\x1b]0;b\\x07\\u202ec\\u2066\t日本 \u00a0é \N{MAN}\u200d\N{ROCKET}"
    assert shown.getvalue() == f"== {text}\n"


def test_a_prompt_in_a_locale_without_utf8(runs: Path) -> None:
    # how Python passes the bytes of é on
    assert text_of(call("generate", "one", "-p", "W\udcc3\udca9")) == text_of(call("generate", "one", "-p", "Wé"))


def test_lines_typed_at_a_terminal_are_continued(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"{PROMPT}\n\n{PROMPT}\n"))
    done = call("generate", "one", "two", "-n", "9")
    trees = [
        generated("one", "two", "-p", prompt, "-n", "9", "--seed", str(seed))
        for seed, prompt in enumerate((PROMPT, "", PROMPT))
    ]
    parts = done.out.split("\n\n== ")
    assert len(parts) == 6
    samples = [tree["samples"][0]["text"] for each in trees for tree in each["continuations"]]
    heads = [health_at_step(open_run(name, runs)).line for name in ("one", "two")]
    assert done.out == "\n".join(f"== {head}\n{text}\n" for head, text in zip(heads * 3, samples, strict=True))
    assert done.err.endswith("> > > > \n")
    assert "Ctrl-D ends" in done.err


def test_runs_stand_one_below_the_other_with_the_same_prompt_and_seed(runs: Path) -> None:
    done = call("generate", "one", "two", "one", "-p", PROMPT, "-n", "12", "--seed", "5")
    blocks = done.out.removeprefix("== ").split("\n\n== ")
    assert [block.splitlines()[0].split(" · ")[0] for block in blocks] == ["one", "two", "one"]
    assert blocks[0] == blocks[2].removesuffix("\n")
    (loss,) = {tree["held_out_loss"] for tree in generated("one", "-p", PROMPT)["runs"]}
    assert blocks[0].startswith(f"one · step 20 · baseline · held-out loss {loss:.4g} · ")
    alone = text_of(call("generate", "two", "-p", PROMPT, "-n", "12", "--seed", "5"))
    assert blocks[1].split("\n", 1)[1] == alone.removesuffix("\n")


def test_the_header_tells_a_collapse_up_to_the_step_of_the_weights(changed: RunPaths) -> None:
    header, *_, last = changed.csv.read_text(encoding="utf-8").splitlines()
    names, cells = header.split(","), last.split(",")

    def row(step: int, unique: int) -> str:
        values = {"Step": str(step), "UniquePredictions": str(unique), "HeldOutLoss": "1.25"}
        return ",".join(values.get(name, cell) for name, cell in zip(names, cells, strict=True))

    # what comes after the step of the weights does not count
    rows = [row(1, 50), row(5, 40), *(row(step, 3) for step in (15, 16, 20)), *(row(step, 40) for step in (21, 22, 23))]
    changed.csv.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    text = call("generate", "one", "two", "-p", PROMPT).out
    assert text.startswith(
        "== one · step 20 · baseline · held-out loss 1.25 · collapsed since step 15: 3 distinct predictions\n"
    )
    (one, two) = generated("one", "two", "-p", PROMPT)["runs"]
    assert (one["health"], one["health_since"], two["health"]) == ("collapsed", 15, "possible collapse")
    changed.csv.unlink()
    assert generated("one", "-p", PROMPT)["runs"][0]["health"] == "unknown"


def test_a_seed_gives_the_same_samples_whatever_their_number(runs: Path) -> None:
    def samples(count: int, *more: str) -> list[list[int]]:
        tree = generated("one", "-p", PROMPT, "--num-samples", str(count), *more)
        return [sample["tokens"] for sample in tree["continuations"][0]["samples"]]

    nine = samples(9)
    assert samples(9) == nine
    assert len({tuple(tokens) for tokens in nine}) == 9
    for count in (1, 2, 8):
        assert samples(count) == nine[:count]
    assert samples(9, "--seed", "1") != nine
    assert samples(2, "--greedy") == [samples(1, "--temp", "0")[0]] * 2 == [samples(1, "--top-k", "1")[0]] * 2


def test_samples_are_printed_in_their_order(runs: Path) -> None:
    tree = generated("one", "-p", PROMPT, "--num-samples", "3")
    texts = [sample["text"] for sample in tree["continuations"][0]["samples"]]
    done = call("generate", "one", "-p", PROMPT, "--num-samples", "3")
    assert done.out == "\n".join(f"-- sample {n}\n{PROMPT}{text}\n" for n, text in enumerate(texts, 1))


def test_the_json_of_a_generation(runs: Path) -> None:
    options = ["-n", "6", "--temp", "0.5", "--top-k", "0", "--top-p", "0.9", "--min-p", "0.1", "--seed", "2"]
    tree = generated("one", "-p", PROMPT, *options)
    (continuation,) = tree.pop("continuations")
    (run,) = tree.pop("runs")
    assert tree == {
        "sampling": {"temperature": 0.5, "top_k": None, "top_p": 0.9, "min_p": 0.1, "seed": 2},
        "max_new_tokens": 6,
        "num_samples": 1,
        "ignore_eos": False,
    }
    opened = open_run("one", runs)
    assert run.pop("held_out_loss") == final_row(opened.paths.csv)["HeldOutLoss"]
    assert run == {
        "run": "one",
        "step": 20,
        "arm": "baseline",
        "quantization": 1.0,
        "context_length": 32,
        "health": "possible collapse",
        "health_since": 10,
        "diverged_at": None,
    }
    assert continuation.pop("tokens_per_second") > 0
    [sample] = continuation.pop("samples")
    encoded = opened.tokenizer.encode(PROMPT, add_special_tokens=False).ids
    assert continuation == {
        "run": "one",
        "prompt": PROMPT,
        "prompt_token_ids": encoded,
        "num_prompt_tokens_used": len(encoded),
    }
    assert sample["finish"] == "length"
    assert len(sample["tokens"]) == 6
    assert PROMPT + sample["text"] == opened.tokenizer.decode([*encoded, *sample["tokens"]])


def test_a_sample_ends_with_the_end_of_a_text(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run("one", runs)
    assert run.end_of_text == 0
    options = GenerationOptions(sampling=Sampling(temperature=0), new_tokens=7)
    longer = Generation(run, PROMPT, options)
    assert all(True for _ in longer)
    # the third token stands for the end of a text
    ends_at = longer.samples[0].tokens.index(longer.samples[0].tokens[2]) + 1
    object.__setattr__(run, "end_of_text", longer.samples[0].tokens[2])
    for ignore, finish in ((False, "end_of_text"), (True, "length")):
        generation = Generation(run, PROMPT, GenerationOptions(**{**vars(options), "ignore_end": ignore}))
        assert all(True for _ in generation)
        (sample,) = generation.samples
        assert sample.finish == finish
        assert (run.end_of_text in sample.tokens) != ignore
        assert len(sample.tokens) == (7 if ignore else ends_at)


def test_an_empty_prompt_starts_after_the_end_of_a_text(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree,) = generated("one", "-p", "")["continuations"]
    assert tree["prompt_token_ids"] == [0]
    type_in(monkeypatch, b"")
    assert text_of(call("generate", "one")) == tree["samples"][0]["text"] + "\n"


def test_of_a_long_prompt_the_last_part_is_used(runs: Path) -> None:
    long = " ".join([PROMPT] * 30)
    done = call("generate", "one", "-p", long, "--json")
    (tree,) = json.loads(done.out)["continuations"]
    assert tree["num_prompt_tokens_used"] == 32
    given = len(tree["prompt_token_ids"])
    assert done.err == (
        f"warning: one: of the prompt's {given} tokens only the last 32 are used, the context of its training\n"
    )
    run = open_run("one", runs)
    logits_V = run.logits(torch.tensor([tree["prompt_token_ids"][-32:]]))[0, -1]
    (greedy,) = generated_greedy(long)
    assert greedy == int(logits_V.argmax())


def generated_greedy(prompt: str) -> list[int]:
    done = call("generate", "one", "-p", prompt, "--greedy", "-n", "1", "--json")
    tokens: list[int] = json.loads(done.out)["continuations"][0]["samples"][0]["tokens"]
    return tokens


def test_numbers_that_are_no_token_are_never_chosen(runs: Path) -> None:
    run = open_run("one", runs)
    tokenizer = run.tokenizer
    # a vocabulary with a gap, as where tokens were added far above the others
    tokenizer.add_tokens(["far"])
    gap = next(number for number in range(300) if tokenizer.id_to_token(number) == "a")

    class Gapped:
        def id_to_token(self, number: int) -> str | None:
            return None if number == gap else str(tokenizer.id_to_token(number))

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    with torch.no_grad():
        run.model.packed["embed"][0, gap] *= 1e3
        if "head" in run.model.packed:
            run.model.packed["head"][0, gap] *= 1e3
    for given, is_chosen in ((tokenizer, True), (Gapped(), False)):
        object.__setattr__(run, "tokenizer", given)
        generation = Generation(run, PROMPT, GenerationOptions(num_samples=4))
        assert all(True for _ in generation)
        assert any(gap in sample.tokens for sample in generation.samples) == is_chosen


def test_logits_that_are_not_finite_are_an_error(changed: RunPaths) -> None:
    path = checkpoint.path_of(changed.checkpoints, 20)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"].fill_(3e38)
    save_file(weights, path / "model.safetensors")
    reseal(path)
    done = call("generate", "one", "-p", PROMPT)
    assert done.code == ExitCode.USAGE
    assert "error: run one: the logits of step 20 are not finite, it has diverged; take an earlier" in done.err
    assert call("generate", "one", "-p", PROMPT, "--json").out == ""


def reseal(path: Path) -> None:
    """Make the checksums of a checkpoint those of its files again."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    del state["state_sha256"]
    state["sha256"] = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in state["sha256"]}
    state["state_sha256"] = canonical_hash(state)
    (path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    checkpoint.verify(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "-p", "a"], "no run there"),
        (["one", "-p", "a", "--step", "7"], "has weights of step 20, not 7"),
        (["one", "-p", "a", "--temp", "-1"], "temperature -1: take a number from 0"),
        (["one", "-p", "a", "--temp", "nan"], "temperature nan"),
        (["one", "-p", "a", "--top-p", "0"], "top-p 0"),
        (["one", "-p", "a", "--min-p", "2"], "min-p 2"),
        (["one", "-p", "a", "--greedy", "--temp", "1"], "--greedy is --temperature 0"),
        (["one", "-p", "a", "-n", "0"], "-n"),
        (["one", "-p", "a", "--device", "tpu"], "tpu"),
        (["one", "-f", "missing.txt"], "--file missing.txt: cannot read: No such file"),
        (["one", "-f", "bytes"], "--file bytes: not UTF-8 at byte 1"),
        (["one", "-f", "-", "-f", "-"], "stdin can be read once"),
        (["one", "-p", "a", "--num-samples", "1001"], "--num-samples"),
        (["one", "-p", "\udcff"], "the prompt is not UTF-8 text"),
        (["one", "two", "-p", "a", "-p", "\udcff"], "the prompt is not UTF-8 text"),
    ],
)
def test_mistakes_are_one_line_and_print_nothing(runs: Path, arguments: list[str], said: str) -> None:
    Path("bytes").write_bytes(b"a\xff")
    done = call("generate", *arguments)
    assert done.code == ExitCode.USAGE
    assert said in done.error


def test_json_is_not_for_a_conversation(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert "--json needs a prompt" in call("generate", "one", "--json").error


def test_a_damaged_checkpoint_is_named(changed: RunPaths) -> None:
    damage(checkpoint.path_of(changed.checkpoints, 20) / "model.safetensors")
    assert "model.safetensors is damaged" in call("generate", "one", "-p", "a").error
