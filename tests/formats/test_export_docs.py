"""The examples of docs/export.md."""

import re
from pathlib import Path

import pytest

import bitnetctl
from bitnetctl.formats.bitnetctl_safetensors import export_safetensors
from bitnetctl.formats.gates import ARGMAX_TIE_NATS
from bitnetctl.formats.hf_check import GATE
from bitnetctl.formats.hf_layout import FORMS
from bitnetctl.inference.trained import TrainedRun

PAGE = (Path(bitnetctl.__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_form_is_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)`.*\| .*MB \|$", PAGE, re.MULTILINE) == list(FORMS)


def test_gates_are_those_of_the_table() -> None:
    assert GATE.kl == 1e-5
    assert "| KL divergence on 2,048 held-out positions | ≤ 10⁻⁵, more in a model that is sensitive" in PAGE
    least = f"{GATE.argmax_near:.1%}".replace("%", " %")
    name = f"positions with the same most probable token, or one within {ARGMAX_TIE_NATS:g} nats of it"
    assert f"| {name} | ≥ {least} |" in PAGE


def test_the_plain_file_is_read_as_the_page_says(
    export_runs: dict[str, TrainedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    run = export_runs["portable"]
    export_safetensors(run, Path("my-model.safetensors"))
    found: dict[str, object] = {}
    [loading, plain] = EXAMPLES
    compile(loading, "loading", "exec")
    exec(plain, found)
    codes_OI, scale_OG = run.quantized()[str(found["name"])]
    assert (found["weights"] == codes_OI * scale_OG).all()  # type: ignore[attr-defined]
    assert "'hidden_size': 32" in capsys.readouterr().out
