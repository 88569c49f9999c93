"""Fast paths are taken on a device only where they agree with the plain operations; a refusal is said once."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from configs import TinyConfig
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.engine import selfcheck
from bitnetctl.engine.select import Execution
from bitnetctl.engine.selfcheck import Check, proven, run_check
from bitnetctl.files import cache_folder
from bitnetctl.model.parts import PARTS, Part

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU kernels are not interpreted")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FUSED = Execution(engine="fused", precision="fp32", kernels=frozenset(PARTS))


@pytest.fixture
def small(tiny_config: TinyConfig) -> RunConfig:
    return tiny_config(
        steps=20_000,
        model__hidden_size=16,
        model__num_attention_heads=2,
        model__num_key_value_heads=2,
        model__num_layers=1,
        data__batch_size=1,
        data__sequence_length=8,
    )


@pytest.fixture
def check(small: RunConfig) -> Callable[..., Check]:
    def make(part: str, **fields: Any) -> Check:
        fields = {"precision": "fp32", "interpolates": False, **fields}
        return Check(part=part, config=selfcheck._small(small), vocab_size=300, **fields)

    return make


@pytest.mark.parametrize("interpolates", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_every_part_agrees_here(part: str, interpolates: bool, check: Callable[..., Check]) -> None:
    assert run_check(check(part, interpolates=interpolates), CPU) is None


def test_bf16_agrees_within_its_tolerance(check: Callable[..., Check]) -> None:
    assert [run_check(check(part, precision="bf16"), CPU) for part in ("layers", "loss")] == [None, None]


@pytest.mark.parametrize(
    ("part", "module", "name", "problem"),
    [
        ("loss", "bitnetctl.model.fused", "cross_entropy_", "the loss differs by"),
        ("layers", "bitnetctl.model.fused", "norm_quantize_backward", "the norm differs by"),
        ("weights", "bitnetctl.model.fused", "ternary_", "the loss differs by"),
        ("update", "bitnetctl.engine.fused", "adam_rows_", "the updates of embed differ by"),
        ("update", "bitnetctl.engine.fused", "square_sums", "the norm differs by"),
    ],
)
def test_a_wrong_kernel_is_found(
    part: str, module: str, name: str, problem: str, check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(__import__(module, fromlist=[name]), name)

    def wrong(*args: Any, **options: Any) -> Any:
        if name == "ternary_":
            right(*args, **options)
            args[1].mul_(1.2)
            return None
        if name == "adam_rows_":
            return None
        result = right(*args, **options)
        return result * 1.1 if isinstance(result, Tensor) else result

    monkeypatch.setattr(f"{module}.{name}", wrong)
    found = run_check(check(part), CPU)
    assert found is not None
    assert found.startswith(problem)


def test_a_kernel_that_fails_is_named(check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("out of registers\nmore")

    monkeypatch.setattr("bitnetctl.model.fused.ternary_", fail)
    assert run_check(check("weights"), CPU) == "RuntimeError: out of registers more"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, token_cache: object) -> dict[str, str | None]:
    """A pretended card and what is wrong on it by part; counts the checks under "checked"."""
    problems: dict[str, str | None] = {}

    def outcomes(checks: Sequence[Check], device: torch.device) -> list[str | None]:
        problems["checked"] = str(int(problems.get("checked") or 0) + len(checks))
        return [problems.get(check.part) for check in checks]

    monkeypatch.setattr(selfcheck, "_in_a_process", outcomes)
    monkeypatch.setattr(selfcheck, "device_name", lambda device: "Card 9000")
    return problems


def prove(execution: Execution, config: RunConfig, log: Callable[[str], None] = lambda line: None) -> Execution:
    return proven(execution, [config], 300, GPU, interpolates=False, log=log)


def test_outcomes_are_kept_for_card_versions_and_shape(
    card: dict[str, str | None], small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    assert prove(FUSED, small, lines.append) == FUSED
    assert len(lines) == 1
    assert "checking fast kernels on Card 9000" in lines[0]
    assert prove(FUSED, small, lines.append) == FUSED
    assert (card["checked"], len(lines)) == (str(len(PARTS)), 1)
    # the weights of a seed and the number of layers change no kernel
    prove(FUSED, small.model_copy(update={"seed": 5, "steps": 7}))
    assert card["checked"] == str(len(PARTS))
    monkeypatch.setattr(selfcheck, "driver_version", lambda: "999.9")
    prove(FUSED, small)
    assert card["checked"] == str(2 * len(PARTS))
    wider = small.model_copy(update={"model": small.model.model_copy(update={"hidden_size": 32})})
    prove(FUSED, wider)
    assert card["checked"] == str(3 * len(PARTS))


def test_a_part_that_disagrees_is_left_out_and_said(card: dict[str, str | None], small: RunConfig) -> None:
    card["loss"] = "the loss differs by 0.3 (at most 1e-05)"
    for _ in range(2):
        lines: list[str] = []
        execution = prove(FUSED, small, lines.append)
        assert execution == replace(FUSED, kernels=frozenset[Part](PARTS) - {"loss"})
        refusal = "own kernels for loss are not used on Card 9000: the loss differs by 0.3 (at most 1e-05)"
        assert lines[-1] == refusal


def test_without_any_part_the_layers_are_compiled_or_nothing_is(
    card: dict[str, str | None], small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitnetctl.engine.select._missing_to_compile", lambda device: None)
    card.update(dict.fromkeys(PARTS, "RuntimeError: broken"))
    assert prove(FUSED, small.model_copy(update={"steps": 200_000})).engine == "compile"
    assert prove(FUSED, small.model_copy(update={"steps": 200})) == Execution(engine="graph", precision="fp32")
    card["compile"] = "the gradient of o differs by 0.4 (at most 0.03)"
    lines: list[str] = []
    other = small.model_copy(update={"steps": 200_000, "data": small.data.model_copy(update={"batch_size": 2})})
    assert prove(FUSED, other, lines.append).engine == "graph"
    assert lines[-1].startswith("compiled layers are not used on Card 9000: the gradient of o")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"problem": 3}'])
def test_a_damaged_record_is_checked_again(content: bytes, card: dict[str, str | None], small: RunConfig) -> None:
    prove(FUSED, small)
    records = list((cache_folder() / "checks").iterdir())
    assert {json.loads(path.read_bytes())["device"] for path in records} == {"Card 9000"}
    for path in records:
        path.write_bytes(content)
    assert prove(FUSED, small) == FUSED
    assert card["checked"] == str(2 * len(PARTS))


def test_what_is_plain_is_not_checked(card: dict[str, str | None], small: RunConfig) -> None:
    for execution in (Execution(engine="graph", precision="bf16"), Execution(engine="eager", precision="fp32")):
        assert prove(execution, small) == execution
    assert proven(FUSED, [small], 300, CPU, interpolates=False, log=print) == FUSED
    assert "checked" not in card


def test_checks_run_in_a_process_of_their_own(check: Callable[..., Check]) -> None:
    assert selfcheck._in_a_process([check("loss"), check("gradients")], CPU) == [None, None]


def test_a_check_that_ends_its_process_fails_alone(
    check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[subprocess.CompletedProcess[str] | subprocess.TimeoutExpired] = [
        subprocess.CompletedProcess([], -11, '{"problem": null}\n', "illegal memory access\n"),
        subprocess.TimeoutExpired([], 180, output=b'{"problem": null}\n'),
        subprocess.CompletedProcess([], 0, '{"problem": null}\n', ""),
    ]

    def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
        answer = answers.pop(0)
        if isinstance(answer, subprocess.TimeoutExpired):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    problems = selfcheck._in_a_process([check(part) for part in PARTS], CPU)
    assert problems == [
        None,
        "the check ended with -11: illegal memory access",
        None,
        "the check took more than 180 s",
        None,
    ]
