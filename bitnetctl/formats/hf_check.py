"""The self-check of a folder for `transformers`: it is loaded by the library, in a process of its own, and compared."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bitnetctl.errors import ConfigError, ExportError, one_line
from bitnetctl.files import require_space, temporary_folder
from bitnetctl.formats.check_inputs import TEXTS, check_rows
from bitnetctl.formats.gates import Gate, compare_rows, require_agreement, require_equal
from bitnetctl.formats.hf_config import PACKED, HfForm
from bitnetctl.formats.hf_files import LENGTHS, LOGITS, RESULT, WEIGHTS
from bitnetctl.formats.hf_layout import scale_name, tensors
from bitnetctl.formats.hf_read import read_hf
from bitnetctl.formats.safetensors_reader import read_json
from bitnetctl.formats.sensitivity import kl_gate, noise_kl
from bitnetctl.formats.stated import end_of_text_name, require_stated
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.units import listed, shortened

GATE = Gate(kl=1e-5, argmax_near=0.995)
"""Of models whose sensitivity to rounding is no more than its KL divergence, which is the limit elsewhere."""
NEEDED = ("transformers", "accelerate")
# the library adds up |w| in another order
_ONLINE_TOLERANCE = 1e-5
# of 1 / (1 / scale)
_ROUNDING = 2.0**-23
# of a logit, and of a weight of what was loaded
_BYTES = 4
# no network; compiling takes a minute, and a C++ compiler
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder to be checked against the run of which it was written in a form."""

    run: TrainedRun
    path: Path
    form: HfForm


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What the library made of a folder: files in `out`, of rows of tokens [P, T]."""

    folder: Folder
    rows_PT: Tensor
    out: Path

    @property
    def texts(self) -> list[str]:
        """Strings to tokenize: odd ones, and the text of the rows, in which the usual tokens occur."""
        return [*TEXTS, *map(self.folder.run.decode, self.rows_PT.tolist())]


def require_transformers() -> None:
    """Raise ConfigError where the libraries of the self-check are missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the self-check needs {listed(missing)}: pip install 'bitnetctl[transformers]'; "
            "--no-check writes the files without it"
        )


def check_folder(folder: Folder) -> tuple[str, ...]:
    """Return a line for everything that was compared; raises ExportError that says what differs."""
    with temporary_folder() as work:
        [loaded] = load_folders([folder], work)
        return require_same(loaded)


