"""Check a GGUF file in llama.cpp itself: its tokens, its greedy text and its log-probabilities against the run's.

Shapes: P rows of T tokens, N new tokens, V vocabulary.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnetctl.errors import ConfigError, ExportError, one_line
from bitnetctl.files import require_space, temporary_folder
from bitnetctl.formats.check_inputs import TEXTS, check_rows
from bitnetctl.formats.gates import Gate, compare_rows, require_agreement
from bitnetctl.formats.gguf_layout import BLOCK, TERNARY_TYPES, GgufType
from bitnetctl.formats.sensitivity import kl_gate, noise_kl
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.kernels import INT8_MAX
from bitnetctl.model.quantization import Quantizers

GATES = {"TQ2_0": 2e-6, "TQ1_0": 2e-6, "F16": 2e-6, "F32": 1e-8}
"""Largest KL divergence from the run with its activations rounded as llama.cpp rounds them.

Of ternary files it is more in a model that is sensitive: `SHARE` of the divergence that llama.cpp's rounding makes, or
that of noise.
"""
SHARE = 0.5
ROUNDING = {
    "TQ2_0": "int8 activations by 256",
    "TQ1_0": "int8 activations by 256",
    "F16": "fp16 activations",
    "F32": "fp32 activations",
}
GREEDY_TIE_NATS = 0.1
"""Margin of the two most probable tokens below which greedy text may part."""
NEW_TOKENS = 64

_PROMPT_TOKENS = 16
# a position takes 5 µs for each token of the vocabulary, since the server returns log-probabilities as JSON
_VALUES = 1 << 21
_MIN_POSITIONS, _MAX_POSITIONS = 64, 2048
_MIN_LOG_PROB = -80.0
_LOGGED_ERROR = re.compile(r"^[0-9.]+ E (.*)|(GGML_ASSERT\(.*)")
# of the largest of a block: those of zeros stay zero
_LEAST = 1e-30


def require_llama_cpp(run: TrainedRun) -> None:
    """Raise ConfigError where llama.cpp is not installed, or cannot take a prompt of the run."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError(
            "the self-check of a GGUF file runs it in llama.cpp: pip install 'bitnetctl[llama-cpp]', or leave it out "
            "with --no-check"
        )
    # its server refuses a prompt that fills the context
    if run.context_length < 2:
        raise ConfigError(
            f"{run.name}: was trained on rows of one token, and llama.cpp's server takes no prompt in such a context; "
            "--no-check writes the file without running it"
        )


