"""Exports run in llama.cpp itself: every type is the model of the run, and every wrong file is found."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError, ExportError
from bitnetctl.formats import gguf as export, gguf_file, gguf_vocabulary, llama_cpp, sensitivity
from bitnetctl.formats.check_inputs import check_rows
from bitnetctl.formats.gates import compare
from bitnetctl.formats.gguf import export_gguf
from bitnetctl.formats.gguf_file import write_gguf
from bitnetctl.formats.gguf_layout import GgufType
from bitnetctl.formats.gguf_vocabulary import Vocabulary
from bitnetctl.formats.llama_cpp import check_in_llama_cpp, require_greedy, with_rounding_of
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.model.quantization import Quantizers

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

Runs = dict[str, TrainedRun]
# as many as two rows of the tiny runs
POSITIONS = 64
LAYER = "blk.1."


@pytest.fixture
def runs(export_runs: Runs, wide_runs: Runs) -> Runs:
    return {**export_runs, **wide_runs}


@pytest.fixture(autouse=True)
def few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "_MIN_POSITIONS", POSITIONS)
    monkeypatch.setattr(llama_cpp, "_MAX_POSITIONS", POSITIONS)


@pytest.mark.parametrize(
    ("name", "outtype"),
    [
        ("wide", "TQ2_0"),
        ("wide", "tq1_0"),
        ("wide", "F16"),
        ("wide", "F32"),
        ("wide-fused", "TQ2_0"),
        ("wide-blocks", "TQ2_0"),
        ("wide-blocks", "TQ1_0"),
        ("wide-blocks", "F16"),
        ("portable", "F16"),
        ("groups", "F32"),
        ("full", "F16"),
        ("full", "F32"),
    ],
)
def test_llama_cpp_runs_the_model_of_the_run(name: str, outtype: str, runs: Runs) -> None:
    said: list[str] = []
    exported = export_gguf(runs[name], Path("model.gguf"), outtype=outtype, log=said.append)
    assert exported.form == outtype.upper()
    assert [path.name for path in Path().iterdir()] == ["model.gguf"]
    tokens, kl, *others, itself, greedy = exported.checks
    assert exported.is_checked
    assert str(exported.read_back).endswith("identical")
    assert tokens.startswith("tokens of ")
    assert "62 positions" in kl
    assert "(at most" in kl
    assert all("(no gate)" in line for line in [*others, itself])
    assert greedy.startswith("greedy text ")
    assert "MB in" in said[0]


def test_where_no_socket_has_a_path(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of a long name llama.cpp listens on 127.0.0.1 instead."""
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    write_gguf(Path("model.gguf"), runs["wide"], "TQ2_0")
    assert len(check_in_llama_cpp(runs["wide"], Path("model.gguf"), "TQ2_0", positions=32)) == 6
    assert list(long.iterdir()) == []


def agreement_with(run: TrainedRun, other: TrainedRun) -> float:
    """Return the KL divergence of another run's forward pass from that of a run."""
    rows_PT = check_rows(run, POSITIONS)
    return compare(run.logits(rows_PT).flatten(0, 1), other.logits(rows_PT).flatten(0, 1)).kl


def test_blocks_of_the_file_are_those_of_the_training(runs: Runs) -> None:
    """Trained with a scale of fp16 for each 256 inputs, nothing but the rounding of activations is left."""
    run = runs["wide-blocks"]
    exported = export_gguf(run, Path("model.gguf"))
    _, kl, *_, itself, _ = exported.checks
    assert str(exported.read_back).startswith("codes of 14 matrices identical, scales identical")
    explained = agreement_with(run, with_rounding_of(run, "TQ2_0"))
    measured = float(itself.split(": ")[1].split(",")[0])
    unexplained = float(kl.split(": ")[1].split()[0])
    assert unexplained < 0.25 * explained
    assert 0.5 * explained < measured < 2 * explained


def test_the_example_of_the_docs(runs: Runs) -> None:
    page = Path(__file__).parents[2] / "docs" / "gguf.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    write_gguf(Path("model.gguf"), runs["wide"], "TQ2_0")
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True)
    # the server may hold back a part of a character at the end
    assert len(done.stdout) > 20


Wrong = Callable[[Path, TrainedRun, GgufType, pytest.MonkeyPatch], None]
Tensors = Iterator[tuple[str, Any, str]]


