"""Compiled functions compute what the uncompiled code does, each in one graph, for every shape.

Everything runs in a process of its own: this one disabled the compiler before torch was imported.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("error", UserWarning)
import torch
torch.set_num_threads(1)
from bitnetctl.config import parse_arm
from bitnetctl.plugins.registry import compose
from bitnetctl.engine.pack import Pack
from bitnetctl.testing import tiny_config, tiny_tokens

graphs = 0

def traced(graph, inputs):
    global graphs
    graphs += 1
    return graph.forward

def compiled(function, **options):
    return compile(function, **options, **({"backend": traced} if sys.argv[1] == "traced" else {}))

compile, torch.compile = torch.compile, compiled
results = {}
for name, changes, precision, arm in json.loads(sys.argv[2]):
    fields = tiny_config().model_dump()
    for section, values in changes.items():
        fields[section].update(values)
    config = tiny_config().model_validate(fields)
    results[name], graphs = [], 0
    torch._dynamo.reset()
    for is_compiled in (False, True):
        first = compose(parse_arm(arm))
        # a pack has one quantizer
        arms = [first, compose(parse_arm(arm) if first.quantizer_key else ())]
        pack = Pack(
            [config] * 2, arms, tiny_tokens(config), torch.device("cpu"), precision=precision, compiled=is_compiled
        )
        for step in range(1, 4):
            pack.step(step)
        results[name].append([*pack.loss_R.tolist(), *pack.grad_norm_R.tolist()])
    results[name].append(graphs)
json.dump(results, sys.stdout)
"""

FOUR_BITS = """
from bitnetctl.intervention import Intervention

class FourBits(Intervention):
    summary = "activations of 4 bits"

    def quantize_activations(self, x_NI):
        scale = x_NI.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 7
        return (x_NI / scale).round(), scale
"""
WIDE = {"model": {"hidden_size": 64}, "data": {"batch_size": 4}}
VARIANTS = [
    ("short rows", {}, "fp32", ""),
    ("long rows", {"data": {"sequence_length": 80}}, "fp32", ""),
    ("bf16", WIDE, "bf16", ""),
    ("int8", WIDE, "int8", ""),
    ("silu", {"model": {"activation": "silu", "num_key_value_heads": 1, "tie_word_embeddings": True}}, "fp32", ""),
    ("full precision", {"model": {"quantization": 0.0}}, "fp32", ""),
    ("blended", {"model": {"quantization": 0.5}}, "fp32", ""),
    ("overridden loss", {}, "fp32", "label-smoothing"),
    ("own weights", {}, "fp32", "median-scale"),
]
# graphs: layer forward and backward, weight quantization, cross-entropy, last norm forward and backward
WHOLE = 6
# attention is not compiled, so a layer has two graphs each way
SPLIT = {"long rows": 8, "silu": 8}
# nor is a plug-in
OWN = {"own weights": WHOLE - 1, "own activations": WHOLE - 2}


def compiled(how: str, variants: list[Any], cache: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "TORCHDYNAMO_DISABLE": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        # it compiles a trial for every instruction set else
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, json.dumps(variants)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results: dict[str, Any] = json.loads(done.stdout)
    return results


@pytest.mark.slow
def test_every_function_is_one_graph_and_computes_the_same(tmp_path: Path) -> None:
    plugin = tmp_path / "four_bits.py"
    plugin.write_text(FOUR_BITS)
    variants = [*VARIANTS, ("own activations", {}, "fp32", str(plugin))]
    for name, (plain, fast, graphs) in compiled("traced", variants, tmp_path).items():
        # compiled code adds in another order, and in bf16 the last bit of a sum may flip a rounding
        assert fast == pytest.approx(plain, rel=1e-3 if name in ("bf16", "int8") else 1e-5), name
        assert graphs == (SPLIT | OWN).get(name, WHOLE), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_kernels_compute_what_eager_ones_do(tmp_path: Path) -> None:
    plain, fast, _ = compiled("compiled", VARIANTS[:1], tmp_path)["short rows"]
    assert fast == pytest.approx(plain, rel=1e-4)