def load_folders(folders: Sequence[Folder], work: Path, *, positions: int = 2048) -> list[Loaded]:
    """Load folders in one process of the library, which takes seconds to start, and run it on rows of each model.

    `work` is a folder for what it writes. Raises ExportError where the process fails.
    """
    loaded = []
    for at, folder in enumerate(folders):
        out = work / str(at)
        out.mkdir()
        loaded.append(Loaded(folder=folder, rows_PT=check_rows(folder.run, positions), out=out))
    values = sum(one.rows_PT.numel() * one.folder.run.model.vocab_size for one in loaded)
    parameters = sum(one.folder.run.model.num_parameters for one in loaded)
    require_space(work, _BYTES * (values + parameters), "; set TMPDIR to a folder on another disk")
    jobs = [
        {
            "folder": str(one.folder.path.absolute()),
            "out": str(one.out),
            "texts": one.texts,
            "rows": one.rows_PT.tolist(),
            "vocab_size": one.folder.run.model.vocab_size,
        }
        for one in loaded
    ]
    path = work / "jobs.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    done = subprocess.run(
        # -P: a file of the current folder may have the name of a library
        [sys.executable, "-P", "-m", "bitnetctl.formats.hf_reload", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **_ENVIRONMENT, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise ExportError(f"self-check failed: transformers ended with: {one_line(lines[-1])}")
    return loaded


@torch.no_grad()
def require_same(loaded: Loaded) -> tuple[str, ...]:
    """Return a line for everything that was compared; raises ExportError for the first that differs."""
    result = json.loads((loaded.out / RESULT).read_text(encoding="utf-8"))
    against = f"transformers {result['version']}"
    if "error" in result:
        raise ExportError(f"self-check failed: {against} cannot use it: {result['error']}")
    for what, names in result["unfit"].items():
        if names:
            raise ExportError(f"self-check failed: {against}: {what.replace('_', ' ')}: {shortened(names, 3)}")
    run = loaded.folder.run
    lines = (*_weights_compared(loaded.folder, load_file(loaded.out / WEIGHTS)), _texts_compared(loaded, result))
    shape = (*loaded.rows_PT.shape, run.model.vocab_size)
    logits_PTV = np.memmap(loaded.out / LOGITS, np.float32, "r", shape=shape)
    logits = [run.logits(tokens_T[None])[0] for tokens_T in loaded.rows_PT]
    agreement = compare_rows(logits, (torch.from_numpy(np.array(logits_TV)) for logits_TV in logits_PTV))
    gate = replace(GATE, kl=kl_gate(run, GATE.kl, noise_kl(run, loaded.rows_PT, logits), "transformers"))
    lines = (*lines, *require_agreement(agreement, gate, against))
    return (*lines, _settings_compared(loaded.folder, result["settings"]))


def _weights_compared(folder: Folder, loaded: dict[str, Tensor]) -> list[str]:
    """Compare codes and scales, then every other tensor."""
    run, form = folder.run, folder.form
    lines = []
    quantized = {} if form == "plain" else run.quantized()
    parts = {
        kind: {name.partition("/")[2]: one for name, one in loaded.items() if name.startswith(f"{kind}/")}
        for kind in ("codes", "scale", "tensor")
    }
    theirs = {name: (codes, parts["scale"][name]) for name, codes in parts["codes"].items()}
    if form == "online":
        lines.append(require_equal(quantized, theirs, tolerance=_ONLINE_TOLERANCE, masters=run.weights()))
    elif quantized or theirs:
        lines.append(require_equal(quantized, theirs, tolerance=_ROUNDING if form == "bitlinear" else 0.0))
    packed = {*quantized, *map(scale_name, quantized)} if form in PACKED else set()
    others = {name: tensor for name, tensor in tensors(run, form).items() if name not in packed}
    for name, tensor in others.items():
        if not torch.equal(parts["tensor"].get(name, torch.empty(0)), tensor):
            raise ExportError(f"self-check failed: {name}: is not the tensor of the run")
    lines.append(f"{len(others)} other tensors identical")
    return lines


def _settings_compared(folder: Folder, theirs: dict[str, Any]) -> str:
    """Compare what the files state, and what the library made of it, with the run."""
    run = folder.run
    try:
        require_stated(run, read_hf(folder.path))
    except ConfigError as error:
        raise ExportError(f"self-check failed: {error}") from error
    for name, found in theirs.items():
        number = run.context_length if name in LENGTHS else run.end_of_text
        if found != number:
            raise ExportError(f"self-check failed: {name} is {found} as it was loaded, not {number}")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        # which of them counts differs between versions of the library
        named, expected = read_json(folder.path / name).get("eos_token"), end_of_text_name(run)
        if named != expected:
            raise ExportError(f"self-check failed: eos_token of {name} is {named!r}, not {expected!r}")
    return "config, context length and end of text identical"


def _texts_compared(loaded: Loaded, result: dict[str, Any]) -> str:
    tokenizer, texts = loaded.folder.run.tokenizer, loaded.texts
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, ours, ids, decoded in zip(texts, encoded, result["ids"], result["decoded"], strict=True):
        if ours.ids != ids:
            raise ExportError(f"self-check failed: the tokenizer gives other tokens for {text[:40]!r}")
        if loaded.folder.run.decode(ids) != decoded:
            raise ExportError(f"self-check failed: the tokenizer decodes the tokens of {text[:40]!r} to another text")
    return f"tokens and text of {len(texts)} strings identical"