def with_tensors(change: Callable[[dict[str, Any], TrainedRun], dict[str, Any]]) -> Wrong:
    """Write a file with other values of some tensors."""
    tensors = gguf_file.tensors

    def write(path: Path, run: TrainedRun, gguf_type: GgufType, patch: pytest.MonkeyPatch) -> None:
        def changed(run: TrainedRun, gguf_type: GgufType) -> Tensors:
            stored = list(tensors(run, gguf_type))
            values = change({name: array for name, array, _ in stored}, run)
            return ((name, values.get(name, array), kind) for name, array, kind in stored)

        with patch.context() as context:
            context.setattr(gguf_file, "tensors", changed)
            write_gguf(path, run, gguf_type)

    return write


def with_run(change: Callable[[TrainedRun], TrainedRun]) -> Wrong:
    """Write the file of another run."""
    return lambda path, run, gguf_type, patch: write_gguf(path, change(run), gguf_type)


def swapped(first: str, second: str) -> Wrong:
    first, second = f"{LAYER}{first}", f"{LAYER}{second}"
    return with_tensors(lambda stored, run: {first: stored[second], second: stored[first]})


def inverse(stored: dict[str, Any], run: TrainedRun) -> dict[str, Any]:
    return {name: 1 / array for name, array in stored.items() if name.endswith(".scale")}


def theta(run: TrainedRun) -> TrainedRun:
    model = run.config.model.model_copy(update={"rope_theta": 10_000.0})
    return dataclasses.replace(run, config=RunConfig.model_copy(run.config, update={"model": model}))


def masters(run: TrainedRun) -> TrainedRun:
    return dataclasses.replace(run, quant_lambda=0.0)


def shifted(run: TrainedRun) -> TrainedRun:
    config = run.config.model_copy(update={"model": run.config.model.model_copy(update={"rms_norm_eps": 0.3})})
    return dataclasses.replace(run, config=config)


KL = r"KL divergence, llama.cpp .*: \S+ .at most"
# a run and type, how its file is made wrong, what the check says, and what llama.cpp would show where that is another
WRONG: dict[str, tuple[str, GgufType, Wrong, str, str]] = {
    "q-k-scales-swapped": (
        *("wide", "TQ2_0", swapped("attn_q.scale", "attn_k.scale")),
        # attention multiplies queries by keys, so it is the same: nothing to see in what llama.cpp computes
        *(r"layers\.1\.self_attn\.q_proj\.weight: scale 0\.\d+, not 0\.\d+", ""),
    ),
    "gate-up-scales-swapped": (
        *("wide", "TQ2_0", swapped("ffn_gate.scale", "ffn_up.scale")),
        *(r"layers\.1\.mlp\.gate_proj\.weight: scale 0\.\d+, not 0\.\d+", KL),
    ),
    "relu2-run-as-silu": ("wide-relu2", "TQ2_0", with_run(lambda run: run), KL, ""),
    "theta": ("wide", "TQ1_0", with_run(theta), "rope_theta is '10000.0' in the file, not 500.0", KL),
    "epsilon": ("wide", "F32", with_run(shifted), "rms_norm_eps is '0.3' in the file", KL),
    "masters-not-ternarised": ("wide", "F32", with_run(masters), "q_proj.weight: the file has other values", KL),
    "inverse-scales": (
        *("wide", "F16", with_tensors(inverse)),
        *(r"layers\.0\.self_attn\.q_proj\.weight: scale \d\d\.\d+, not 0\.\d+", KL),
    ),
    "norms-swapped": (
        *("wide", "TQ2_0", swapped("attn_norm.weight", "ffn_norm.weight")),
        *(r"layers\.1\.input_layernorm\.weight: the file has other values", KL),
    ),
}