@torch.no_grad()
def check_in_llama_cpp(
    run: TrainedRun, file: Path, gguf_type: GgufType, *, positions: int | None = None
) -> tuple[str, ...]:
    """Return a line for everything that was compared; raises ExportError where llama.cpp runs another model.

    llama.cpp rounds activations in its own way, which alone moves log-probabilities by up to some tenths. So it is
    compared with the run's forward pass with that rounding, which it must equal; the distance to the run itself has no
    gate. `positions` are by default as many as take some twenty seconds.
    """
    vocab_size = run.model.vocab_size
    rows_PT = check_rows(run, positions or min(max(_VALUES // vocab_size, _MIN_POSITIONS), _MAX_POSITIONS))
    # the server refuses a prompt that fills the context
    rows_PT = rows_PT[:, : run.context_length - 1]
    prompt_T = rows_PT[0, : min(_PROMPT_TOKENS, -(-rows_PT.shape[1] // 2))]
    texts = [*TEXTS, *map(run.decode, rows_PT[:4].tolist())]
    with temporary_folder() as out:
        job = {
            "model": str(file.absolute()),
            "context": run.context_length,
            "vocab_size": vocab_size,
            "rows": rows_PT.tolist(),
            "prompt": prompt_T.tolist(),
            "new_tokens": min(NEW_TOKENS, run.context_length - len(prompt_T)),
            "ascii_token": run.tokenizer.token_to_id("a"),
            "texts": texts,
            "out": str(out),
        }
        require_space(out, 4 * rows_PT.numel() * vocab_size, "; set TMPDIR to a folder on another disk")
        result = _run(job, out)
        theirs_PTV = torch.from_numpy(np.fromfile(out / "logits.f32", np.float32)).view(*rows_PT.shape, vocab_size)
    tokens = _require_tokens(run, texts, result["ids"])
    rounded = with_rounding_of(run, gguf_type)
    ours, expected = ([reported_log_probs(one.logits(row_T[None])[0]) for row_T in rows_PT] for one in (run, rounded))
    theirs = [reported_log_probs(logits_TV) for logits_TV in theirs_PTV]
    gate = GATES[gguf_type]
    if gguf_type in TERNARY_TYPES:
        sensitivity = max(SHARE * compare_rows(ours, expected).kl, noise_kl(rounded, rows_PT, expected))
        gate = kl_gate(run, gate, sensitivity, "llama.cpp")
    against = f"llama.cpp against the run with {ROUNDING[gguf_type]}"
    lines = require_agreement(compare_rows(expected, theirs), Gate(kl=gate), against)
    itself = compare_rows(ours, theirs)
    return (
        f"{tokens}, llama.cpp (xllamacpp {result['version']})",
        *lines,
        f"KL divergence, llama.cpp against the run itself, {itself.positions:,} positions: {itself.kl:.1e}, largest "
        f"difference {itself.max_abs:.1e}, same most probable token {itself.argmax_equal:.2%} (no gate)",
        f"{require_greedy(rounded, prompt_T, result['greedy'])}, llama.cpp",
    )


def reported_log_probs(logits_TV: Tensor) -> Tensor:
    """Return log-probabilities as the server reports them: logarithms of probabilities in fp32, none of zero."""
    return logits_TV.log_softmax(-1).clamp(min=_MIN_LOG_PROB)


def with_rounding_of(run: TrainedRun, gguf_type: GgufType) -> TrainedRun:
    """Return a run that computes as llama.cpp does with a file of this type: its rounding of weights and activations.

    With ternary matrices llama.cpp rounds activations to int8 by the largest of 256 values (type Q8_K in ggml), with
    those in F16 to fp16, and with F32 not at all.
    """
    activations = {"F16": _half, "F32": _exact}.get(gguf_type, _rounded_by_blocks)
    quantizers, weights = replace(run.model.matmul.quantizers, activations=activations), run.weights()
    matrices = run.quantized().keys()
    if gguf_type == "F16":
        rounded = [name for name, weight in weights.items() if weight.dim() == 2]
        weights |= {name: weights[name].half().float() for name in rounded if name not in matrices}
    if run.quant_lambda == 0.0:
        quantizers = Quantizers(weights=_half if gguf_type == "F16" else _exact, activations=activations)
    return run.with_model(weights, quantizers, quant_lambda=1.0)


def _rounded_by_blocks(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    x_NBI = x_NI.unflatten(-1, (-1, BLOCK))
    largest_NB1 = x_NBI.abs().amax(-1, keepdim=True).clamp(min=_LEAST)
    return (x_NBI * (INT8_MAX / largest_NB1)).round().flatten(-2), (largest_NB1 / INT8_MAX).squeeze(-1)


def _half(x: Tensor) -> tuple[Tensor, Tensor]:
    return _exact(x.half().to(x.dtype))


def _exact(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return values of tokens or matrices as codes of scale 1."""
    return x, torch.ones_like(x[..., :1])


def _run(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run llama.cpp in a process of its own; raises ExportError with what it says where it fails."""
    path = out / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    worker = Path(__file__).with_name("llama_worker.py")
    command = [sys.executable, "-P", str(worker), str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        # the first error that llama.cpp logs is the reason, what follows is its consequence
        logged = [match[1] or match[2] for match in map(_LOGGED_ERROR.search, lines) if match]
        said = [*logged[:1], *lines[-1:], f"exit code {done.returncode}"]
        raise ExportError(f"self-check failed: llama.cpp does not run the file: {one_line(said[0])}")
    result: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return result


def _require_tokens(run: TrainedRun, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> str:
    """Return a line that says all texts have the run's tokens; raises ExportError if not."""
    for text, theirs in zip(texts, ids, strict=True):
        if run.encode(text) != list(theirs):
            raise ExportError(f"self-check failed: llama.cpp splits {text[:60]!r} into other tokens")
    return f"tokens of {len(texts)} texts identical"


def require_greedy(run: TrainedRun, prompt_T: Tensor, theirs: Sequence[int]) -> str:
    """Return a line about the greedy text of llama.cpp; raises ExportError where it parts at no tie.

    It must be the run's own up to the first token whose margin of the two most probable ones is below 0.1 nats.
    """
    # the server does not return the end of text
    ends = len(theirs) < min(NEW_TOKENS, run.context_length - len(prompt_T)) and run.end_of_text is not None
    following = [*theirs, run.end_of_text] if ends else list(theirs)
    tokens_T = torch.cat([prompt_T, torch.tensor(following, dtype=prompt_T.dtype)])
    logits_NV = run.logits(tokens_T[None, :-1])[0, len(prompt_T) - 1 :].log_softmax(-1)
    for number, (logits_V, token) in enumerate(zip(logits_NV, following, strict=True), 1):
        first, second = logits_V.topk(2).values.tolist()
        if int(logits_V.argmax()) == token:
            continue
        part = f"greedy text parts at token {number} of {len(following)}, with a margin of {first - second:.2g} nats"
        if first - second >= GREEDY_TIE_NATS:
            raise ExportError(f"self-check failed: {part}; only below {GREEDY_TIE_NATS:g} is it a tie")
        return f"{part} (a tie is below {GREEDY_TIE_NATS:g})"
    return f"greedy text of {len(following)} tokens identical"