@pytest.fixture
def permissive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse nothing beforehand."""
    monkeypatch.setattr(export, "require_expressible", lambda run, gguf_type: None)


@pytest.mark.parametrize("key", WRONG)
def test_every_wrong_file_is_found_and_not_kept(
    key: str, runs: Runs, permissive: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, gguf_type, wrong, message, _ = WRONG[key]
    monkeypatch.setattr(export, "write_gguf", lambda path, run, kind: wrong(path, run, kind, monkeypatch))
    with pytest.raises(ExportError, match=f"^self-check failed: .*{message}"):
        export_gguf(runs[name], Path("model.gguf"), outtype=gguf_type)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("key", [key for key, (*_, message) in WRONG.items() if message])
def test_llama_cpp_alone_shows_what_is_wrong(key: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    name, gguf_type, wrong, _, message = WRONG[key]
    path = Path("model.gguf")
    wrong(path, runs[name], gguf_type, monkeypatch)
    with pytest.raises(ExportError, match=f"^self-check failed: {message}"):
        check_in_llama_cpp(runs[name], path, gguf_type)


@pytest.mark.parametrize(
    ("name", "outtype", "message"),
    [
        ("wide-relu2", "TQ2_0", "llama.cpp would compute SiLU where the run has relu2"),
        ("b158", "TQ2_0", "llama.cpp would compute SiLU where the run has relu2"),
        ("capped", "F32", "does not cap logits, which the run caps at 30"),
        (
            *("portable", "TQ2_0"),
            "its hidden size is 32 and its feed-forward width is 96, and TQ2_0 has blocks of 256 weights of a row; "
            "take --outtype F16 or F32, or train with a --size that is a multiple of 256$",
        ),
        ("full", "TQ1_0", r"at full precision \(λ 0\), and TQ1_0 is ternary; take --outtype F32 or F16"),
        ("half", "F32", r"between full precision and ternary \(λ 0.5\)"),
        ("wide-rows", "TQ2_0", "group-scale.*: its scales are not exact in fp16, .*half=true, or take .* F32"),
        ("groups", "F16", "group-scale.*: its scales are not exact in fp16, .*:size=32,half=true, or take .* F32"),
        ("wide", "Q4_0", "--outtype 'Q4_0' is not known; take TQ2_0, TQ1_0, F16, F32"),
    ],
)
def test_what_llama_cpp_would_run_wrongly_is_refused(name: str, outtype: str, message: str, runs: Runs) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        export_gguf(runs[name], Path("model.gguf"), outtype=outtype)
    assert "\n" not in str(caught.value)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tie_word_embeddings": False}, "takes the embeddings as head, .* train with --recipe portable"),
        ({"inner_norms": True}, "has no norms in front of the projections inside a layer"),
        (
            {"intermediate_ratio": 0.5},
            "its feed-forward width is 128, .* train with a model.intermediate_ratio that is a whole number$",
        ),
        (
            {"hidden_size": 128, "intermediate_ratio": 2.5},
            "its hidden size is 128 and its feed-forward width is 320, .* train with a --size that is a multiple of "
            "256 and a model.intermediate_ratio that is a whole number$",
        ),
    ],
)
def test_other_models_are_refused(fields: dict[str, object], message: str, runs: Runs) -> None:
    run = runs["wide"]
    config = run.config.model_copy(update={"model": run.config.model.model_copy(update=fields)})
    with pytest.raises(ConfigError, match=f"^wide: .*{message}"):
        export_gguf(dataclasses.replace(run, config=config), Path("model.gguf"))


def test_other_activations_are_refused(runs: Runs) -> None:
    run = runs["wide"]
    rounding = with_rounding_of(run, "TQ2_0")
    assert rounding.model.matmul.quantizers != Quantizers()
    with pytest.raises(ConfigError, match="has a custom quantizer of activations"):
        export_gguf(rounding, Path("model.gguf"))


def test_other_tokenizers_are_refused(runs: Runs) -> None:
    tree = json.loads(runs["wide"].tokenizer.to_str())
    tree["pre_tokenizer"]["add_prefix_space"] = True
    run = dataclasses.replace(runs["wide"], tokenizer=type(runs["wide"].tokenizer).from_str(json.dumps(tree)))
    with pytest.raises(ConfigError, match=r"^wide: its tokenizer is not the byte-level BPE of GPT-2"):
        export_gguf(run, Path("model.gguf"))


def test_a_tokenizer_that_differs_is_found(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = gguf_vocabulary.vocabulary

    def reversed_merges(tokenizer: Tokenizer, size: int) -> Vocabulary:
        read = vocabulary(tokenizer, size)
        return dataclasses.replace(read, merges=read.merges[::-1])

    monkeypatch.setattr(gguf_vocabulary, "vocabulary", reversed_merges)
    with pytest.raises(ExportError, match=r"llama\.cpp splits .* into other tokens"):
        export_gguf(runs["wide"], Path("model.gguf"))


def test_a_file_that_does_not_load_is_found(runs: Runs, permissive: None) -> None:
    """As with an untied head, which llama.cpp has no place for."""
    path = Path("model.gguf")
    write_gguf(path, runs["wide"], "TQ2_0")
    path.write_bytes(path.read_bytes().replace(b"blk.1.attn_sub_norm.weight", b"blk.1.attn_sub_magn.weight"))
    with pytest.raises(ExportError, match=r"llama\.cpp does not run the file: .*attn_sub_norm"):
        check_in_llama_cpp(runs["wide"], path, "TQ2_0")


def test_llama_cpp_is_needed_for_the_check_only(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'bitnetctl\[llama-cpp\]', or leave it out with --no-check"):
        export_gguf(runs["wide"], Path("model.gguf"))
    unchecked = export_gguf(runs["wide"], Path("model.gguf"), check=False)
    assert (unchecked.is_checked, unchecked.checks) == (False, ())
    assert str(unchecked.read_back).startswith("codes of 14 matrices identical")
    with pytest.raises(ConfigError, match="exists; --force replaces what an earlier export wrote"):
        export_gguf(runs["wide"], Path("model.gguf"), check=False)
    assert export_gguf(runs["wide"], Path("model.gguf"), check=False, replace=True).form == "TQ2_0"


def test_a_context_of_one_token_is_not_run(runs: Runs) -> None:
    run = runs["wide"]
    config = run.config.model_copy(update={"data": run.config.data.model_copy(update={"sequence_length": 1})})
    short = dataclasses.replace(run, config=config)
    with pytest.raises(ConfigError, match=r"^wide: was trained on rows of one token, .* --no-check writes"):
        export_gguf(short, Path("model.gguf"))
    assert list(Path().iterdir()) == []
    assert not export_gguf(short, Path("model.gguf"), check=False).is_checked


def test_a_model_too_sensitive_to_compare_is_refused(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gate would be as wide as it is sensitive, and pass another model, too."""
    monkeypatch.setattr(sensitivity, "NOISE", 0.3)
    with pytest.raises(
        ExportError, match=r"^self-check cannot decide: wide is so sensitive .* 0\.001; train it longer"
    ):
        export_gguf(runs["wide"], Path("model.gguf"))
    assert list(Path().iterdir()) == []


def greedy(run: TrainedRun, prompt_T: torch.Tensor, new_tokens: int) -> list[int]:
    tokens = prompt_T.tolist()
    for _ in range(new_tokens):
        tokens.append(int(run.logits(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt_T) :]


def test_greedy_text_may_part_at_a_tie(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run, prompt_T = runs["wide"], check_rows(runs["wide"], 32)[0, :8]
    theirs = greedy(run, prompt_T, 24)
    assert require_greedy(run, prompt_T, theirs) == "greedy text of 24 tokens identical"
    logits_V = run.logits(torch.tensor([[*prompt_T.tolist(), *theirs[:5]]]))[0, -1].log_softmax(-1)
    first, second = logits_V.topk(2).values.tolist()
    other = [*theirs[:5], int(logits_V.topk(2).indices[1]), *theirs[6:]]
    monkeypatch.setattr(llama_cpp, "GREEDY_TIE_NATS", first - second + 1e-3)
    assert require_greedy(run, prompt_T, other).startswith("greedy text parts at token 6 of 24, with a margin of")
    monkeypatch.setattr(llama_cpp, "GREEDY_TIE_NATS", first - second - 1e-3)
    with pytest.raises(ExportError, match="greedy text parts at token 6 of 24"):
        require_greedy(run, prompt_T, other)


def test_greedy_text_that_ends_early_ended_the_text(runs: Runs) -> None:
    run, prompt_T = runs["wide"], check_rows(runs["wide"], 32)[0, :8]
    theirs = greedy(run, prompt_T, 24)
    assert run.end_of_text not in theirs
    with pytest.raises(ExportError, match="greedy text parts at token 4 of 4"):
        require_greedy(run, prompt_T, theirs[:3])


def test_activations_are_rounded_as_in_ggml() -> None:
    x_NI = torch.randn(3, 512, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 3)[:, None]
    codes, scale = llama_cpp._rounded_by_blocks(x_NI)
    for row, block in np.ndindex(3, 2):
        values = x_NI[row, 256 * block : 256 * block + 256].double()
        largest = float(values.abs().max())
        assert float(scale[row, block]) == pytest.approx(largest / 127, rel=1e-6)
        expected = (values * 127 / largest).round()
        assert int((codes[row, 256 * block : 256 * block + 256] != expected).sum()) <= 1
    zeros, scale = llama_cpp._rounded_by_blocks(torch.zeros(1, 256))
    assert zeros.count_nonzero() == 0
    assert scale.isfinite().all()
